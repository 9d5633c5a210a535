"""What a client is, where it runs, and what it says about `promptmill serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a client tried: its name, what became of it, and why where it did not pass."""

    name: str
    outcome: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of another project: a git repository, the commit or tag that is taken, and the folders of it that matter.
    They are never part of this repository."""

    name: str
    url: str
    revision: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client runs: a running server with a worker behind it, an interpreter with the client's packages, and an
    empty folder."""

    url: str
    """Up to and with `/v1`."""
    key: str
    models: tuple[str, ...]
    """Names under which the pocket model is served."""
    python: Path
    folder: Path
    suite: Path
    """The checkout of the client's suite; the folder itself where it has none."""

    @property
    def model(self) -> str:
        return self.models[0]


@dataclass(frozen=True, slots=True)
class Client:
    """A client that is run unchanged against `promptmill serve`."""

    name: str
    version: str
    """What the table says of it: the release, or the commit of its suite."""
    what: str
    """What runs, in a few words, for the table."""
    run: Callable[[Place], Sequence[Check]]
    packages: tuple[str, ...] = ()
    """Requirements with exact versions. Without any it runs in the environment of these tests."""
    suite: Suite | None = None
    models: tuple[str, ...] = ("pocket",)
    port: int = 0
    key: str = "sk-1234"
    flags: tuple[str, ...] = ()
    """Flags of `promptmill serve` besides."""
    known: Mapping[str, str] = field(default_factory=dict)
    """Why a check does not pass, by its name. A check that fails and is not here is a fault; so is one here that
    passes, or is not there any more."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a client, as it is kept for the page."""

    name: str
    version: str
    what: str
    on: str
    """The day."""
    seconds: float
    checks: tuple[Check, ...]

    def count(self, outcome: str) -> int:
        return sum(check.outcome == outcome for check in self.checks)


def judged(client: Client, checks: Sequence[Check]) -> tuple[tuple[Check, ...], list[str]]:
    """The checks with the reasons that are known, and what is wrong with them."""
    wrong, named = [], {check.name for check in checks}
    found = tuple(
        Check(check.name, check.outcome, client.known.get(check.name, check.why)) if check.outcome != PASSED else check
        for check in checks
    )
    for check in checks:
        if check.outcome == FAILED and check.name not in client.known:
            wrong.append(f"{client.name}: {check.name}: {check.why or 'it failed'}")
        if check.outcome == PASSED and check.name in client.known:
            wrong.append(f"{client.name}: {check.name} passes: take the reason away why it does not")
    wrong += [f"{client.name}: {name} is no check of it any more" for name in client.known if name not in named]
    if not any(check.outcome == PASSED for check in checks):
        wrong.append(f"{client.name}: nothing passed")
    return found, wrong
