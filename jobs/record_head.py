"""The head of a record: all but its log-probabilities, which may be very long and are not parsed."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import orjson

LONG = 1 << 20


class ErrorHead(msgspec.Struct, frozen=True, gc=False):
    """Why a line failed."""

    code: str = ""


class CallHead(msgspec.Struct, frozen=True, gc=False):
    """A tool call: that it is there is all that a head has of it."""


class ChoiceHead(msgspec.Struct, frozen=True, gc=False):
    """A completion, but for its log-probabilities."""

    stop_reason: str
    finish_reason: str | None = None
    text: str = ""
    reasoning: str | None = None
    valid: bool | None = None
    tool_calls: list[CallHead] | None = None
    tool_call_error: str | None = None

    @property
    def blank(self) -> bool:
        """Whether it says and calls nothing."""
        return not self.tool_calls and not self.text.strip()


class JudgedHead(msgspec.Struct, frozen=True, gc=False):
    """Whether a text was as expected, and in how many tries."""

    passed: bool = True
    tries: int = 1


class SamplingHead(msgspec.Struct, frozen=True, gc=False):
    """Of the values that a line was generated with, the cap of its length."""

    max_tokens: int | None = None


class RecordHead(msgspec.Struct, frozen=True, gc=False):
    """Some of a record's fields; all others are passed over, and take no memory."""

    index: int
    id: str = ""
    batch_id: str = ""
    attempt: int = 0
    error: ErrorHead | None = None
    stop_reason: str | None = None
    finish_reason: str | None = None
    text: str = ""
    reasoning: str | None = None
    valid: bool | None = None
    tool_calls: list[CallHead] | None = None
    tool_call_error: str | None = None
    choices: list[ChoiceHead] | None = None
    sampling: SamplingHead | None = None
    judged: JudgedHead | None = None

    @property
    def unexpected(self) -> bool:
        """Whether it never was as expected."""
        return self.judged is not None and not self.judged.passed

    @property
    def completions(self) -> list[ChoiceHead]:
        """The completions of a line; none of one that failed."""
        if self.choices:
            return self.choices
        if self.stop_reason is None:
            return []
        said = (self.text, self.reasoning, self.valid, self.tool_calls, self.tool_call_error)
        return [ChoiceHead(self.stop_reason, self.finish_reason, *said)]


def head_of(record: bytes) -> RecordHead:
    """The fields of a record that are not its log-probabilities.

    Raises:
        ValueError: it is no record.
    """
    try:
        return msgspec.json.decode(record, type=RecordHead)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _Place(msgspec.Struct, frozen=True, gc=False):
    index: int


_PLACES = msgspec.json.Decoder(_Place)


def index_of(record: bytes) -> int:
    """The index of a record's line. Nothing else of the record is looked at: this is asked of each that is read.

    Raises:
        ValueError: it is no record.
    """
    try:
        return _PLACES.decode(record).index
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
