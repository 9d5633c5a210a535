"""Tables of CSV: cells are texts as they stand; dialect and encoding are found, or told."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.errors import LineError, RefusedError
from jobs.lines.line import MAX_LINE_BYTES
from submit.data.tables.json_table import JsonLines
from submit.data.tables.table import MOST_COLUMNS, Row
from submit.input.reader import PromptFile
from submit.status.text import plural

DELIMITERS = (",", "\t", ";", "|")
LOOKED_AT_ROWS = 20
START_BYTES = 1 << 20
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class CsvTable(JsonLines):
    """Rows of files that begin each with the same head of column names.

    Raises:
        RefusedError: a head is none, or an encoding or a delimiter does not exist.
    """

    of_texts = True
    """Its cells are all text: those of fields that are none are read as JSON."""

    def __init__(self, paths: Sequence[str], name: str, delimiter: str | None, encoding: str | None) -> None:
        super().__init__(paths, name)
        if delimiter is not None:
            delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
            if len(delimiter) != 1 or delimiter in '"\r\n':
                raise RefusedError(f"--delimiter is one character, not {delimiter!r:.40}")
        self._delimiter, self._encoding = delimiter, _known(encoding)
        csv.field_size_limit(MAX_LINE_BYTES)  # of the module: a cell may be as long as a line
        self.columns = self._head(self._paths[0])

    def _head(self, path: str) -> tuple[str, ...]:
        for _, cells in self._cells(path):
            return _names(cells, path)
        raise RefusedError(f"{path}: is empty: CSV begins with the names of its columns")

    def rows(self) -> Iterator[Row]:
        self._before = number = 0
        assert self.columns is not None
        for path in self._paths:
            lines = self._cells(path)
            head = _names(next(lines, (0, []))[1], path)
            if head != self.columns:
                raise RefusedError(
                    f"{path}: has the columns {', '.join(head):.200}, and {self._paths[0]} has "
                    f"{', '.join(self.columns):.200}"
                )
            for _, cells in lines:
                number += 1
                yield number, self._row(cells)
            self._before += self._file.bytes_read if self._file is not None else 0
            self._file = None

    def _row(self, cells: list[str]) -> dict[str, Any] | LineError:
        columns = self.columns or ()
        if len(cells) == len(columns):
            return dict(zip(columns, cells, strict=True))
        has, head = plural(len(cells), "cell"), plural(len(columns), "column")
        remedy = "is the delimiter another one (--delimiter), or a quote not closed?"
        return LineError("invalid_type", None, f"has {has}, and the head {head}; {remedy}")

    def _cells(self, path: str) -> Iterator[tuple[int, list[str]]]:
        """The line and the cells of each row that is not blank, the head among them."""
        with PromptFile(path) as self._file:
            blocks = self._file.blocks()
            start = b""
            while len(start) < START_BYTES and (block := next(blocks, None)) is not None:
                start += block
            encoding = self._encoding or _found(start, path)
            raw = io.BufferedReader(_Bytes(start, blocks), START_BYTES)
            text = io.TextIOWrapper(raw, encoding=encoding, newline="")
            delimiter = self._delimiter or _sniffed(start.decode(encoding, "replace"))
            reader = csv.reader(_bounded(text, path), delimiter=delimiter, strict=False)
            try:
                for cells in reader:
                    if cells:
                        yield reader.line_num, cells
            except UnicodeDecodeError as error:
                raise RefusedError(
                    f"{path}: near line {reader.line_num + 1} is a byte {error.object[error.start]:#04x} that is not "
                    f"{encoding}; say what it is, such as --encoding cp1252 (Western Europe) or latin-1"
                ) from None
            except csv.Error as error:
                raise RefusedError(f"{path}: line {reader.line_num}: is no CSV: {error}") from None


def _known(encoding: str | None) -> str | None:
    if encoding is None:
        return None
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise RefusedError(f"--encoding: there is no encoding '{encoding:.40}'; cp1252 and latin-1 are usual") from None


def _found(start: bytes, path: str) -> str:
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    if marked is not None:
        return marked
    if b"\0" in start[:4096]:
        zeros = start[:4096]
        if zeros[1::2].count(0) > len(zeros) // 4:
            return "utf-16-le"
        if zeros[::2].count(0) > len(zeros) // 4:
            return "utf-16-be"
        raise RefusedError(f"{path}: is no text: it has zero bytes")
    return "utf-8"


def _sniffed(start: str) -> str:
    """The delimiter by which the first rows have the same number of cells, and the most of them."""
    lines = start.splitlines(keepends=True)
    if len(lines) > 1 and len(start) >= START_BYTES // 2:
        lines.pop()  # it may be cut
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            rows = [row for row, _ in zip(csv.reader(lines, delimiter=delimiter), range(LOOKED_AT_ROWS), strict=False)]
        except csv.Error:
            continue
        counts = {len(row) for row in rows if row}
        if len(counts) == 1 and (count := counts.pop()) > most:
            best, most = delimiter, count
    return best


def _names(cells: list[str], path: str) -> tuple[str, ...]:
    """The columns of a head: one without a name, as an index is written, is ``unnamed_1``."""
    if len(cells) > MOST_COLUMNS:
        raise RefusedError(f"{path}: has {len(cells):,} columns; at most {MOST_COLUMNS:,} are taken")
    names = tuple(cell.strip() or f"unnamed_{number}" for number, cell in enumerate(cells, 1))
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise RefusedError(f"{path}: has two columns '{twice:.80}'; columns have names of their own")
    return names


def _bounded(text: io.TextIOWrapper, path: str) -> Iterator[str]:
    """The lines of a text, none of them longer than a line of prompts may be."""
    while line := text.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise RefusedError(f"{path}: has a line of more than {MAX_LINE_BYTES} characters")
        if "\0" in line:
            raise RefusedError(f"{path}: is no text: it has zero bytes")
        yield line


class _Bytes(io.RawIOBase):
    """A stream of bytes that were read in blocks."""

    def __init__(self, start: bytes, blocks: Iterator[bytes]) -> None:
        self._ready, self._blocks = memoryview(start), blocks

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        view = memoryview(buffer)
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
