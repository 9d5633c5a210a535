"""Uploads: a form is taken apart while it comes, and its file goes to disk; memory does not grow with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.errors import ApiError, unstored
from serve.files.store import SUFFIXES, Files, StoredFile, new_file_id
from serve.settings import Limits

BLOCK, LEAST_BLOCK = 1 << 20, 64 << 10
"""Bytes of a file that are written at a time: fewer where there are many uploads."""
WAITING_BYTES = 16 << 20
"""Of all uploads together so many wait to be written, or :data:`LEAST_BLOCK` of each."""
FIELD_BYTES = 4096
MOST_FIELDS = 32
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data")
"""OpenAI's purposes of uploads that its file objects may have. All are kept; batches are made of those for batches."""
SHORTEST_S, LONGEST_S = 3600, 2_592_000
_WHOLE_NUMBER = re.compile(r"[0-9]{1,10}")
_UNSAFE = re.compile(r"[^\w .()+,=@-]")


@dataclass(slots=True)
class _Part:
    """A part of the form under way."""

    name: str = ""
    filename: str | None = None
    header: bytes = b""
    value: bytes = b""
    disposition: bytes = b""


class Form:
    """A form as it comes: small fields are kept, the blocks of its file wait to be written."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.ended = False
        self._blocks: list[bytes] = []
        self.waiting = 0
        """Bytes of the file that wait to be written."""
        self._part = _Part()
        self._parts = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._header_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take in what has come.

        Raises:
            ApiError: it is no form.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def blocks(self) -> list[bytes]:
        """What came of the file since the last call."""
        taken, self._blocks, self.waiting = self._blocks, [], 0
        return taken

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_FIELDS:
            raise _malformed(f"it has more than {MOST_FIELDS} fields")
        self._part = _Part()

    def _header_begin(self) -> None:
        self._part.header = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._part.header.lower() == b"content-disposition":
            self._part.disposition += data[start:end]

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part.name == "file":
            if self.filename is not None:
                raise _malformed("it has two files")
            self.filename = _safe_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self._blocks.append(data[start:end])
            self.waiting += end - start
            return
        self._part.value += data[start:end]
        if len(self._part.value) > FIELD_BYTES:
            raise _malformed(f"its field '{self._part.name[:40]}' is too long")

    def _part_end(self) -> None:
        if self._part.name != "file":
            self.fields[self._part.name[:80]] = self._part.value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


def _malformed(why: str) -> ApiError:
    return ApiError(400, f"The request is no form that can be read: {why}.", code="invalid_multipart")


def _safe_name(name: str) -> str:
    """The file's own name, without what may be a path or steer a terminal."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return _UNSAFE.sub("_", last)[-200:].strip(" .") or "upload.jsonl"


