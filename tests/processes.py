"""The processes of this machine. Where /proc says what there is, `ps` is not needed: a small machine has none."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One that runs, and its parent's id."""

    pid: int
    parent: int
    command: str


def processes() -> list[Process]:
    """All of them but mere zombies."""
    return list(_from_proc() if (PROC / "self" / "stat").exists() else _from_ps())


def _from_proc() -> Iterator[Process]:
    for folder in PROC.iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            if folder.name.isdigit():
                # After the program's name, which may hold anything.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if fields[0] != "Z":
                    yield Process(int(folder.name), int(fields[1]), b" ".join(words).decode(errors="replace"))


def _from_ps() -> Iterator[Process]:
    # Each field by a flag of its own: where "=" is followed by more, BSD's takes that for the header of one column.
    listed = ["ps", "-axww", "-o", "stat=", "-o", "pid=", "-o", "ppid=", "-o", "command="]
    for line in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines():
        state, pid, parent, command = [*line.split(maxsplit=3), ""][:4]
        if not state.startswith("Z"):
            yield Process(int(pid), int(parent), command)
