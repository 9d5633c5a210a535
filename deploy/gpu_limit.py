"""How much memory a Mac's GPU may keep wired: the rule by which ``deploy`` sets it and ``doctor`` judges it."""

from __future__ import annotations

__all__ = ["DAEMON_SUFFIX", "LIMIT", "least_left", "most_wired"]

LIMIT = "iogpu.wired_limit_mb"
"""macOS' setting, in MiB; 0 lets macOS choose. It is forgotten at shutdown."""
DAEMON_SUFFIX = "-wired-limit"
"""The daemon that sets it at each boot is named as the worker's is, with this behind it."""
GIB = 2**30


def most_wired(memory: int) -> int | None:
    """The highest limit, in bytes, that is right for a machine of so much memory: all but an eighth, and but 8 GiB at
    least. None where that is no more than what macOS gives by itself."""
    most = memory - max(memory // 8, 8 * GIB)
    return most if most >= memory * 2 // 3 else None


def least_left(memory: int) -> int:
    """Bytes that a limit has to leave to the system, or it stalls: 4 GiB, a quarter of a small machine."""
    return min(4 * GIB, memory // 4)
