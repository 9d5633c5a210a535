"""What a record says in a few words, read without its texts and log-probabilities: those may be very long."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import orjson

__all__ = ["RecordHead", "head_of", "whole"]

LONG = 1 << 20


class ErrorHead(msgspec.Struct, frozen=True):
    """Why a line failed."""

    code: str = ""


class ChoiceHead(msgspec.Struct, frozen=True):
    """How one of several completions ended."""

    stop_reason: str


class RecordHead(msgspec.Struct, frozen=True):
    """A record's short fields; all others are passed over, and take no memory."""

    index: int
    id: str = ""
    batch_id: str = ""
    attempt: int = 0
    error: ErrorHead | None = None
    stop_reason: str | None = None
    choices: list[ChoiceHead] | None = None

    @property
    def stop_reasons(self) -> list[str]:
        """How each completion ended; empty for a line that failed."""
        if self.choices:
            return [choice.stop_reason for choice in self.choices]
        return [] if self.stop_reason is None else [self.stop_reason]


def head_of(record: bytes) -> RecordHead:
    """The short fields of a record.

    Raises:
        ValueError: it is no record.
    """
    try:
        return msgspec.json.decode(record, type=RecordHead)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def whole(record: bytes) -> dict[str, Any]:
    """All fields of a record.

    Raises:
        ValueError: it is no record.
    """
    # orjson is the faster one, and needs twelve times the record's size besides while it reads.
    read = orjson.loads if len(record) < LONG else msgspec.json.decode
    return cast("dict[str, Any]", read(record))
