"""Checking a whole input, chunk by chunk: what ``submit`` and ``check`` have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from jobs.errors import LineError, ProblemLine
from jobs.line import MAX_ID_LENGTH, CheckedLine, Defaults, check_line, no_model
from jobs.shard import Group, ShardLine
from submit.reader import Line, Prompts
from submit.seen import SeenIds

__all__ = ["NOBODY", "BadLine", "Chunk", "GoodLine", "Problems", "checked"]

CHUNK_LINES = 1000
CHUNK_BYTES = 4 << 20
KEPT_PROBLEMS = 100_000
NO_MODEL = ("missing_field", "model")
NOBODY = Group("")
"""Of lines for which no model is named, where none is needed."""


@dataclass(frozen=True, slots=True)
class GoodLine:
    """A line that may run: its place and bytes, who is to run it, the endpoint of an OpenAI line, and whether the model
    begins a new turn after an assistant's message."""

    place: ShardLine
    group: Group
    endpoint: str | None
    after_answer: bool = False


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that may not: its 0-based index, its id as far as it has one, and what is wrong."""

    index: int
    id: str
    problem: ProblemLine


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring lines of the input, checked, each in exactly one of the lists, in order."""

    good: list[GoodLine]
    bad: list[BadLine]


class Problems:
    """All that is wrong with an input: every problem counted, the first of them kept."""

    def __init__(self) -> None:
        self.count = 0
        self.without_model = 0
        """How many of them are that no model is named."""
        self.kept: list[ProblemLine] = []

    def add(self, problems: list[ProblemLine]) -> None:
        self.count += len(problems)
        self.without_model += sum((problem.code, problem.field) == NO_MODEL for problem in problems)
        self.kept += problems[: KEPT_PROBLEMS - len(self.kept)]


def checked(prompts: Prompts, defaults: Defaults, *, need_model: bool = True) -> Iterator[Chunk]:
    """All lines of ``prompts`` against the contract; memory does not grow with their number.

    Raises:
        RefusedError: the input cannot be read.
    """
    groups = _Groups(defaults, need_model=need_model)
    index = 0
    with SeenIds() as seen:
        for lines in _chunks(prompts):
            yield _check_chunk(lines, index, groups, seen)
            index += len(lines)


def _chunks(prompts: Prompts) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    size = 0
    for line in prompts:
        chunk.append(line)
        size += len(line[1]) if isinstance(line[1], bytes) else 0
        if len(chunk) >= CHUNK_LINES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Groups:
    """Which group runs a line: one object for all lines of a model and adapter."""

    def __init__(self, defaults: Defaults, *, need_model: bool) -> None:
        self.defaults = defaults
        self._model, self._adapter = defaults.model, defaults.adapter_path
        self._need_model = need_model
        self._known: dict[tuple[str, str | None], Group] = {}

    def of(self, line: CheckedLine) -> Group:
        model = line.fields.get("model", self._model)
        if model is None:
            if self._need_model:
                raise no_model()
            return NOBODY
        adapter = line.fields.get("adapter_path", self._adapter)
        group = self._known.get((model, adapter))
        if group is None:
            group = self._known[model, adapter] = Group(model, adapter)
        return group


def _check_chunk(lines: list[Line], start: int, groups: _Groups, seen: SeenIds) -> Chunk:
    good: list[GoodLine] = []
    bad: list[BadLine] = []
    ids: list[tuple[int, str | None]] = []
    for index, (number, raw) in enumerate(lines, start):
        try:
            if isinstance(raw, LineError):
                raise raw
            line = check_line(raw)
            after = line.begins_after_answer(groups.defaults)
            good.append(GoodLine(ShardLine(index, number, raw), groups.of(line), line.endpoint, after))
            ids.append((number, line.id))
        except LineError as error:
            # Its error record carries its id, so the id is taken by this line as much as by a good one.
            name = _id_of(raw)
            ids.append((number, name))
            bad.append(BadLine(index, name or f"line-{number}", error.at(number)))
    clashes = seen.add(ids)
    return _without_clashes(good, bad, dict(ids), clashes) if clashes else Chunk(good, bad)


def _id_of(raw: bytes | LineError) -> str | None:
    """The id of a bad line, if it has one that could be a good line's."""
    try:
        data = orjson.loads(raw) if isinstance(raw, bytes) else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict):
        return None
    name = data.get("custom_id" if isinstance(data.get("body"), dict) else "id")
    usable = isinstance(name, str) and 1 <= len(name) <= MAX_ID_LENGTH and name.isprintable()
    return name if usable else None


def _without_clashes(
    good: list[GoodLine], bad: list[BadLine], ids: dict[int, str | None], clashes: dict[int, int]
) -> Chunk:
    """The chunk with lines whose id was used before among the bad ones; a line has one problem at most."""
    for line in good:
        number = line.place.line
        if number in clashes:
            name = ids[number] or f"line-{number}"
            field = "id" if line.endpoint is None else "custom_id"
            message = f"'{name}' is the id of line {clashes[number]} already; ids are unique in a file"
            bad.append(BadLine(line.place.index, name, ProblemLine(number, "duplicate_custom_id", field, message)))
    kept = [line for line in good if line.place.line not in clashes]
    return Chunk(kept, sorted(bad, key=lambda line: line.index))
