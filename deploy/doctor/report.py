"""An examination as a person reads it, and as a script does."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

from deploy.doctor.finding import Finding, FindingState, Section, count
from submit.status.text import cells, plural

__all__ = ["as_object", "lines", "summary"]

_MARKS = {FindingState.OK: "ok", FindingState.WARN: "warn", FindingState.FAIL: "FAIL", FindingState.SKIP: "-"}
_COLOURS = {
    FindingState.OK: "green",
    FindingState.WARN: "yellow",
    FindingState.FAIL: "red",
    FindingState.SKIP: "bright_black",
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
    mark = f"{_MARKS[finding.state]:<4}"
    if colour:
        mark = click.style(mark, fg=_COLOURS[finding.state], bold=finding.state is FindingState.FAIL)
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
