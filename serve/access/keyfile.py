"""The file of keys: only their hashes are in it. It is read again when it has changed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from jobs.errors import RefusedError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PREFIX = "sk-pm-"
SHORTEST = 6
"""Characters of a key that is brought along; those made here have 43 behind their prefix."""
LONGEST = 512
Moment = float


@dataclass(frozen=True, slots=True)
class Key:
    """A key of this name: the SHA-256 of what clients send, the models it may use (none named: all), whether it sees
    what other keys made, and times in seconds since the epoch."""

    name: str
    sha256: str
    created_at: Moment
    expires_at: Moment | None = None
    models: tuple[str, ...] = ()
    admin: bool = False

    def valid(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


class _Document(msgspec.Struct):
    keys: list[Key]


def digest(token: str) -> str:
    """What is kept of a key: random ones need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        RefusedError: it cannot be read, or is no file of keys.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Document).keys
    except FileNotFoundError:
        raise RefusedError(f"{path}: there is no such file; `promptmill key add NAME --keys {path}` makes it") from None
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path} is no file of keys: {error}") from None


@contextlib.contextmanager
def changed_keys(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed in place; the file is replaced whole, and is for its owner alone.

    Raises:
        RefusedError: it cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read_keys(path) if path.exists() else []
            yield keys
            _write(path, keys)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error.strerror or error}") from None


def _write(path: Path, keys: list[Key]) -> None:
    text = msgspec.json.format(msgspec.json.encode({"keys": [asdict(key) for key in keys]}), indent=1)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class KeyRing:
    """The keys of a file, as they are now. Threads: one."""

    def __init__(
        self, path: Path, *, now: Callable[[], float] = time.time, say: Callable[[str], object] = lambda text: None
    ) -> None:
        self._path, self._now, self._say = path, now, say
        self._seen = self._stamp()
        self._keys = read_keys(path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def find(self, token: str) -> Key | None:
        """The key that a client sent; None where it is none, was revoked or has expired."""
        self._read_again()
        if len(token) > LONGEST:
            return None
        given, found = digest(token), None
        for key in self._keys:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(key.sha256, given):
                found = key
        return found if found is not None and found.valid(self._now()) else None

    def _read_again(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = read_keys(self._path)
        except RefusedError as error:
            # What is there is better than nobody or anybody.
            self._say(f"{error}; the keys that were known go on to hold")
