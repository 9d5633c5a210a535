"""What ``promptmill status`` shows: all batches as a table, or one in detail with its lines in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson

from jobs.batch import ID_CUT, Batch
from jobs.delivery import origin
from jobs.store.orphans import Orphans
from submit.status.progress import Rates
from submit.status.text import (
    cells,
    clip,
    count,
    duration,
    fitted,
    memory_size,
    plural,
    printable,
    rate,
    short_name,
    size,
    table,
)
from submit.status.worker_state import LineInFlight, WorkerState
from submit.status.worker_table import state_text
from submit.status.workers import POOL_PAUSED, activity, orphaned, unserved

__all__ = [
    "NO_BATCHES",
    "batch_object",
    "batch_table",
    "described",
    "detail",
    "in_flight",
    "models_of",
    "pace",
    "rest_waits",
    "serving",
    "short_ids",
    "state_of",
    "word_of",
]

NO_BATCHES = "no batches; `promptmill submit FILE --model MODEL` makes one"
HEADER = ("batch", "name", "status", "done/failed/total", "tokens", "tok/s", "eta", "model", "age")
FLUSH_RIGHT = frozenset({"done/failed/total", "tokens", "tok/s", "eta", "age"})
DROPPED_FIRST = ("age", "tokens", "model", "tok/s", "eta", "name")
"""Columns a narrow terminal does without, in this order."""
LONGEST_NAME = 24
"""Columns of a name in a terminal that has no room for all."""
ID_HEAD, ID_TAIL = 6, 5
"""Letters of an id that is shown short; more at its end where it would be one of several."""
SHOWN_LINES = 40
DAY_S = 86400.0


def batch_table(
    batches: Sequence[Batch],
    now: float,
    *,
    rates: Mapping[str, Rates] | None = None,
    waiting: Mapping[str, str] | None = None,
    width: int | None = None,
) -> list[str]:
    """Batches, oldest first, as lines of at most ``width`` columns (None: as wide as need be).

    ``rates`` are those of the recent past, by batch id; without them rates since each batch began are shown.
    ``waiting`` says of those that do not run why, by batch id. Where there is no room, ids are shortened first.
    """
    if not batches:
        return [NO_BATCHES]
    rows = [_row(batch, now, (rates or {}).get(batch.id), (waiting or {}).get(batch.id)) for batch in batches]
    if width is not None and max(map(cells, table(HEADER, rows))) > width:
        shown = short_ids([batch.id for batch in batches])
        rows = [[shown[row[0]], clip(row[1], LONGEST_NAME), *row[2:]] for row in rows]
    return fitted(HEADER, rows, right=FLUSH_RIGHT, dropped_first=DROPPED_FIRST, width=width)


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Ids with a cut in the middle that commands take for the whole, each for one of these alone."""
    tail = ID_TAIL
    while len({batch_id[-tail:] for batch_id in ids}) < len(set(ids)) and tail < max(map(len, ids)):
        tail += 1
    cut = ID_HEAD + len(ID_CUT) + tail
    return {
        batch_id: batch_id if len(batch_id) <= cut else f"{batch_id[:ID_HEAD]}{ID_CUT}{batch_id[-tail:]}"
        for batch_id in ids
    }


def word_of(batch: Batch, why: str | None) -> str:
    """How a batch is, in one word; ``why`` it does not run is what :func:`activity` says."""
    if why is None:
        return "running" if batch.status == "in_progress" else batch.status
    return next((word for word in ("loading", "paused") if why.startswith(word)), "waiting")


def state_of(batch: Batch, why: str | None, now: float) -> str:
    """The same; of a batch that waits for its time, when that is."""
    if batch.done or batch.paused or "starts" not in batch.times:
        return word_of(batch, why)
    at = datetime.fromtimestamp(batch.times["starts"])
    ahead = batch.times["starts"] - now
    return (
        f"begins {at:%H:%M}" if ahead < DAY_S else f"begins {at:%a %H:%M}" if ahead < 6 * DAY_S else f"begins {at:%F}"
    )


