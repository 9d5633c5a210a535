"""How the allocator is set up for large arrays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from worker.allocator import M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, glibc_mallopt, keep_large_arrays

MAPPINGS = """
import ctypes, os, sys
from worker.allocator import glibc_mallopt, keep_large_arrays
if sys.argv[1] == "kept":
    assert keep_large_arrays({}, glibc_mallopt())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
heap = next(line.split()[0].split("-")[0] for line in open("/proc/self/maps") if "[heap]" in line)
place = libc.malloc(300 << 20)
ends = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
print(any(int(begin, 16) <= place < int(end, 16) for begin, end in ends))
"""


def test_large_arrays_are_kept() -> None:
    """Thresholds are raised, and all threads take from one arena."""
    said: dict[int, int] = {}

    def mallopt(name: int, value: int) -> int:
        said[name] = value
        return 1

    assert keep_large_arrays({"PATH": "/bin"}, mallopt)
    assert said == {M_MMAP_THRESHOLD: 2**31 - 1, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}


def test_older_glibc_takes_less() -> None:
    """Where the threshold cannot be as high as that it is as high as it can be."""
    said: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        said.append((name, value))
        return int(name != M_MMAP_THRESHOLD or value <= 32 << 20)

    assert keep_large_arrays({}, mallopt)
    assert said[:2] == [(M_MMAP_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 32 << 20)]


@pytest.mark.parametrize(
    "environ",
    [{"MALLOC_ARENA_MAX": "2"}, {"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}],
)
def test_what_the_user_says_holds(environ: dict[str, str]) -> None:
    """Variables of glibc's malloc are left as they are, and nothing is added to them."""

    def mallopt(name: int, value: int) -> int:
        raise AssertionError("not to be called")

    assert not keep_large_arrays(environ, mallopt)


def test_other_systems_are_left_alone() -> None:
    """Without glibc there is nothing to set."""
    assert not keep_large_arrays({}, None)
    assert (glibc_mallopt() is None) == ("CS_GNU_LIBC_VERSION" not in os.confstr_names)


@pytest.mark.skipif(glibc_mallopt() is None, reason="a system without glibc")
@pytest.mark.parametrize("how", ["kept", "as it is"])
def test_large_arrays_lie_on_the_heap(how: str) -> None:
    """In a process of its own: an array of 300 MiB is mapped, unless the allocator was told to keep such ones."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    said = subprocess.run(
        [sys.executable, "-c", MAPPINGS, how], env=environ, capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == str(how == "kept")
