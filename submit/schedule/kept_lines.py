"""Lines that were made of rows, as a schedule keeps them: each with its number, and what makes none with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from jobs.errors import LineError, RefusedError
from submit.input.reader import Line, PromptFile
from submit.schedule.model import REMEDY

WRONG = b"!"
"""What stands before the reason, and before no line."""


class _Wrong(msgspec.Struct, frozen=True):
    """What is wrong with a row."""

    code: str
    field: str | None
    message: str
    line_id: str | None = None
    metadata: dict[str, Any] = {}


def kept_lines(lines: Iterable[Line]) -> Iterator[bytes]:
    """The lines as bytes, for :class:`KeptLines`."""
    for number, raw in lines:
        yield b"%d %b\n" % (number, _wrong(raw) if isinstance(raw, LineError) else raw)


def _wrong(error: LineError) -> bytes:
    found = [_Wrong(each.code, each.field, each.message, each.line_id, each.metadata) for each in (error, *error.also)]
    return WRONG + msgspec.json.encode(found)


class KeptLines:
    """The same lines again, of a ``file`` of what :func:`kept_lines` gave.

    Raises:
        RefusedError: while they are read, the file holds something else.
    """

    def __init__(self, file: PromptFile, dataset: Mapping[str, Any]) -> None:
        self.name, self.dataset = file.name, dataset
        self._file = file

    @property
    def bytes_read(self) -> int:
        return self._file.bytes_read

    @property
    def digest(self) -> str:
        return self._file.digest

    def notes(self) -> list[str]:
        """Nothing: they were said when the schedule was made."""
        return []

    def __iter__(self) -> Iterator[Line]:
        rest: list[bytes] = []
        for block in self._file.blocks():
            first, *lines = block.split(b"\n")
            rest.append(first)
            for line in lines:
                yield self._line(b"".join(rest))
                rest = [line]

    def _line(self, kept: bytes) -> Line:
        number, _, raw = kept.partition(b" ")
        try:
            return int(number), _error(raw.removeprefix(WRONG)) if raw.startswith(WRONG) else raw
        except ValueError as error:
            raise RefusedError(f"what Redis keeps of {self.name} is damaged ({error!s:.100}): {REMEDY}") from None


def _error(raw: bytes) -> LineError:
    errors = []
    for each in msgspec.json.decode(raw, type=list[_Wrong]):
        error = LineError(each.code, each.field, each.message, line_id=each.line_id)
        error.metadata = each.metadata
        errors.append(error)
    if not errors:
        raise ValueError("nothing is wrong with a row that makes no line")
    errors[0].also = tuple(errors[1:])
    return errors[0]
