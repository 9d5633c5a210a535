"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from jobs.errors import RefusedError

__all__ = ["parse_size"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?")


def parse_size(text: str) -> int:
    """Bytes of ``48G``, ``512MB``, ``1.5 GiB``, or a plain number.

    Raises:
        RefusedError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise RefusedError(f"'{text:.40}' is not a size: write 48G, 512M or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])
