"""Uploaded files: their bytes in a folder, what is known of them in Redis, so that several servers share both."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import redis.exceptions

from jobs.store.keys import PREFIX
from serve.access.access import Access

if TYPE_CHECKING:
    from redis import Redis

FILES = PREFIX + "files"
"""Sorted set of the ids of uploaded files by creation time; one for each owner besides."""
EXPIRING_FILES = PREFIX + "files:expiring"
"""Sorted set of the ids of files that end by themselves, by that time."""
FILE_ID = re.compile(r"file-[A-Za-z0-9]{24}")
LETTERS = string.ascii_letters + string.digits
TIME_LETTERS = 8
PART_SUFFIX = ".part"
PART_S = 3600.0
"""An upload that stood still for so long was given up: its part is removed."""
SUFFIXES = (".gz", ".zst")
LISTED_AT_A_TIME = 200


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of an uploaded file; times are seconds since the epoch. ``lines`` are not counted in compressed
    files."""

    id: str
    filename: str
    bytes: int
    created_at: float
    purpose: str
    owner: str
    lines: int = 0
    expires_at: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "expires_at": None if self.expires_at is None else int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def new_file_id(now: Callable[[], float] = time.time) -> str:
    """An id that begins with its time, in milliseconds: lists go on behind a file that is there no more."""
    left, time_of = int(now() * 1000), ""
    for _ in range(TIME_LETTERS):
        left, digit = divmod(left, len(LETTERS))
        time_of = LETTERS[digit] + time_of
    return f"file-{time_of}" + "".join(secrets.choice(LETTERS) for _ in range(24 - TIME_LETTERS))


def _time_of(file_id: str) -> float:
    milliseconds = 0
    for letter in file_id.removeprefix("file-")[:TIME_LETTERS]:
        milliseconds = milliseconds * len(LETTERS) + LETTERS.index(letter)
    return milliseconds / 1000


class Files:
    """The uploaded files. A file is there once both its bytes and its entry in Redis are: whatever dies on the way, it
    is whole or absent. Threads: any."""

    def __init__(self, connection: Redis, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._connection, self._folder, self._now = connection, folder, now

    def prepare(self) -> None:
        """Make the folder, for this user alone."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def part(self, file_id: str) -> Path:
        """Where the bytes of an upload go."""
        return self._folder / f"{file_id}{PART_SUFFIX}"

    def path(self, file: StoredFile) -> Path:
        """Where the bytes of a file are. The suffix of compressed ones says so, as the reader of prompts expects."""
        suffix = Path(file.filename).suffix.lower()
        return self._folder / f"{file.id}.jsonl{suffix if suffix in SUFFIXES else ''}"

    def add(self, file: StoredFile) -> None:
        """Keep an upload whose bytes are complete.

        Raises:
            OSError: they cannot be kept.
        """
        part = self.part(file.id)
        try:
            with self._connection.pipeline() as pipe:
                pipe.set(_key(file.id), msgspec.json.encode(file))
                for listed in (FILES, _of(file.owner)):
                    pipe.zadd(listed, {file.id: file.created_at})
                if file.expires_at is not None:
                    pipe.zadd(EXPIRING_FILES, {file.id: file.expires_at})
                pipe.execute()
        except redis.exceptions.RedisError:
            # Whether the entry is there is not known. What is left of the part has tidy() look, later on.
            os.truncate(part, 0)
            raise
        try:
            part.replace(self.path(file))
        except OSError:
            self._forget(file)
            part.unlink(missing_ok=True)
            raise

    def find(self, file_id: str, access: Access) -> StoredFile | None:
        """The file of this id; None where there is none that may be seen."""
        if not FILE_ID.fullmatch(file_id):
            return None
        found = self._parsed(cast("bytes | None", self._connection.get(_key(file_id))))
        return found if found is not None and access.sees(found.owner) else None

    def _parsed(self, raw: bytes | None) -> StoredFile | None:
        if raw is None:
            return None
        try:
            file = msgspec.json.decode(raw, type=StoredFile)
        except msgspec.MsgspecError:
            return None
        over = file.expires_at is not None and file.expires_at <= self._now()
        return file if FILE_ID.fullmatch(file.id) and not over and self.path(file).exists() else None

    def listed(self, access: Access, after: str | None, *, ascending: bool) -> Iterator[StoredFile]:
        """The files that may be seen, by creation time, those behind ``after``."""
        key = FILES if access.admin else _of(access.owner)
        members = self._connection.zrange if ascending else self._connection.zrevrange
        start = 0 if after is None else self._place_behind(key, after, ascending=ascending)
        while ids := cast("list[bytes]", members(key, start, start + LISTED_AT_A_TIME - 1)):
            stored = cast("list[bytes | None]", self._connection.mget([_key(item.decode()) for item in ids]))
            yield from (file for file in map(self._parsed, stored) if file is not None and access.sees(file.owner))
            start += len(ids)

    def _place_behind(self, key: str, after: str, *, ascending: bool) -> int:
        """Where a list goes on behind this file, or behind where it was."""
        rank = self._connection.zrank if ascending else self._connection.zrevrank
        place = cast("int | None", rank(key, after))
        if place is not None:
            return place + 1
        moment = _time_of(after)
        earlier, later = (key, "-inf", moment), (key, f"({moment}", "+inf")
        return self._connection.zcount(*(earlier if ascending else later))

    def remove(self, file: StoredFile) -> None:
        """Remove a file. A batch that is being made of it goes on: it has the file open."""
        part = self.part(file.id)
        with contextlib.suppress(FileNotFoundError):
            self.path(file).replace(part)  # what dies from here on leaves a part, for tidy()
        self._forget(file)
        part.unlink(missing_ok=True)

    def _forget(self, file: StoredFile) -> None:
        with self._connection.pipeline() as pipe:
            pipe.delete(_key(file.id))
            for listed in (FILES, _of(file.owner), EXPIRING_FILES):
                pipe.zrem(listed, file.id)
            pipe.execute()

    def tidy(self) -> None:
        """Remove files whose time has come, and what is left of uploads that were given up or whose server died."""
        due = cast("list[bytes]", self._connection.zrangebyscore(EXPIRING_FILES, 0, self._now()))
        for item in due:
            file = self._entry(item.decode(errors="replace"))
            if file is None:
                self._connection.zrem(EXPIRING_FILES, item)
            else:
                self.remove(file)
        old = self._now() - PART_S
        with os.scandir(self._folder) as entries:
            parts = [entry.name for entry in entries if entry.name.endswith(PART_SUFFIX) and _before(entry, old)]
        for name in parts:
            file = self._entry(name.removesuffix(PART_SUFFIX))
            if file is not None and not self.path(file).exists():
                self._forget(file)
            (self._folder / name).unlink(missing_ok=True)

    def _entry(self, file_id: str) -> StoredFile | None:
        """What Redis has of a file, whether its bytes are there or not."""
        raw = cast("bytes | None", self._connection.get(_key(file_id)))
        try:
            return None if raw is None else msgspec.json.decode(raw, type=StoredFile)
        except msgspec.MsgspecError:
            return None


def _before(entry: os.DirEntry[str], moment: float) -> bool:
    try:
        return entry.stat().st_mtime < moment
    except FileNotFoundError:  # another server was quicker
        return False


def _key(file_id: str) -> str:
    return f"{PREFIX}file:{file_id}"


def _of(owner: str) -> str:
    return f"{FILES}:of:{owner}"
