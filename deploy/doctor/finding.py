"""A finding: what one check says of a machine or a Redis."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Finding", "FindingState", "Section", "count", "failed", "good", "judged", "printable", "skipped", "unsure"]


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


def count(sections: Iterable[Section], state: FindingState) -> int:
    """How many findings have a state."""
    return sum(finding.state is state for section in sections for finding in section.findings)
