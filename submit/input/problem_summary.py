"""Problems of an input for people: those that are alike are one line with their count."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator

from jobs.errors import InputError, ProblemLine
from submit.status.text import plural, printable

SHOWN_PROBLEMS = 20
SHOWN_LINES = 5
"""Of a group so many line numbers are shown."""

_PLACE = re.compile(r"\[\d+\]")
_VALUE = re.compile(r"'[^']*'|\d[\d.,]*")


def grouped(problems: Iterable[ProblemLine]) -> list[str]:
    """One line for a person per kind of problem, in the order of their first lines."""
    groups: dict[tuple[str, str, str], list[ProblemLine]] = {}
    for problem in problems:
        kind = (problem.code, _PLACE.sub("[]", problem.field or ""), _VALUE.sub("#", problem.message))
        groups.setdefault(kind, []).append(problem)
    return [printable(_shown(group)) for group in groups.values()]


def _shown(group: list[ProblemLine]) -> str:
    """Problems that differ in values alone, as one line."""
    first, lines = group[0], list(dict.fromkeys(problem.line for problem in group))
    if len(lines) == 1:
        return str(first)
    separator = ", " if first.field else ": "
    numbers = ", ".join(map(str, lines[:SHOWN_LINES])) + (", ..." if len(lines) > SHOWN_LINES else "")
    same = all((problem.field, problem.message) == (first.field, first.message) for problem in group)
    alike = "" if same else ", and alike"
    return f"{plural(len(lines), 'line')}{separator}{first.said}{alike} [{first.code}] (lines {numbers})"


def listed(problems: Iterable[ProblemLine]) -> list[str]:
    """The first kinds of problems, and how many more there are."""
    kinds = grouped(problems)
    shown = [f"  {kind}" for kind in kinds[:SHOWN_PROBLEMS]]
    if len(kinds) > SHOWN_PROBLEMS:
        more = plural(len(kinds) - SHOWN_PROBLEMS, "kind")
        shown.append(f"  ... and {more} of problems more: `promptmill check FILE --json` lists them all")
    return shown


@contextlib.contextmanager
def in_full() -> Iterator[None]:
    """Around what may refuse an input, for who sees nothing but the exception: its text has the first kind of problems,
    its notes the others."""
    try:
        yield
    except InputError as error:
        full = InputError(error.source, error.problems, error.count, what=error.what)
        if error.what is None and error.problems:
            first, *others = grouped(error.problems)[:SHOWN_PROBLEMS]
            full.args = (f"{error}; what is wrong: {first}",)
            for kind in others:
                full.add_note(kind)
        raise full from None
