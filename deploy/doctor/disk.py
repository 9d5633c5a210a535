"""Checks of folders and of the room on their disks."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploy.doctor.finding import Finding, failed, good, judged, unsure
from deploy.host import user_name

LEAST_BYTES, SCARCE_BYTES = 10**9, 10**10
FETCH_BYTES = 5 * 10**10
"""Models of some 30 billion parameters in 8 bits have more; most in 4 bits have less."""

Free = Callable[[Path], tuple[int, int]]
"""The device that a folder is on, and the bytes free there."""
May = Callable[[Path, int], bool]
"""Whether this user may do something with a path, as :func:`os.access` says."""


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
        yield judged("disk", reason, remedy, fails=room < LEAST_BYTES, warns=room < SCARCE_BYTES)


def check_room(names: Sequence[str], cache: Path, free: Free = free_space) -> Finding | None:
    """Models of these names are still to be fetched into the hub's cache: their size is known only to the hub. None
    where there are none, or where the disk is not to be asked."""
    there = _existing(cache)
    if not names:
        return None
    try:
        _, room = free(there)
    except OSError:  # check_disks says so
        return None
    what = f"{_decimal(room)} free for {_listed(names)}, still to be fetched, of unknown size"
    pages = _listed([f"https://huggingface.co/{name.partition('@')[0]}" for name in names])
    remedy = f"hold it against the size at {pages}; HF_HOME names another disk"
    return judged("room to fetch", what, remedy, warns=room < FETCH_BYTES)


def check_data_folder(folder: Path, user: int | None = None, may: May = os.access) -> Finding:
    """Where promptmill keeps what is this user's: it can write there, and nobody else can read it. No remedy touches
    anything but the folder itself: what is above it is the system's, or somebody else's."""
    name, shown = "data folder", shlex.quote(str(folder))
    user = os.getuid() if user is None else user
    there = _existing(folder)
    if not there.is_dir():
        return failed(name, f"{there} is no folder", f"set PROMPTMILL_DATA_DIR to a folder: {shown} cannot be one")
    found = there.stat()
    if there != folder:
        if not may(there, os.X_OK):  # the folder may well be there
            return failed(name, f"{folder} is in a folder of another user's", _as_owner(found.st_uid))
        if not may(there, os.W_OK):
            remedy = f"sudo install -d -o $(id -un) -m 700 {shown}, or set PROMPTMILL_DATA_DIR to a folder of your own"
            return failed(name, f"{folder} is not there, and {there} is not to be written", remedy)
        return good(name, f"{folder} will be made when it is needed")
    if found.st_uid != user:
        return failed(name, f"{folder} belongs to another user", _as_owner(found.st_uid))
    if not may(folder, os.W_OK | os.X_OK):
        return failed(name, f"{folder} cannot be written", f"chmod 700 {shown}; a disk mounted read-only needs another")
    if found.st_mode & 0o077:
        return unsure(name, f"other users of this machine can look into {folder}", f"chmod 700 {shown}")
    return good(name, f"{folder}, writable, this user's alone")


def _as_owner(user: int) -> str:
    """What belongs to a daemon's user is examined as that user, and never given to another."""
    owner = user_name(user) or f"'#{user}'"
    return (
        f"run doctor as the user it is of: `sudo -u {owner} promptmill doctor ...`; or set PROMPTMILL_DATA_DIR to a "
        "folder of your own"
    )


def _existing(folder: Path) -> Path:
    """The folder, or what of the path to it is there."""
    # Path.exists raises where a folder above it may not be looked into.
    return next((path for path in (folder, *folder.parents) if os.path.exists(path)), Path("/"))  # noqa: PTH110


def _decimal(number: int) -> str:
    """Bytes as the Finder counts them."""
    return f"{number / 10**9:,.1f} GB"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