def boundary_of(content_type: str) -> bytes:
    """The boundary that a form's Content-Type names.

    Raises:
        ApiError: it is no form.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise ApiError(
            400,
            "Files are uploaded as multipart/form-data with the fields 'purpose' and 'file'.",
            code="invalid_content_type",
        )
    return boundary


class Uploads:
    """Takes files in, any number at a time. Thread: the event loop's."""

    def __init__(self, files: Files, limits: Limits) -> None:
        self._files, self._limits = files, limits
        self._running = 0

    async def receive(self, body: AsyncIterator[bytes], form: Form, owner: str, now: float) -> StoredFile:
        """Take a file in, and keep it.

        Raises:
            ApiError: the form or the file is no good, or there is no place for it; nothing is kept.
        """
        file_id = new_file_id()
        part = self._files.part(file_id)
        self._running += 1
        try:
            size, lines = await self._written(body, form, part)
            file = _described(form, file_id, size, lines, owner, now)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise unstored(error) from None
            raise
        finally:
            self._running -= 1
        try:
            await asyncio.to_thread(self._files.add, file)
        except OSError as error:
            raise unstored(error) from None
        return file

    async def _written(self, body: AsyncIterator[bytes], form: Form, part: Path) -> tuple[int, int]:
        """Write the file of a form to disk while it comes; its bytes and lines."""
        size = newlines = 0
        last = b"\n"
        with await asyncio.to_thread(_opened, part) as out:
            async for data in body:
                form.feed(data)
                if form.waiting >= max(LEAST_BLOCK, min(BLOCK, WAITING_BYTES // self._running)):
                    size, newlines, last = await _write(out, form, size, newlines, last)
                    _check_size(size, newlines, form, self._limits)
            size, newlines, last = await _write(out, form, size, newlines, last)
            await asyncio.to_thread(os.fsync, out)
        lines = newlines + (last != b"\n")
        _check_size(size, lines, form, self._limits)
        return size, lines


def _opened(part: Path) -> BinaryIO:
    return open(part, "xb", buffering=0, opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def _write(out: BinaryIO, form: Form, size: int, newlines: int, last: bytes) -> tuple[int, int, bytes]:
    data = b"".join(form.blocks())
    if not data:
        return size, newlines, last

    def write() -> int:
        view = memoryview(data)
        while view:
            view = view[out.write(view) :]
        return data.count(b"\n")

    return size + len(data), newlines + await asyncio.to_thread(write), data[-1:]


def _compressed(name: str | None) -> bool:
    return (name or "").lower().endswith(SUFFIXES)


def _check_size(size: int, lines: int, form: Form, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise ApiError(
            413,
            f"The file is larger than {limits.file_bytes // 2**20} MiB, the most that is taken: split it.",
            code="file_too_large",
            param="file",
        )
    if lines > limits.file_lines and not _compressed(form.filename):
        raise ApiError(
            400,
            f"The file has more than {limits.file_lines:,} lines, the most that are taken: split it.",
            code="too_many_lines",
            param="file",
        )


def _described(form: Form, file_id: str, size: int, lines: int, owner: str, now: float) -> StoredFile:
    """The upload as it is kept, once all of the form is there."""
    if not form.ended:
        raise _malformed("it ends before its closing boundary")
    if form.filename is None:
        raise ApiError(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise ApiError(
            400, "Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if purpose not in PURPOSES:
        raise ApiError(
            400,
            f"Invalid value: '{purpose[:40]}'. Supported values are: {', '.join(map(repr, PURPOSES))}.",
            code="invalid_value",
            param="purpose",
        )
    if size == 0:
        raise ApiError(400, "The file is empty.", code="empty_file", param="file")
    expires_at = _expires_at(form.fields, now)
    return StoredFile(
        file_id, form.filename, size, now, purpose, owner, 0 if _compressed(form.filename) else lines, expires_at
    )


def _expires_after(fields: dict[str, str]) -> tuple[str | None, str | None]:
    """The anchor and the seconds of a form: of two fields, or of one in JSON, as forms may hold objects."""
    if (whole := fields.get("expires_after")) is None:
        return fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    try:
        given = orjson.loads(whole)
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise ApiError(
            400,
            "Invalid type for 'expires_after': expected an object.",
            code="invalid_type",
            param="expires_after",
        )
    return str(given.get("anchor")), str(given.get("seconds"))


def _expires_at(fields: dict[str, str], now: float) -> float | None:
    anchor, seconds = _expires_after(fields)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError(
            400,
            "Invalid value for 'expires_after.anchor'. Supported values are: 'created_at'.",
            code="invalid_value",
            param="expires_after.anchor",
        )
    number = int(seconds) if seconds is not None and _WHOLE_NUMBER.fullmatch(seconds) else 0
    if not SHORTEST_S <= number <= LONGEST_S:
        raise ApiError(
            400,
            f"Invalid value for 'expires_after.seconds': expected a number from {SHORTEST_S} to {LONGEST_S}.",
            code="invalid_value",
            param="expires_after.seconds",
        )
    return now + number
