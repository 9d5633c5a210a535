"""What must hold after any fault, checked by what users see: the files of results, ``status``, and what was generated.

A worker's log of generated lines is the one thing users do not see; it tells which work was done more than once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.e2e.faults.engine import answer
from tests.mixed import audit as audit_files, records

ON_THE_WAY_S = 0.2
"""A line that ended so shortly before its worker did was in flight still: its record was on the way to Redis."""


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the generation log; ``at`` is the machine's monotonic clock."""

    event: str
    pid: int
    at: float
    batch: str = ""
    shard: int = -1
    index: int = -1
    phase: str = ""
    action: str = ""


@dataclass(slots=True)
class Audit:
    """What was found: ``wrong`` is empty when all invariants hold."""

    wrong: list[str] = field(default_factory=list)
    lines: int = 0
    records: int = 0
    failed: int = 0
    duplicates: int = 0
    regenerated: int = 0


def events(log: Path) -> list[Event]:
    """The events of a log, in their order."""
    return [Event(**orjson.loads(row)) for row in log.read_bytes().splitlines()]


def in_flight(log: Iterable[Event], pid: int, at: float) -> int:
    """Lines that a worker had begun by a moment, and that had not ended or whose records were on the way then."""
    open_lines: dict[tuple[str, int], Event] = {}
    for event in log:
        line = (event.batch, event.index)
        if event.pid == pid and event.at <= at:
            if event.event == "begin":
                open_lines[line] = event
            elif event.event == "cancel" or (event.event == "end" and event.at < at - ON_THE_WAY_S):
                open_lines.pop(line, None)
    return len(open_lines)


def begun_since(log: Iterable[Event], since: float, until: float) -> int:
    """Lines that anybody began in a stretch of time."""
    return sum(event.event == "begin" and since < event.at <= until for event in log)


def recovery_s(log: Sequence[Event], pid: int, at: float) -> float | None:
    """Seconds from a worker's fault to the next line begun by another of the shards it had; where no line was left,
    to the moment one of those shards was taken. None: none ever was."""
    taken = [event for event in log if event.pid == pid and event.at <= at and event.event == "take"]
    held = {(event.batch, event.shard) for event in taken}
    for wanted in ("begin", "take"):
        for event in log:
            if event.event == wanted and event.pid != pid and event.at > at and (event.batch, event.shard) in held:
                return round(event.at - at, 2)
    return None


def audit(
    source: Path,
    lines: Sequence[dict[str, Any]],
    out: Path,
    errors: Path,
    status: dict[str, Any],
    log: Iterable[Event],
    *,
    batch: str,
    most_regenerated: int | None = None,
    codes: dict[str, set[str]] | None = None,
    end_status: str = "completed",
    any_may: str | None = None,
) -> Audit:
    """Check one batch. ``codes`` are the lines that shall fail, with the codes they may have: no other may fail.
    ``any_may`` is a code that each of the other lines may fail with as well.
    ``most_regenerated`` bounds the lines generated more than once (None: no bound)."""
    found = Audit(audit_files(source, out, errors), len(lines))
    good, bad = records(out), records(errors)
    counts = Counter(record["index"] for record in good + bad)
    found.records, found.failed = len(good) + len(bad), len(bad)
    found.duplicates = sum(count - 1 for count in counts.values())
    begun, ended, last = defaultdict(int), defaultdict(set), {}
    for event in log:
        if event.batch == batch and event.event in ("begin", "end", "cancel"):
            if event.event == "begin":
                begun[event.index] += 1
                last[event.index] = event.pid
            elif event.event == "end":
                ended[event.index].add(event.pid)
            else:  # as at the end of a trial: of the line's first tokens
                begun[event.index] -= 1
    found.regenerated = sum(max(0, count - 1) for count in begun.values())
    if most_regenerated is not None and found.regenerated > most_regenerated:
        found.wrong.append(f"{found.regenerated} lines were generated again, at most {most_regenerated} were in flight")
    for record in good:
        found.wrong += _wrong_text(record, lines[record["index"]])
        pid = int(record["worker"].rpartition(".")[2])
        if pid not in ended[record["index"]]:
            found.wrong.append(f"{record['id']}: its record is of {record['worker']}, which never ended it")
        elif last[record["index"]] != pid:
            found.wrong.append(f"{record['id']}: its record is of {record['worker']}, whose attempt was stale")
    wanted = codes or {}
    for record in bad:
        code = record["error"]["code"]
        if code != any_may and code not in wanted.get(record["id"], set()):
            found.wrong.append(f"{record['id']} failed with {code}: {record['error']['message']}")
    if any_may is None:
        found.wrong += [f"{name} did not fail" for name in wanted.keys() - {record["id"] for record in bad}]
    said = {"total": len(lines), "completed": len(good), "failed": len(bad)}
    if status["request_counts"] != said:
        found.wrong.append(f"status counts {status['request_counts']}, the files {said}")
    if status["status"] != end_status:
        found.wrong.append(f"the batch is {status['status']}, not {end_status}")
    tokens = sum(record["usage"]["completion_tokens"] for record in good)
    if status["usage"]["completion_tokens"] != tokens:
        found.wrong.append(f"status counts {status['usage']['completion_tokens']} tokens, the files {tokens}")
    return found


def _wrong_text(record: dict[str, Any], line: dict[str, Any]) -> list[str]:
    wanted = answer(line["prompt"], line["max_tokens"])
    return [] if record["text"] == wanted else [f"{record['id']}: its text is {record['text']!r}, not {wanted!r}"]
