"""Problems of an input for people: those that are alike are one line with their count."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.errors import InputError, ProblemLine
from submit.status.text import plural, printable

__all__ = ["SHOWN_PROBLEMS", "grouped", "in_full", "listed"]

SHOWN_PROBLEMS = 20
SHOWN_LINES = 5
"""Of a group so many line numbers are shown."""

_PLACE = re.compile(r"\[\d+\]")
_VALUE = re.compile(r"'[^']*'|\d[\d.,]*")


@dataclass(slots=True)
class _Group:
    """Problems that differ in values alone."""

    first: ProblemLine
    lines: list[int] = field(default_factory=list)
    """The first of their line numbers."""
    count: int = 0
    same: bool = True
    """Whether they have the same words to the last."""
    last: int = 0

    def add(self, problem: ProblemLine) -> None:
        if problem.line == self.last:
            return
        self.last = problem.line
        self.count += 1
        self.same = self.same and (problem.field, problem.message) == (self.first.field, self.first.message)
        if len(self.lines) < SHOWN_LINES:
            self.lines.append(problem.line)

    def __str__(self) -> str:
        if self.count == 1:
            return printable(str(self.first))
        separator = ", " if self.first.field else ": "
        numbers = ", ".join(f"{line}" for line in self.lines) + (", ..." if self.count > len(self.lines) else "")
        alike = "" if self.same else ", and alike"
        said = f"{plural(self.count, 'line')}{separator}{self.first.said}{alike} [{self.first.code}] (lines {numbers})"
        return printable(said)


def grouped(problems: Iterable[ProblemLine]) -> list[str]:
    """One line for a person per kind of problem, in the order of their first lines."""
    groups: dict[tuple[str, str, str], _Group] = {}
    for problem in problems:
        kind = (problem.code, _PLACE.sub("[]", problem.field or ""), _VALUE.sub("#", problem.message))
        group = groups.get(kind)
        if group is None:
            group = groups[kind] = _Group(problem)
        group.add(problem)
    return [str(group) for group in groups.values()]


def listed(problems: Iterable[ProblemLine]) -> list[str]:
    """The first kinds of problems, and how many more there are."""
    kinds = grouped(problems)
    shown = [f"  {kind}" for kind in kinds[:SHOWN_PROBLEMS]]
    if len(kinds) > SHOWN_PROBLEMS:
        more = plural(len(kinds) - SHOWN_PROBLEMS, "kind")
        shown.append(f"  ... and {more} of problems more: `promptmill check FILE --json` lists them all")
    return shown


def in_full(error: InputError) -> InputError:
    """For who sees nothing but the exception: its text has the first kind of problems, its notes the others."""
    full = InputError(error.source, error.problems, error.count, what=error.what)
    if error.what is None and error.problems:
        first, *others = grouped(error.problems)[:SHOWN_PROBLEMS]
        full.args = (f"{error}; what is wrong: {first}",)
        for kind in others:
            full.add_note(kind)
    return full
