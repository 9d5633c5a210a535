"""The system's allocator, set up for arrays that come and go with every step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt."""
LARGEST, LARGEST_BEFORE = 2**31 - 1, 32 * 2**20
"""The largest sizes in bytes that mallopt takes, and that it took for M_MMAP_THRESHOLD before glibc 2.35."""

Mallopt = Callable[[int, int], int]


def keep_large_arrays(environ: Mapping[str, str], mallopt: Mallopt | None) -> bool:
    """Have glibc keep the memory of freed arrays for the next ones. Before other threads begin; whether it will.

    MLX's CPU build takes each array from malloc, and glibc maps large ones anew each time, unless told otherwise: the
    system then has to clear all their pages, which costs more than computing them. Threads take from one arena, since
    the others' hold no arrays beyond 64 MiB. Who sets variables of glibc's malloc has decided otherwise, and a system
    without glibc (``mallopt`` None) needs none of this.
    """
    decided = any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
    if decided or mallopt is None:
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST) == 1 or mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE) == 1
    mallopt(M_TRIM_THRESHOLD, LARGEST)
    mallopt(M_ARENA_MAX, 1)
    return kept


def glibc_mallopt() -> Mallopt | None:
    """glibc's mallopt; None where the system's C library is another one."""
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return None
        mallopt: Mallopt = ctypes.CDLL(None).mallopt
    except (ValueError, OSError, AttributeError):
        return None
    return mallopt
