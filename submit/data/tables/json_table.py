"""Tables of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from jobs.errors import LineError
from jobs.lines.values import json_kind
from submit.data.tables.table import MOST_COLUMNS, Row, digest_of_files
from submit.input.reader import PromptFile


class JsonLines:
    """Rows of files with one object on each line; ``.gz`` and ``.zst`` are unpacked."""

    columns: tuple[str, ...] | None = None
    types: bytes | None = None

    def __init__(self, paths: Sequence[str], name: str) -> None:
        self.name = name
        self._paths = list(paths)
        self._before = 0
        self._file: PromptFile | None = None
        self.size = total_size(self._paths)

    @property
    def bytes_read(self) -> int:
        return self._before + (self._file.bytes_read if self._file is not None else 0)

    def rows(self) -> Iterator[Row]:
        self._before = first = 0
        for path in self._paths:
            number = 0
            with PromptFile(path) as self._file:
                for number, raw in self._file:
                    yield first + number, parsed_row(raw)
            self._before += self._file.bytes_read
            self._file = None
            first += number

    def digest(self) -> str:
        return digest_of_files(self._paths)

    def close(self) -> None:
        """Nothing stays open."""


def parsed_row(raw: bytes | LineError) -> dict[str, Any] | LineError:
    """The row of a line of JSON, or what is wrong with it."""
    if isinstance(raw, LineError):
        return raw
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return LineError("invalid_json_line", None, f"not valid JSON: {error.msg} at column {error.colno}")
    return checked_row(row)


def checked_row(row: Any) -> dict[str, Any] | LineError:
    """A value as a row, or what is wrong with it."""
    if not isinstance(row, dict):
        return LineError("invalid_type", None, f"must be a JSON object, not {json_kind(row)}")
    if len(row) > MOST_COLUMNS:
        return LineError("out_of_range", None, f"has {len(row):,} columns; at most {MOST_COLUMNS:,} are taken")
    return row


def total_size(paths: Sequence[str]) -> int | None:
    """Bytes of files; None where a size is not known."""
    from pathlib import Path

    try:
        return sum(Path(path).stat().st_size for path in paths)
    except OSError:
        return None