def _row(batch: Batch, now: float, recent: Rates | None, why: str | None) -> list[str]:
    per_second, eta = pace(batch, now, recent) if why is None else (None, None)
    return [
        batch.id,
        printable(batch.name or "-"),
        state_of(batch, why, now),
        f"{batch.completed:,}/{batch.failed:,}/{batch.total:,}",
        count(batch.usage.prompt_tokens + batch.usage.completion_tokens),
        rate(per_second),
        duration(eta),
        printable(models_of(batch.models)),
        duration(now - batch.times["created"]) if "created" in batch.times else "-",
    ]


def pace(batch: Batch, now: float, recent: Rates | None) -> tuple[float | None, float | None]:
    """New tokens per second, and seconds left; of a batch that is done those of all its time."""
    if recent is not None and recent.lines and not batch.done:
        return recent.completion_tokens, recent.eta(batch)
    rates = batch.rates(now)
    return rates["completion_tokens_per_second"], rates["eta_s"]


def models_of(models: Sequence[str]) -> str:
    if not models:
        return "-"
    return short_name(models[0]) if len(models) == 1 else f"{short_name(models[0])} +{len(models) - 1}"


def batch_object(
    batch: Batch,
    now: float,
    states: Sequence[WorkerState],
    queues: frozenset[str],
    memory: int,
    *,
    pool_paused: bool = False,
    orphans: Orphans | None = None,
) -> dict[str, Any]:
    """The JSON object of one batch: what Redis knows, and what the workers say of it; ``memory`` in bytes."""
    return {
        **batch.as_dict(now),
        "memory_bytes": memory,
        "waiting": activity(batch, queues, states, pool_paused=pool_paused, orphans=orphans),
        "orphans": None if orphans is None else asdict(orphans),
        "unserved": unserved(batch, queues, states),
        "pool_paused": pool_paused,
        "workers": [state.as_dict() for state in serving(batch, states, queues)],
        "in_flight": [{**line.as_dict(), "worker": state.name} for state, line in in_flight(batch, states)],
    }


def serving(batch: Batch, states: Sequence[WorkerState], queues: frozenset[str]) -> list[WorkerState]:
    """The workers that may take from a batch's queues, while there is anything to take."""
    return [state for state in states if queues & set(state.queues) and not batch.done]


def in_flight(batch: Batch, states: Sequence[WorkerState]) -> list[tuple[WorkerState, LineInFlight]]:
    if batch.done:
        return []  # what a worker that died said last is shown for some seconds
    found = [(state, line) for state in states for line in state.lines_of(batch.id)]
    return sorted(found, key=lambda pair: pair[1].index)


def detail(
    batch: Batch,
    now: float,
    states: Sequence[WorkerState],
    queues: frozenset[str],
    *,
    recent: Rates | None = None,
    memory: int | None = None,
    pool_paused: bool = False,
    orphans: Orphans | None = None,
) -> list[str]:
    """One batch as lines of text: its facts, then its lines in flight."""
    facts = [("batch", batch.id if batch.name is None else f"{batch.id} ({printable(batch.name)})")]
    waiting = activity(batch, queues, states, pool_paused=pool_paused, orphans=orphans)
    partly = rest_waits(batch, queues, states, orphans)
    facts.append(("status", ", ".join([batch.status, *(why for why in (waiting or partly,) if why)])))
    if pool_paused and not batch.done:
        facts.append(("pool", POOL_PAUSED))
    facts += [(label, printable(text)) for label, text in described(batch) if text]
    facts += _counted(batch, now, recent, waiting or partly)
    facts += [("webhook", told) for told in _told(batch, now)]
    moments = {"submitted": "created", "retried": "retried", "started": "started"}
    if batch.done:
        moments["ended"] = batch.status
    facts += [(label, f"{_local(batch.times[name])} ({duration(now - batch.times[name])} ago)")
              for label, name in moments.items() if name in batch.times]  # fmt: skip
    if not batch.done and "starts" in batch.times:
        at = batch.times["starts"]
        facts.append(("begins", f"{_local(at)} (in {duration(at - now)})"))
    if not batch.done and "expires" in batch.times:
        at = batch.times["expires"]
        facts.append(("expires", f"{_local(at)} (in {duration(at - now)})"))
    if batch.ended_at is not None and batch.keep_s is not None:
        at = batch.ended_at + batch.keep_s
        facts.append(("kept", f"until {_local(at)} ({duration(at - now)} more)"))
    if memory is not None:
        facts.append(("memory", f"{memory_size(memory)} in Redis"))
    facts += [("worker", _worker(state)) for state in serving(batch, states, queues)]
    lines = [f"{label:<10}{text}" for label, text in facts]
    return lines + _flight_lines(batch, states)


