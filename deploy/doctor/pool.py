"""Checks of a pool: whether it is paused, who is at work, and what waits for nobody."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from redis import Redis
from redis.exceptions import ResponseError

from deploy.doctor.finding import Finding, good, skipped, some, unsure
from jobs.errors import RefusedError
from jobs.store.keys import INTAKE, PREFIX, SERVERS
from jobs.store.store import Store
from submit.schedule.store import Schedules
from submit.status.pool_pause import paused_workers, pool_paused
from submit.status.text import duration, plural, printable
from submit.status.worker_state import WorkerState
from submit.status.workers import SCAN_STEP, LostWorker, Workers, read_lost_workers, served_by
from submit.webhooks.store import due

T = TypeVar("T")

QUEUES, QUEUE = "rq:queues", "rq:queue:"
TROUBLE = re.compile(PREFIX + r"trouble:[0-9a-f]{12}(?:pid:\[\d+\])?:(?P<group>.*)", re.DOTALL)
REASON = ":reason"
PRIVATE = re.compile(r"promptmill:\w+:b_[0-9A-Z]{26}:")
"""The queues of a `promptmill run` on the embedded server, which are its own worker's."""
SERVER_S = 15.0
"""A server says three times in so long that it is there."""
SHOWN, MOST = 3, 1000
"""More than a pool has of workers, queues or models in trouble; no more are looked at."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What goes on in a pool. ``paused`` is None, and ``silent`` empty, where the user may not see it; ``resting`` are
    workers that are paused by name. ``scheduler`` is the active one, ``schedules`` how many wait for one, and
    ``webhooks`` how many are to be called now.

    ``waiting`` has the shards in each queue, ``trouble`` by model how often it ended a worker in the last hour, and by
    what the last time."""

    paused: bool | None
    workers: tuple[WorkerState, ...]
    resting: tuple[str, ...] = ()
    silent: tuple[LostWorker, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    trouble: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    scheduler: str | None = None
    schedules: int = 0
    webhooks: int = 0
    servers: tuple[str, ...] = ()
    """HTTP servers, each with its URL."""
    unchecked: int = 0
    """Batches made over HTTP whose files are not checked yet."""


def ask_pool(connection: Redis) -> Pool:
    """The state of the pool; nothing is changed."""
    store, schedules = Store(connection), Schedules(connection)
    listed = _answer(lambda: cast("set[bytes]", connection.smembers(QUEUES)), set[bytes]())
    names = (key.decode(errors="replace") for key in listed)
    queues = sorted(key for key in names if key.startswith(QUEUE + PREFIX))[:MOST]
    lengths = _replies(connection, [("LLEN", key) for key in queues])
    waiting = {
        key.removeprefix(QUEUE): length
        for key, length in zip(queues, lengths, strict=True)
        if isinstance(length, int) and length
    }
    workers = tuple(Workers(connection).read())
    live = frozenset(worker.name for worker in workers)
    return Pool(
        paused=_answer(lambda: pool_paused(store), None),
        workers=workers,
        resting=tuple(_answer(lambda: paused_workers(store), list[str]()))[:MOST],
        silent=tuple(read_lost_workers(connection, live, store.server_time())),
        waiting=waiting,
        trouble=_trouble(connection),
        scheduler=schedules.active_scheduler(),
        schedules=_answer(lambda: len(schedules.names()), 0),
        webhooks=_answer(lambda: due(store), 0),
        servers=tuple(_answer(lambda: _servers(store), list[str]()))[:MOST],
        unchecked=_answer(lambda: connection.zcard(INTAKE), 0),
    )


def check_pool(pool: Pool) -> Iterator[Finding]:
    """Findings on the whole pool, and for each model that somebody needs whether a worker serves it."""
    if pool.paused:
        yield unsure("pause", "the pool is paused: workers finish what they hold and take nothing", "promptmill resume")
    elif pool.paused is None:
        yield skipped("pause", "this user may not see whether the pool is paused")
    else:
        yield good("pause", "the pool is not paused")
    if pool.resting:
        reason = f"paused by name: {some(pool.resting, SHOWN)}; they take nothing new"
        yield unsure("paused workers", reason, f"promptmill resume --worker {shlex.quote(pool.resting[0])}")
    yield _workers(pool)
    if pool.silent:
        yield _silent(pool.silent)
    yield from _waiting(pool)
    yield from _scheduler(pool)
    yield from _http(pool)
    for model, (times, why) in sorted(pool.trouble.items()):
        reason = f"it ended its worker {plural(times, 'time')} within the hour, the last time by: {why[:200]}"
        remedy = "read that worker's log; a model that does so again and again is not served there for an hour"
        yield unsure(f"trouble {model}", reason, remedy)


def _workers(pool: Pool) -> Finding:
    if not pool.workers:
        return skipped("workers", "none is at work now")
    shown = [f"{worker.name} ({', '.join(worker.models) or 'no model'})" for worker in pool.workers]
    return good("workers", f"{len(pool.workers)} at work: {some(shown, SHOWN)}")


def _silent(silent: Sequence[LostWorker]) -> Finding:
    shown = some([f"{one.name} (for {duration(one.silent_s)})" for one in silent], SHOWN)
    reason = f"registered, and say nothing: {shown}: killed, asleep or cut off"
    remedy = "see their machines and logs; those that are gone for good RQ forgets within minutes"
    return unsure("silent workers", reason, remedy)


def _scheduler(pool: Pool) -> Iterator[Finding]:
    """Schedules and webhooks are the scheduler's work: without either it is not missed."""
    if pool.scheduler is not None:
        yield good("scheduler", f"{pool.scheduler} is active")
    elif pool.schedules or pool.webhooks:
        waits = [plural(pool.schedules, "schedule")] if pool.schedules else []
        waits += [plural(pool.webhooks, "webhook")] if pool.webhooks else []
        verb = "waits" if pool.schedules + pool.webhooks == 1 else "wait"
        reason = f"none is active, and {' and '.join(waits)} {verb} for one"
        yield unsure("scheduler", reason, "promptmill scheduler, or `promptmill deploy scheduler` for good")


def _servers(store: Store) -> list[str]:
    """The HTTP servers that were there just now: their names and URLs."""
    known = cast("list[bytes]", store.connection.zrangebyscore(SERVERS, store.server_time() - SERVER_S, "+inf"))
    return [printable(item.decode(errors="replace")) for item in known]


def _http(pool: Pool) -> Iterator[Finding]:
    """Servers of the API over HTTP: a pool without one lacks nothing, unless batches wait for one."""
    if pool.servers:
        yield good("http", f"{plural(len(pool.servers), 'server')}: {some(pool.servers, SHOWN)}")
    elif pool.unchecked:
        count = "1 batch waits" if pool.unchecked == 1 else f"{pool.unchecked:,} batches wait"
        reason = f"no server is there, and {count} for one to check its file"
        yield unsure("http", reason, "promptmill serve, or `promptmill deploy serve` for good")


def _waiting(pool: Pool) -> Iterator[Finding]:
    served = {queue for worker in pool.workers for queue in worker.queues}
    unserved: dict[str, int] = {}
    for queue, shards in pool.waiting.items():
        if queue not in served and not PRIVATE.match(queue):
            group = served_by(queue, None)
            unserved[group] = unserved.get(group, 0) + shards
    for group, shards in sorted(unserved.items()):
        model, _, adapter = group.partition("+")
        flags = f"--model {model}" + (f" --adapter-path {adapter}" if adapter else "")
        wait = "waits" if shards == 1 else "wait"
        reason = f"no worker at work serves it, and {plural(shards, 'shard')} of its lines {wait}"
        yield unsure(f"waiting {group}", reason, f"promptmill worker {flags}")
    if not unserved:
        total = sum(pool.waiting.values())
        yield good(
            "waiting", f"{plural(total, 'shard')} for workers at work" if total else "nothing waits for a worker"
        )


def _answer(ask: Callable[[], T], otherwise: T) -> T:
    """The answer; ``otherwise`` where this user may not ask, or somebody put something else there."""
    try:
        return ask()
    except (ResponseError, RefusedError):  # what is refused within a script is not told from other errors
        return otherwise


def _trouble(connection: Redis) -> dict[str, tuple[int, str]]:
    """Models that ended workers; their names and reasons are what workers wrote."""
    keys = set(connection.scan_iter(match=f"{PREFIX}trouble:*", count=SCAN_STEP))
    sets = sorted(key.decode(errors="replace") for key in keys if not key.endswith(REASON.encode()))[:MOST]
    counts = _replies(connection, [("SCARD", key) for key in sets])
    reasons = _replies(connection, [("GETRANGE", key + REASON, 0, 500) for key in sets])
    found: dict[str, tuple[int, str]] = {}
    for key, times, why in zip(sets, counts, reasons, strict=True):
        match = TROUBLE.fullmatch(key)
        if match is not None and isinstance(times, int):
            said = why.decode(errors="replace") if isinstance(why, bytes) and why else "an unknown reason"
            found[match["group"]] = (times + found.get(match["group"], (0, ""))[0], said)
    return found


def _replies(connection: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What each command gets, an error where it is refused."""
    with connection.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        return pipe.execute(raise_on_error=False)
