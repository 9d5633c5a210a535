"""A schedule: when its batches are submitted, what of, and what became of its last runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
import orjson

from jobs.batch import is_batch_id, timestamp
from jobs.errors import RefusedError
from submit.schedule.cron import Cron

MAX_SCHEDULE_NAME = 48
"""A run's RQ job has the name in its id, which has 64 characters at most."""
MAX_WHY = 500
FIELDS = (
    "id", "cron", "zone", "source", "path", "lines", "bytes", "models", "catch_up", "allow_overlap", "created_at",
    "next", "run", "open", "paused",
)  # fmt: skip
"""The fields of a schedule's hash that :func:`parse_schedule` wants, in order; its ``order`` may be large."""
REMEDY = "`promptmill schedule add --replace` makes it anew"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_Time = msgspec.Meta(ge=0, le=253_402_300_799)  # until the year 9999
Due = Annotated[int, _Time]
Moment = Annotated[float, _Time]


class ScheduleNotFoundError(RefusedError):
    """No schedule of this name is known to the Redis at hand."""

    code = "schedule_not_found"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has begun and is not submitted yet.

    ``due`` is in seconds since the epoch. ``asked``: a user started it by hand. ``missed`` counts the runs that it
    makes up for. ``by`` names the client that submits it itself: for a while schedulers leave the run to that client.
    """

    due: Due
    asked: bool = False
    missed: int = 0
    by: str | None = None

    def encoded(self) -> bytes:
        return orjson.dumps(self)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of the run that was due at ``due``; decided at ``at``, seconds since the epoch.

    ``why`` says why it was not submitted.
    """

    due: Due
    at: Moment
    state: Literal["submitted", "skipped", "failed"]
    batch_id: str | None = None
    why: str | None = None
    asked: bool = False
    missed: int = 0

    def encoded(self) -> bytes:
        why = None if self.why is None else self.why[:MAX_WHY]
        return orjson.dumps(replace(self, why=why))

    def merged(self, before: RunOutcome, most: int) -> RunOutcome | None:
        """This outcome and the one before it as one, if both runs were skipped for the same reason.
        No more than ``most`` runs are counted."""
        if (before.state, before.why, before.asked) != ("skipped", self.why, self.asked) or self.state != "skipped":
            return None
        return replace(self, missed=min(max(self.missed, 1) + max(before.missed, 1), most))

    def as_dict(self) -> dict[str, Any]:
        times = {"due_at": timestamp(self.due), "at": timestamp(self.at)}
        named = ("state", "batch_id", "why", "asked", "missed")
        return times | {name: getattr(self, name) for name in named}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as Redis knows it at one moment; ``id`` is another one after it was replaced."""

    name: str
    id: str
    cron: Cron
    source: str
    path: str | None
    lines: int
    bytes: int
    """Of the stored file, compressed."""
    models: tuple[str, ...]
    catch_up: bool
    allow_overlap: bool
    created_at: float
    next: int
    """When the next run is due, in seconds since the epoch by the server's clock."""
    run: Run | None = None
    """The run that has begun and is not submitted yet."""
    open: tuple[str, ...] = ()
    """Batches that were not done when the last was submitted, and that one: the newest first."""
    runs: tuple[RunOutcome, ...] = ()
    """What became of the last ones, the newest first."""
    paused: bool = False
    """No run begins by cron until it goes on."""

    def as_dict(self) -> dict[str, Any]:
        """What ``schedule list --json`` prints."""
        return {
            "name": self.name,
            "cron": self.cron.expression,
            "time_zone": self.cron.zone,
            "source": self.source,
            "read_at_fire": self.path is not None,
            "lines": self.lines if self.path is None else None,
            "models": list(self.models),
            "catch_up": self.catch_up,
            "allow_overlap": self.allow_overlap,
            "created_at": timestamp(self.created_at),
            "paused": self.paused,
            "next_run_at": None if self.paused else timestamp(self.next),
            "run": None if self.run is None else {"due_at": timestamp(self.run.due), "asked": self.run.asked},
            "runs": [outcome.as_dict() for outcome in self.runs],
        }


def is_schedule_name(name: str) -> bool:
    """Whether a schedule may have this name."""
    return len(name) <= MAX_SCHEDULE_NAME and _NAME.fullmatch(name) is not None


def check_schedule_name(name: str) -> str:
    """The name, if it may be a schedule's.

    Raises:
        RefusedError: it may not.
    """
    if is_schedule_name(name):
        return name
    raise RefusedError(
        f"{name!r:.70} is no name for a schedule: up to {MAX_SCHEDULE_NAME} letters of the Latin alphabet, digits, "
        "_ and -, a letter or digit first"
    )


def no_schedule(name: str) -> ScheduleNotFoundError:
    """The error that says so."""
    return ScheduleNotFoundError(f"there is no schedule '{name}'; `promptmill schedule list` shows them")


def parse_schedule(
    name: str, stored: list[bytes | None], runs: list[bytes], cron: Callable[[str, str], Cron] = Cron
) -> Schedule:
    """The schedule of FIELDS of a Redis hash and a list of its runs, as :mod:`submit.schedule.store` writes them.

    ``cron`` makes a :class:`submit.schedule.cron.Cron`, or knows one already.

    Raises:
        RefusedError, ValueError: it wrote no such fields; of the list what it did not write is left out.
    """
    text = {field: (value or b"").decode() for field, value in zip(FIELDS, stored, strict=True)}
    return Schedule(
        name=name,
        id=text["id"],
        cron=cron(text["cron"], text["zone"]),
        source=text["source"],
        path=text["path"] or None,
        lines=int(text["lines"]),
        bytes=int(text["bytes"]),
        models=msgspec.json.decode(text["models"], type=tuple[str, ...]),
        catch_up=text["catch_up"] == "1",
        allow_overlap=text["allow_overlap"] == "1",
        created_at=msgspec.convert(text["created_at"], Moment, strict=False),
        next=msgspec.convert(text["next"], Due, strict=False),
        run=_run(text["run"]) if text["run"] else None,
        open=_open(text["open"]),
        paused=text["paused"] != "",
        runs=tuple(outcome for item in runs if (outcome := _outcome(item)) is not None),
    )


def _run(stored: str) -> Run:
    run = msgspec.json.decode(stored, type=Run)
    if run.encoded() != stored.encode():  # steps compare it, byte by byte
        raise ValueError("its run is written otherwise")
    return run


def _open(stored: str) -> tuple[str, ...]:
    ids = tuple(stored.split())
    if not all(map(is_batch_id, ids)) or " ".join(ids) != stored:
        raise ValueError("its batches are none")
    return ids


def _outcome(item: bytes) -> RunOutcome | None:
    """A run of the list; None for an entry that is none."""
    try:
        found = msgspec.json.decode(item, type=RunOutcome)
    except ValueError:
        return None
    return found if found.batch_id is None or is_batch_id(found.batch_id) else None