def rest_waits(
    batch: Batch, queues: frozenset[str], states: Sequence[WorkerState], orphans: Orphans | None = None
) -> str | None:
    """What a batch waits for whose other lines are worked on; None where that is nothing."""
    missing = unserved(batch, queues, states)
    if not (missing or orphans) or not in_flight(batch, states):
        return None
    why = f"no worker serves {', '.join(missing)}" if orphans is None else orphaned(orphans, states)
    return f"some of its lines wait: {why}"


def described(batch: Batch) -> list[tuple[str, str]]:
    plain = {name: value for name, value in batch.defaults.items() if name != "model"}
    return [
        ("source", batch.source),
        ("models", ", ".join(batch.models)),
        ("priority", batch.priority),
        ("schedule", batch.schedule or ""),
        ("defaults", ", ".join(f"{name} {_json(value)}" for name, value in plain.items())),
        ("metadata", _json(dict(batch.metadata)) if batch.metadata else ""),
    ]


def _told(batch: Batch, now: float) -> list[str]:
    """How far word of the batch's end has come; of the URL no more than its host."""
    if batch.webhook is None or batch.delivery is None:
        return []
    delivery, host = batch.delivery, origin(batch.webhook)
    if not batch.done:
        return [f"{host}, when the batch is done"]
    if delivery.state == "waiting" and not delivery.tries:
        return [f"{host}: waiting for `promptmill scheduler` to send it"]
    text = f"{host}: {delivery.state}"
    if delivery.tries and delivery.state != "refused":
        text += " after 1 try" if delivery.tries == 1 else f" after {delivery.tries:,} tries"
    if delivery.answer is not None:
        text += f", {delivery.answer}"
    if delivery.state == "waiting" and delivery.next_at is not None:
        text += f"; tried again in {duration(max(delivery.next_at - now, 0.0))}"
    return [text]


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _counted(batch: Batch, now: float, recent: Rates | None, waiting: str | None) -> list[tuple[str, str]]:
    lines = f"{batch.finished - batch.unrun:,} of {batch.total:,} done"
    if failed := batch.failed - batch.unrun:
        lines += f", {failed:,} failed"
    if batch.rejected:
        lines += f" ({batch.rejected:,} of them refused at submission)"
    if batch.unrun:
        lines += f", {batch.unrun:,} not run: the batch {batch.fate}"
    usage = batch.usage
    tokens = f"{usage.prompt_tokens:,} prompt"
    if usage.cached_tokens:
        tokens += f" ({usage.cached_tokens:,} cached)"
    tokens += f", {usage.completion_tokens:,} generated"
    per_second, eta = pace(batch, now, recent)
    said = [] if per_second is None else [f"{rate(per_second)} tok/s"]
    said += [] if eta is None or waiting is not None else [f"{duration(eta)} left"]
    return [("lines", lines), ("tokens", tokens), *([("rate", ", ".join(said))] if said else [])]


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _worker(state: WorkerState) -> str:
    text = f"{printable(state.name)}: {state_text(state)}"
    if state.tokens_per_second is not None and state.state not in ("loading", "starting"):
        text += f", {rate(state.tokens_per_second)} tok/s"
    if state.occupancy is not None:
        text += f", {state.occupancy:.0%} full"
    if state.memory_bytes:
        text += f", {size(state.memory_bytes)}"
    return text


def _flight_lines(batch: Batch, states: Sequence[WorkerState]) -> list[str]:
    pairs = in_flight(batch, states)
    if not pairs:
        return []
    rows = [[str(line.index), printable(line.id), line.phase, _tokens(line), state.name] for state, line in pairs]
    shown = table(("index", "id", "phase", "tokens", "worker"), rows[:SHOWN_LINES], right=frozenset({0}))
    more = [f"... and {len(rows) - SHOWN_LINES:,} more"] if len(rows) > SHOWN_LINES else []
    return ["", f"{plural(len(pairs), 'line')} in flight", *shown, *more]


def _tokens(line: LineInFlight) -> str:
    if line.phase == "prefill":
        return f"{line.prefilled:,} of {line.prompt_tokens:,} read"
    return f"{line.completion_tokens:,} generated"
