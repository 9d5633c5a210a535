"""Checks of folders and of the room on their disks."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from submit.doctor.finding import Finding, failed, good, unsure

__all__ = ["check_data_folder", "check_disks"]

LEAST_BYTES, SCARCE_BYTES = 10**9, 10**10

Free = Callable[[Path], tuple[int, int]]
"""The device that a folder is on, and the bytes free there."""


def free_space(folder: Path) -> tuple[int, int]:
    """See :data:`Free`."""
    return folder.stat().st_dev, shutil.disk_usage(folder).free


def check_disks(folders: Sequence[tuple[str, Path]], free: Free = free_space) -> Iterator[Finding]:
    """The room on each disk that one of these folders is on, or will be; the folders have names for people."""
    disks: dict[int, tuple[int, Path, list[str]]] = {}
    for name, folder in folders:
        there = _existing(folder)
        try:
            device, room = free(there)
        except OSError as error:
            yield failed(f"disk of the {name}", f"{there}: {error.strerror}", "see that its volume is mounted")
            continue
        disks.setdefault(device, (room, there, []))[2].append(name)
    for room, there, names in disks.values():
        reason = f"{_decimal(room)} free for the {_listed(names)}"
        remedy = f"free some; `du -hd1 {shlex.quote(str(there))}` says what is large, `hf cache ls` lists models"
        if room < LEAST_BYTES:
            yield failed("disk", reason, remedy)
        elif room < SCARCE_BYTES:
            yield unsure("disk", reason, remedy)
        else:
            yield good("disk", reason)


def check_data_folder(folder: Path, user: int | None = None) -> Finding:
    """Where promptmill keeps what is this user's: it can write there, and nobody else can read it."""
    name, shown = "data folder", shlex.quote(str(folder))
    user = os.getuid() if user is None else user
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        which = f"{folder} cannot be written" if there == folder else f"{folder} cannot be made in {there}"
        return failed(name, which, f"sudo chown -R $(id -un) {shlex.quote(str(there))}, or set PROMPTMILL_DATA_DIR")
    if there != folder:
        return good(name, f"{folder} will be made when it is needed")
    found = folder.stat()
    if found.st_uid != user:
        return failed(name, f"{folder} belongs to another user", f"sudo chown -R $(id -un) {shown}")
    if found.st_mode & 0o077:
        return unsure(name, f"other users of this machine can look into {folder}", f"chmod 700 {shown}")
    return good(name, f"{folder}, writable, this user's alone")


def _existing(folder: Path) -> Path:
    """The folder, or what of the path to it is there."""
    return next((path for path in (folder, *folder.parents) if _is_there(path)), Path("/"))


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # also where a folder above it may not be looked into
        return False
    return True


def _decimal(number: int) -> str:
    """Bytes as the Finder counts them."""
    return f"{number / 10**9:,.1f} GB"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
