"""Findings: what checks say of a machine or a Redis, and how a person and a script read them."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from submit.status.text import cells, plural


class FindingState(enum.Enum):
    """How a check ended; only a failed one makes the exit status 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: its name, how it ended and why; where something is wrong the remedy besides, and a long
    ``command`` that it ends with, to be copied as it is."""

    name: str
    state: FindingState
    reason: str
    remedy: str | None = None
    command: str | None = None

    @property
    def whole_remedy(self) -> str | None:
        """The remedy with its command."""
        return self.remedy if self.command is None else f"{self.remedy} {self.command}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state.value, "remedy": self.whole_remedy}


@dataclass(slots=True)
class Section:
    """Findings under a heading; ``key`` is its name for scripts."""

    key: str
    title: str
    findings: list[Finding] = field(default_factory=list)


def good(name: str, reason: str) -> Finding:
    return Finding(name, FindingState.OK, printable(reason))


def unsure(name: str, reason: str, remedy: str, command: str | None = None) -> Finding:
    """Work goes on, but less well, or not for long."""
    return judged(name, reason, remedy, command, warns=True)


def failed(name: str, reason: str, remedy: str, command: str | None = None) -> Finding:
    """As it is, nothing can be done here, or what was done can be lost."""
    return judged(name, reason, remedy, command, fails=True)


def judged(
    name: str, reason: str, remedy: str, command: str | None = None, *, fails: bool = False, warns: bool = False
) -> Finding:
    """A finding whose reason reads the same however it ends: good where it neither ``fails`` nor ``warns``."""
    if not (fails or warns):
        return good(name, reason)
    state = FindingState.FAIL if fails else FindingState.WARN
    shown = None if command is None else printable(command)
    return Finding(name, state, printable(reason), printable(remedy), shown)


def skipped(name: str, reason: str) -> Finding:
    """Nothing to check here, or no way to."""
    return Finding(name, FindingState.SKIP, printable(reason))


def printable(text: str) -> str:
    """Text fit for a terminal: what comes from Redis, or from another program, could steer it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def some(names: Sequence[str], most: int) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(sections: Iterable[Section], state: FindingState) -> int:
    """How many findings have a state."""
    return sum(finding.state is state for section in sections for finding in section.findings)


_MARKS = {
    FindingState.OK: ("ok", "green"),
    FindingState.WARN: ("warn", "yellow"),
    FindingState.FAIL: ("FAIL", "red"),
    FindingState.SKIP: ("-", "bright_black"),
}
WIDEST_NAME, MARGIN = 16, 8
OF_MODELS = ("model", "memory", "waiting", "trouble")
"""Findings that have a model's name after their own."""


def lines(section: Section, width: int, *, colour: bool) -> Iterator[str]:
    """A section's lines: per finding a mark, its name and the reason, and under it what to do."""
    yield click.style(section.title, bold=True) if colour else section.title
    for names, finding in _merged(section.findings):
        yield from _lines(names, finding, width, colour)


def _merged(findings: Sequence[Finding]) -> list[tuple[str, Finding]]:
    """Findings with the names they are shown under: those skipped for the same reason are one."""
    shown: dict[str, tuple[list[str], Finding]] = {}
    for number, finding in enumerate(findings):
        key = finding.reason if finding.state is FindingState.SKIP else str(number)
        shown.setdefault(key, ([], finding))[0].append(finding.name)
    return [(", ".join(names), finding) for names, finding in shown.values()]


def _lines(name: str, finding: Finding, width: int, colour: bool) -> Iterator[str]:
    word, tint = _MARKS[finding.state]
    mark = f"{word:<4}"
    if colour:
        mark = click.style(mark, fg=tint, bold=finding.state is FindingState.FAIL)
    reason, margin = finding.reason, MARGIN + WIDEST_NAME + 2
    word, _, subject = name.partition(" ")
    if word in OF_MODELS and subject:
        start, reason = f"{word}{' ' * (WIDEST_NAME - cells(word))}  ", f"{subject}: {reason}"
    elif cells(name) <= WIDEST_NAME:
        start = f"{name}{' ' * (WIDEST_NAME - cells(name))}  "
    else:  # several
        start, reason, margin = "", f"{name}: {reason}", MARGIN
    first, *rest = _wrapped(reason, width - margin)
    yield f"  {mark}  {start}{first}"
    yield from (" " * margin + line for line in rest)
    if finding.remedy:
        arrow = click.style("->", bold=True) if colour else "->"
        first, *rest = _wrapped(finding.remedy, width - margin - 3)
        yield f"{' ' * margin}{arrow} {first}"
        yield from (" " * (margin + 3) + line for line in rest)
    if finding.command:  # in one piece, whatever the width: pasted in parts it would do something else
        fits = margin + 3 + cells(finding.command) <= width
        yield f"{' ' * (margin + 3 if fits else MARGIN)}{finding.command}"


def _wrapped(text: str, width: int) -> list[str]:
    # Commands and paths are to be copied: they are broken at spaces only.
    found = textwrap.wrap(text, max(width, 30), break_long_words=False, break_on_hyphens=False)
    return found or [""]


def summary(sections: Sequence[Section]) -> str:
    """The last line: how many of what."""
    good, unsure, failed = (count(sections, state) for state in (FindingState.OK, FindingState.WARN, FindingState.FAIL))
    parts = [f"{good} ok"]
    parts += [plural(unsure, "warning")] if unsure else []
    parts += [f"{failed} FAILED"] if failed else []
    return ", ".join(parts)


def as_object(sections: Sequence[Section]) -> dict[str, Any]:
    """The examination as one object."""
    return {
        "ok": not count(sections, FindingState.FAIL),
        "summary": {state.value: count(sections, state) for state in FindingState},
        "checks": [{"section": part.key, **finding.as_dict()} for part in sections for finding in part.findings],
    }
