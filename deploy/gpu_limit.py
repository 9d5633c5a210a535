"""How much memory a Mac's GPU may keep wired: the rule by which ``deploy`` sets it and ``doctor`` judges it."""

from __future__ import annotations

from jobs.errors import RefusedError

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


def wired_limit(size: int | None, memory: int | None) -> int:
    """A limit on what the GPU may wire, in MiB, of one in bytes, or the highest that is right for ``size`` None.
    ``memory`` is that of the machine, None where it is another's.

    Raises:
        RefusedError: it leaves the system too little, or is no more than what macOS gives anyway.
    """
    if size is None:
        if memory is None:
            raise RefusedError("--wired-limit auto is by the memory of the Mac itself: give a size, such as 48G")
        size = most_wired(memory)
        if size is None:
            raise RefusedError("--wired-limit auto: this Mac has no memory to spare beyond what macOS gives its GPU")
    if size < 2**30:
        raise RefusedError("--wired-limit is below 1G: write a size such as 48G")
    if memory is not None and size > memory - least_left(memory):
        left = least_left(memory) / 2**30
        raise RefusedError(
            f"--wired-limit leaves the system less than {left:g}G of {memory // 2**30}G, and it would stall: give less"
        )
    return size // 2**20


def low_limit(mebibytes: int, memory: int) -> str | None:
    """What is said of a limit below what macOS gives a GPU anyway, two thirds of the memory or more; None above."""
    usual = memory * 2 // 3
    if mebibytes * 2**20 >= usual:
        return None
    return (
        f"--wired-limit {mebibytes / 1024:g}G is less than macOS gives its GPU anyway, about {usual // 2**30}G of "
        f"{memory // 2**30}G: models have less room with it than without"
    )
