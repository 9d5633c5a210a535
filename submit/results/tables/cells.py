"""A record as cells: the columns of its row, kept as the line's metadata, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from jobs.record_head import ChoiceHead, ErrorHead, RecordHead, SamplingHead

RESULT = (
    "completion", "reasoning", "stop_reason", "prompt_tokens", "completion_tokens", "seed", "model", "valid",
    "tool_calls", "score", "error", "id",
)  # fmt: skip
"""The columns beside those of the row, in this order."""
JUDGED = ("passed", "tries")
"""Those of a batch whose texts are judged."""
NO_TOKENS = NO_LISTS = (None, None)
CHOICE = "choice"
"""That of a batch whose lines have several texts: a row for each."""
LISTS = ("logprobs", "prompt_logprobs")
"""Those of a batch that has log-probabilities of tokens: an entry for each token."""
_NONE = msgspec.Raw(b"null")


class _Usage(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Sampling(SamplingHead, frozen=True, gc=False):
    seed: int | None = None


class _Error(ErrorHead, frozen=True, gc=False):
    message: str = ""


class _Choice(ChoiceHead, frozen=True, gc=False):
    tool_calls: list[dict[str, Any]] | None = None  # type: ignore[assignment]
    score: dict[str, Any] | None = None
    logprobs: msgspec.Raw = _NONE
    prompt_logprobs: msgspec.Raw = _NONE

    @property
    def lists(self) -> tuple[Any, Any]:
        """The values of LISTS."""
        return _read(self.logprobs), _read(self.prompt_logprobs)


class TableRecord(RecordHead, frozen=True, gc=False):
    """Of a record what tables hold, and its head; all else is passed over."""

    model: str | None = None
    model_revision: str | None = None
    tool_calls: list[dict[str, Any]] | None = None  # type: ignore[assignment]
    score: dict[str, Any] | None = None
    logprobs: msgspec.Raw = _NONE
    prompt_logprobs: msgspec.Raw = _NONE
    choices: list[_Choice] | None = None  # type: ignore[assignment]
    usage: _Usage = _Usage()
    sampling: _Sampling | None = None
    error: _Error | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def lists(self) -> tuple[Any, Any]:
        """The values of LISTS, where the line has one text."""
        return _read(self.logprobs), _read(self.prompt_logprobs)

    @property
    def listed(self) -> tuple[str, ...]:
        """Those of LISTS that it has."""
        having: list[Any] = [self] if self.choices is None else list(self.choices)
        return tuple(name for name in LISTS if any(getattr(one, name) != _NONE for one in having))


def _read(raw: msgspec.Raw) -> Any:
    return None if raw == _NONE else orjson.loads(memoryview(raw))


_DECODER = msgspec.json.Decoder(TableRecord)
read_record = _DECODER.decode
"""The :class:`TableRecord` of a record's bytes."""


def result_cells(record: TableRecord) -> list[tuple[Any, ...]]:
    """What came of a line, a tuple for each of its texts: the columns of RESULT, of JUDGED, CHOICE and of LISTS.

    Tokens are those of the line as a whole, and stand with its first text.
    """
    if record.error is not None:
        error = f"{record.error.code}: {record.error.message}"
        return [
            (
                None,
                None,
                None,
                None,
                None,
                None,
                record.model,
                None,
                None,
                None,
                error,
                record.id,
                None,
                None,
                None,
                *NO_LISTS,
            )
        ]
    usage, seed = record.usage, None if record.sampling is None else record.sampling.seed
    passed, tries = (None, None) if record.judged is None else (record.judged.passed, record.judged.tries)
    tokens = (usage.prompt_tokens, usage.completion_tokens)
    choices: list[Any] = [record] if record.choices is None else list(record.choices)
    return [
        (
            choice.text, choice.reasoning, choice.stop_reason, *(NO_TOKENS if number else tokens), seed, record.model,
            choice.valid, choice.tool_calls, choice.score, None, record.id, passed, tries, number, *choice.lists,
        )
        for number, choice in enumerate(choices)
    ]  # fmt: skip


ALL = (*RESULT, *JUDGED, CHOICE, *LISTS)
"""The names of what :func:`result_cells` gives."""


def result_columns(records: Sequence[TableRecord]) -> list[Sequence[Any]]:
    """The same of many lines, by columns. Where each has one text, which is usual, no row is made."""
    if any(record.choices is not None or record.error is not None for record in records):
        return list(zip(*[cells for record in records for cells in result_cells(record)], strict=True))
    usage, judged = [record.usage for record in records], [record.judged for record in records]
    lists = [record.lists for record in records]
    return [
        [record.text for record in records],
        [record.reasoning for record in records],
        [record.stop_reason for record in records],
        [each.prompt_tokens for each in usage],
        [each.completion_tokens for each in usage],
        [None if record.sampling is None else record.sampling.seed for record in records],
        [record.model for record in records],
        [record.valid for record in records],
        [record.tool_calls for record in records],
        [record.score for record in records],
        [None] * len(records),
        [record.id for record in records],
        [None if each is None else each.passed for each in judged],
        [None if each is None else each.tries for each in judged],
        [0] * len(records),
        [logprobs for logprobs, _ in lists],
        [prompt for _, prompt in lists],
    ]


def row_cells(record: TableRecord) -> dict[str, Any]:
    """The columns of the row that a line was made of."""
    cells: dict[str, Any] = orjson.loads(memoryview(record.metadata))
    return cells


def rows_cells(records: Iterable[TableRecord]) -> list[dict[str, Any]]:
    """The same of many lines, read in one go."""
    cells: list[dict[str, Any]] = orjson.loads(b"[%b]" % b",".join([record.metadata for record in records]))
    return cells


def json_cells(text: str | None) -> dict[str, Any]:
    """What a text says that is a JSON object; nothing of another."""
    if text is None or not text.lstrip().startswith("{"):
        return {}
    try:
        cells = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return cells if isinstance(cells, dict) else {}


def json_names(keys: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """The columns of the keys of texts, and their names in a table."""
    used, names = set(taken), dict[str, str]()
    for key in keys:
        name = key
        while name in used:
            name = f"json_{name}"
        names[key] = name
        used.add(name)
    return names


def result_names(
    columns: Mapping[str, Any] | frozenset[str], *, judged: bool, choices: bool, lists: Iterable[str] = ()
) -> dict[str, str]:
    """The columns of results that a table has, and their names in it: a row's own column keeps its name."""
    names = (*RESULT, *(JUDGED if judged else ()), *((CHOICE,) if choices else ()), *lists)
    return {name: _free(name, columns) for name in names if not (name == "id" and "id" in columns)}


def _free(name: str, taken: Mapping[str, Any] | frozenset[str]) -> str:
    while name in taken:
        name = f"result_{name}"
    return name
