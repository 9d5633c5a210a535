"""Tables of files that are one JSON array of objects, read piece by piece."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.errors import LineError, RefusedError
from jobs.lines.line import MAX_LINE_BYTES
from submit.data.tables.json_table import JsonLines, checked_row
from submit.data.tables.table import Row
from submit.input.reader import PromptFile

SPACE = re.compile(r"[ \t\r\n]*")


class JsonArrays(JsonLines):
    """Rows of files that are each one array; a file that is none is read as lines of JSON."""

    def __init__(self, paths: Sequence[str], name: str) -> None:
        super().__init__(paths, name)

    def rows(self) -> Iterator[Row]:
        self._before = number = 0
        for path in self._paths:
            with PromptFile(path) as self._file:
                for value in _elements(self._file, path):
                    number += 1
                    yield number, value if isinstance(value, LineError) else checked_row(value)
            self._before += self._file.bytes_read
            self._file = None


def _elements(file: PromptFile, path: str) -> Iterator[Any]:
    """The elements of a file's array.

    Raises:
        RefusedError: it is none, or is damaged.
    """
    text = _Text(file, path)
    text.skip_space()
    if not text.take("["):
        raise RefusedError(f"{path}: is no JSON array of objects; for one object a line give --input-format jsonl")
    text.skip_space()
    if text.take("]"):
        return
    number = 0
    while True:
        number += 1
        yield text.value(number)
        text.skip_space()
        if text.take("]"):
            return
        if not text.take(","):
            raise RefusedError(f"{path}: is not valid JSON after row {number}: a comma or ] belongs there")
        text.skip_space()


class _Text:
    """What was read of a file and not yet taken."""

    def __init__(self, file: PromptFile, path: str) -> None:
        self._blocks = file.blocks()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._path = path
        self._text, self._at = "", 0
        self._json = json.JSONDecoder(parse_constant=_no_constant)
        self._more()
        self._text = self._text.removeprefix("\ufeff")

    def _more(self) -> bool:
        block = next(self._blocks, None)
        try:
            new = self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError:
            raise RefusedError(f"{self._path}: is not UTF-8; save it as UTF-8") from None
        self._text, self._at = self._text[self._at :] + new, 0
        return block is not None

    def skip_space(self) -> None:
        skipped = 0
        while True:
            end = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            skipped += end - self._at
            self._at = end
            if skipped > MAX_LINE_BYTES:
                raise RefusedError(
                    f"{self._path}: is not valid JSON: it has more than {MAX_LINE_BYTES} spaces in a row"
                )
            if self._at < len(self._text) or not self._more():
                return

    def take(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False

    def value(self, number: int) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_LINE_BYTES:
                    raise RefusedError(
                        f"{self._path}: row {number} is not valid JSON, or has more than {MAX_LINE_BYTES} bytes"
                    ) from None
                if not self._more():
                    raise RefusedError(f"{self._path}: row {number} is not valid JSON: {error.msg}") from None
                continue
            except RecursionError:
                raise RefusedError(f"{self._path}: row {number} is nested too deeply") from None
            except ValueError as error:
                raise RefusedError(f"{self._path}: row {number} is not valid JSON: {error!s:.48}") from None
            if end == len(self._text) and self._more():
                continue  # a number may go on
            self._at = end
            return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")
