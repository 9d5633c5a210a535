"""Checking a whole input, chunk by chunk: what ``submit`` and ``check`` have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import orjson

from jobs.errors import LineError, ProblemLine, RefusedError
from jobs.expectations.expect import check_columns
from jobs.guided.check import Checker
from jobs.lines.line import CheckedLine, Defaults, check_line, constraints_in, no_model
from jobs.lines.line_id import readable_id
from jobs.lines.values import check_object
from jobs.shard import Group, ShardLine
from submit.input.bare_rows import columns_of_rows, no_template
from submit.input.duplicate_ids import UsedIds
from submit.input.reader import Line, Prompts

CHUNK_LINES = 1000
CHUNK_BYTES = 4 << 20
KEPT_PROBLEMS = 100_000
NO_MODEL = ("missing_field", "model")
NO_GROUP = Group("")
"""The group of lines for which no model is named, where none is needed."""


@dataclass(frozen=True, slots=True)
class GoodLine:
    """A line that may run: its place and bytes, who is to run it, the endpoint of an OpenAI line, and whether the model
    begins a new turn after an assistant's message."""

    place: ShardLine
    group: Group
    endpoint: str | None
    after_answer: bool = False
    checked: CheckedLine | None = None
    """As it was checked, where that is wanted."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that may not: its 0-based index, its id as far as it has one, and all that is wrong with it."""

    index: int
    id: str
    problems: tuple[ProblemLine, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the user put into it, as far as that can be read."""
    alone: bool = False
    """It gets an error record, and the others run, also where a bad line refuses the whole input."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring lines of the input, checked, each in exactly one of the lists, in order.

    ``own_models`` counts the good lines that name another model than the batch, by what they name; the constraints of
    ``unchecked`` of them are left to the worker, for want of the library that checks them.
    """

    good: list[GoodLine]
    bad: list[BadLine]
    own_models: Counter[str] = field(default_factory=Counter)
    unchecked: int = 0
    unexpecting: int = 0
    """How many lines are to be asked again, and do not say what their texts are to be."""


@dataclass(slots=True)
class Findings:
    """What checking has found in an input so far. ``own_models`` counts the good lines that name another model than the
    batch, by what they name; in ``after_answer`` of them the model begins a new turn after an assistant's message."""

    total: int = 0
    rejected: int = 0
    """Bad lines, each of which may have several problems."""
    alone: int = 0
    """Those of them that refuse nothing but themselves."""
    only_without_model: int = 0
    """How many of them have no problem but that no model is named."""
    problems: list[ProblemLine] = field(default_factory=list)
    """The first of their problems."""
    formats: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    own_models: Counter[str] = field(default_factory=Counter)
    after_answer: int = 0
    unchecked: int = 0
    """How many lines have a constraint that is left to the worker's check."""
    unexpecting: int = 0

    def add(self, chunk: Chunk) -> None:
        self.total += len(chunk.good) + len(chunk.bad)
        self.rejected += len(chunk.bad)
        self.alone += sum(line.alone for line in chunk.bad)
        for line in chunk.bad:
            self.only_without_model += all((problem.code, problem.field) == NO_MODEL for problem in line.problems)
            self.problems += line.problems[: max(KEPT_PROBLEMS - len(self.problems), 0)]
        self.own_models.update(chunk.own_models)
        self.unchecked += chunk.unchecked
        self.unexpecting += chunk.unexpecting
        # Counted without a Python step for each line: this is done for every line that is submitted.
        for endpoint, count in Counter(map(attrgetter("endpoint"), chunk.good)).items():
            self.formats["native" if endpoint is None else "openai"] += count
        self.by_model.update(map(attrgetter("group.model"), chunk.good))
        self.after_answer += sum(map(attrgetter("after_answer"), chunk.good))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the good lines need."""
        return tuple(sorted(self.by_model))


def checked(
    prompts: Prompts, defaults: Defaults, *, need_model: bool = True, with_fields: bool = False
) -> Iterator[Chunk]:
    """All lines of ``prompts`` against the contract, ``with_fields`` as they were checked; memory does not grow with
    their number.

    Raises:
        RefusedError: the input cannot be read, or is a table that has no template; or the batch's own constraint cannot
            be enforced.
    """
    groups = _Groups(defaults, need_model=need_model, with_fields=with_fields)
    _check_default(groups)
    index = 0
    with UsedIds() as used:
        for lines in _chunks(prompts):
            if index == 0 and (columns := columns_of_rows(lines)) is not None:
                raise RefusedError(no_template(prompts.name, *columns))
            yield _check_chunk(lines, index, groups, used)
            index += len(lines)


def _check_default(groups: _Groups) -> None:
    try:
        for constraint in constraints_in(groups.defaults.fields):
            groups.checker.check(constraint)
    except LineError as error:
        raise RefusedError(f"the batch's '{error.field}': {error.message}") from None


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

    def __init__(self, defaults: Defaults, *, need_model: bool, with_fields: bool = False) -> None:
        self.defaults, self.with_fields = defaults, with_fields
        self._model, self._adapter = defaults.model, defaults.adapter_path
        self._override = defaults.override_model
        self._need_model = need_model
        self._known: dict[tuple[str, str | None], Group] = {}
        self.own_models: Counter[str] = Counter()
        self.checker = Checker()
        self.unchecked = self.unexpecting = 0

    def of(self, line: CheckedLine) -> Group:
        model = self._model
        own = line.fields.get("model")
        if own is not None and own != model:
            if model is not None:
                self.own_models[own] += 1
            model = model if self._override else own
        if model is None:
            if self._need_model:
                raise no_model()
            return NO_GROUP
        adapter = line.fields.get("adapter_path", self._adapter)
        group = self._known.get((model, adapter))
        if group is None:
            group = self._known[model, adapter] = Group(model, adapter)
        return group

    def check_constraints(self, line: CheckedLine) -> None:
        """See that what the text or the calls of a line must be can be enforced, as far as that is known here, and that
        the text can be as expected."""
        constraints = line.constraints(self.defaults)
        for constraint in constraints:
            self.checker.check(constraint)
        self.unchecked += bool(constraints) and not self.checker.available
        if (expect := line.fields.get("expect", self.defaults.fields.get("expect"))) is not None:
            check_columns(expect, line.fields.get("metadata", {}))
        elif line.fields.get("re_ask", self.defaults.fields.get("re_ask")):
            self.unexpecting += 1

    def lacks_model(self, raw: bytes | LineError) -> bool:
        """Whether no model is named for a bad line, besides what else is wrong with it."""
        if not self._need_model or self._model is not None or isinstance(raw, LineError):
            return False
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return False
        fields = data.get("body", data) if isinstance(data, dict) else None
        return isinstance(fields, dict) and not fields.get("model")


def _check_chunk(lines: list[Line], start: int, groups: _Groups, used: UsedIds) -> Chunk:
    groups.own_models, groups.unchecked, groups.unexpecting = Counter(), 0, 0
    checks = [_check_line(index, *line, groups) for index, line in enumerate(lines, start)]
    ids = [(number, line_id) for (number, _), (line_id, _) in zip(lines, checks, strict=True)]
    clashes = used.add(ids)
    chunk = Chunk([], [], groups.own_models, groups.unchecked, groups.unexpecting)
    for index, ((number, line_id), (_, found)) in enumerate(zip(ids, checks, strict=True), start):
        good = found if isinstance(found, GoodLine) else None
        if good is not None and number not in clashes:
            chunk.good.append(good)
            continue
        problems = () if isinstance(found, GoodLine) else found
        shown_id = line_id or f"line-{number}"
        # A bad line whose id cannot be read takes the default of none.
        if number in clashes and (good is not None or line_id is not None):
            field = "id" if good is None or good.endpoint is None else "custom_id"
            message = f"'{shown_id}' is the id of line {clashes[number]} already; ids are unique in a file"
            problems += (ProblemLine(number, "duplicate_custom_id", field, message),)
        raw = lines[index - start][1]
        chunk.bad.append(BadLine(index, shown_id, problems, _metadata_of(raw)))
    return chunk


def _metadata_of(raw: bytes | LineError) -> dict[str, Any]:
    """The metadata of a bad line: a table's row is told by it."""
    if isinstance(raw, LineError):
        return raw.metadata
    try:
        given = orjson.loads(raw).get("metadata")
        return check_object("metadata", given)
    except (orjson.JSONDecodeError, AttributeError, LineError):
        return {}


def _check_line(
    index: int, number: int, raw: bytes | LineError, groups: _Groups
) -> tuple[str | None, GoodLine | tuple[ProblemLine, ...]]:
    """The id of a line, None for the default, and the line, or what is wrong with it."""
    try:
        if isinstance(raw, LineError):
            raise raw
        line = check_line(raw)
        groups.check_constraints(line)
        after = line.begins_after_answer(groups.defaults)
        kept = line if groups.with_fields else None
        return line.id, GoodLine(ShardLine(index, number, raw), groups.of(line), line.endpoint, after, kept)
    except LineError as error:
        problems = error.all_at(number)
        if (error.code, error.field) != NO_MODEL and groups.lacks_model(raw):
            problems += (no_model().at(number),)
        # Its error record carries its id, so the id is taken by this line as much as by a good one.
        return raw.line_id if isinstance(raw, LineError) else readable_id(raw), problems
