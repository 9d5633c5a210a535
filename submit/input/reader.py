"""Reading prompts: the lines of a file, of standard input or of Python objects, one at a time, as bytes.

Both readers yield (line number, line): numbers are 1-based and count blank lines too, which are skipped; a
line is its bytes without the newline and outer whitespace, or the :class:`LineError` that says why there are
none. Memory does not grow with the file, nor with a line that is too long.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson
import zstandard

from jobs.errors import LineError, RefusedError
from jobs.lines.line import MAX_LINE_BYTES
from jobs.lines.line_id import LOOKED_AT, id_in, readable_id
from submit.input.foreign_files import START_BYTES, START_LINES, magic_of, shape_of
from submit.status.text import memory_size

Line = tuple[int, bytes | LineError]

BLOCK = 1 << 20
ZSTD_SLICE = 1 << 12
"""Bytes of a .zst file unpacked at a time: a hostile frame blows each up to 128 MiB at the most."""
LONGEST = MAX_LINE_BYTES + len(b"\r\n")
STDIN = 0

BOM = b"\xef\xbb\xbf"


class PromptFile:
    """The lines of ``path``: a file, plain, ``.gz`` or ``.zst`` by its suffix, or ``-`` for standard input.

    A context manager, to be iterated over once.

    Raises:
        RefusedError: it cannot be opened, or, while it is read, cannot be unpacked, has more than ``most_bytes`` then
            or is not UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str], *, stdin: int = STDIN, most_bytes: int | None = None) -> None:
        given = os.fspath(path)
        # A name that is no text, as file systems allow, is shown and stored as well as text can.
        self.name = "standard input" if given == "-" else os.fsencode(given).decode("utf-8", "replace")
        self.dataset: Mapping[str, Any] = {}
        self.bytes_read = 0
        """Bytes of the file as it lies on disk, so far."""
        self._begin = b""
        """Of the first line that is too long."""
        self._hash = hashlib.blake2b(digest_size=16)
        self._most_bytes, self._unpacked_bytes = most_bytes, 0
        with self._explained():
            self._file = io.FileIO(stdin, closefd=False) if given == "-" else io.FileIO(given)
        status = os.fstat(self._file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        """Bytes of the file as it lies on disk; None where that is not known."""
        counted = io.BufferedReader(_Tap(self._file, self._count), BLOCK)
        self._content = io.BufferedReader(_Tap(_unpacked(given, counted), self._unpacked), BLOCK)

    def __enter__(self) -> PromptFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._content.close()
        self._file.close()

    @property
    def digest(self) -> str:
        """Names the content; complete after the last line."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Line]:
        with self._explained():
            lines = self._lines()
            for first in lines:
                ahead = [first] if _is_object(first[1]) else self._looked_at(first, lines)
                yield from ahead
                break
            yield from lines

    def _lines(self) -> Iterator[Line]:
        number = 0
        while raw := self._content.readline(LONGEST):
            number += 1
            if number == 1:
                raw = self._start(raw)
            if len(raw) >= LONGEST and not raw.endswith(b"\n"):
                yield number, self._too_long(raw)
            elif raw := raw.strip():
                yield number, raw

    def _looked_at(self, first: Line, lines: Iterator[Line]) -> list[Line]:
        """The first lines of a file that does not begin with an object.

        Raises:
            RefusedError: it holds no lines of JSON, but something else that is known.
        """
        ahead, size = [first], 0
        for line in lines:
            ahead.append(line)
            size += len(line[1]) if isinstance(line[1], bytes) else 0
            if size > START_BYTES or len(ahead) > START_LINES:
                break
        else:
            size = -1
        start = [raw for _, raw in ahead if isinstance(raw, bytes)]
        if isinstance(first[1], LineError):
            start = [self._begin, *start]
        shape = shape_of(start, whole=size < 0)
        if shape is not None:
            raise RefusedError(f"{self.name} {shape}")
        return ahead

    def notes(self) -> list[str]:
        """Nothing: lines are taken as they stand."""
        return []

    def blocks(self) -> Iterator[bytes]:
        """The content as it stands, unpacked, in place of its lines."""
        with self._explained():
            while block := self._content.read(BLOCK):
                yield block

    def _start(self, raw: bytes) -> bytes:
        if (message := magic_of(raw)) is not None:
            raise RefusedError(f"{self.name} {message}")
        return raw.removeprefix(BOM)

    def _too_long(self, begin: bytes) -> LineError:
        """Skip the rest of a line of which so much is read."""
        self._begin = self._begin or begin[:LOOKED_AT]
        size = len(begin)
        while piece := self._content.readline(BLOCK):
            size += len(piece)
            if piece.endswith(b"\n"):
                size -= 1
                break
        message = f"the line has {size} bytes; at most {MAX_LINE_BYTES} are taken: split it"
        return LineError("out_of_range", None, message, line_id=readable_id(begin[:LOOKED_AT]))

    def _count(self, block: memoryview) -> None:
        self.bytes_read += len(block)

    def _unpacked(self, block: memoryview) -> None:
        self._hash.update(block)
        self._unpacked_bytes += len(block)
        if self._most_bytes is not None and self._unpacked_bytes > self._most_bytes:
            most = memory_size(self._most_bytes)
            raise RefusedError(
                f"{self.name} has more than {most} when it is unpacked, the most that is taken: split it"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise RefusedError(f"{self.name}: cannot be unpacked: {error}; the file is damaged or incomplete") from None
        except OSError as error:
            raise RefusedError(f"{self.name}: cannot be read: {error.strerror or error}") from None
        except ValueError as error:  # what open() makes of a NUL in a path
            raise RefusedError(f"{self.name!r}: cannot be read: {error}") from None


def digest_of(path: str | os.PathLike[str]) -> str:
    """The digest that submitting ``path`` would give its batch: of the content, unpacked.

    Raises:
        RefusedError: it cannot be read.
    """
    with PromptFile(path) as prompts:
        for _ in prompts.blocks():
            pass
        return prompts.digest


class PromptObjects:
    """Lines made of Python dicts: what cannot be written as JSON becomes a problem of its line."""

    def __init__(self, items: Iterable[Any], name: str = "the prompts given") -> None:
        self.name = name
        self.dataset: Mapping[str, Any] = {}
        self.bytes_read = 0
        self._items = items
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Line]:
        for number, item in enumerate(self._items, 1):
            try:
                raw = _encoded(item)
            except LineError as error:
                yield number, error
                continue
            self._hash.update(raw)
            self._hash.update(b"\n")
            self.bytes_read += len(raw) + 1
            yield number, raw

    def notes(self) -> list[str]:
        """Nothing: lines are taken as they stand."""
        return []


class Prompts(Protocol):
    """What is submitted: lines to iterate over once, with a name for messages, as those of :class:`PromptFile`.

    ``dataset`` is what a batch remembers of the table that they were made of; empty where there was none.
    """

    name: str

    @property
    def bytes_read(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def dataset(self) -> Mapping[str, Any]: ...

    def notes(self) -> list[str]:
        """What to say of them once they are read."""
        ...

    def __iter__(self) -> Iterator[Line]: ...


@contextlib.contextmanager
def open_prompts(given: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> Iterator[Prompts]:
    """The prompts of a path, or those given as dicts.

    Raises:
        RefusedError: the file cannot be opened, or what is given is neither.
    """
    if isinstance(given, str | os.PathLike):
        with PromptFile(given) as prompts:
            yield prompts
    elif isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise RefusedError(f"prompts are a path or an iterable of dicts, not one {type(given).__name__}")
    else:
        yield PromptObjects(given)


def _encoded(item: Any) -> bytes:
    if not isinstance(item, Mapping):
        raise LineError("invalid_type", None, f"must be a dict, not {type(item).__name__}")
    item = item if isinstance(item, dict) else dict(item)
    body = item.get("body")
    for fields in (item, body) if isinstance(body, dict) else (item,):
        for name, value in fields.items():
            # orjson writes null for these, and null means absent: the value would be dropped without a word.
            if isinstance(value, float) and not math.isfinite(value):
                message = f"must be a finite number, not {value}"
                raise LineError("out_of_range", str(name), message, line_id=id_in(item))
    try:
        return orjson.dumps(item, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        message = f"cannot be written as JSON: {error}"
        raise LineError("invalid_type", None, message, line_id=id_in(item)) from None


def _is_object(line: bytes | LineError) -> bool:
    try:
        return isinstance(line, bytes) and isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _unpacked(path: str, file: io.BufferedIOBase) -> io.BufferedIOBase | io.RawIOBase:
    suffix = Path(path).suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    return _ZstdContent(file) if suffix == ".zst" else file


class _Tap(io.RawIOBase):
    """Bytes on their way from ``inner``, each block shown to ``seen``."""

    def __init__(self, inner: Any, seen: Callable[[memoryview], object]) -> None:
        # Of a buffered reader what is there is taken: waiting for a full block would hold up a slow pipe.
        self._readinto = getattr(inner, "readinto1", inner.readinto)
        self._seen = seen

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count: int = self._readinto(view)
        self._seen(view[:count])
        return count


class _ZstdContent(io.RawIOBase):
    """The content of all frames of a .zst file; one that ends within a frame is an error, not an end."""

    def __init__(self, packed: io.BufferedIOBase) -> None:
        self._packed = packed
        self._unpacker = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            piece = self._packed.read(ZSTD_SLICE)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a zstd frame")
                return 0
            self._ready = memoryview(b"".join(self._unpack(piece)))
        view = memoryview(buffer)
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            frame = self._frame or self._unpacker.decompressobj()
            yield frame.decompress(piece)
            piece = frame.unused_data if frame.eof else b""
            self._frame = None if frame.eof else frame
