"""The pool's workers: what the live ones publish, and which ones RQ still lists that publish nothing any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from jobs.redis.connect import foreign_data, replies
from jobs.store.keys import RQ_WORKER, RQ_WORKERS, BatchKeys, worker_key
from jobs.store.steps import step
from submit.status.text import printable
from submit.status.worker_state import WorkerState, parse_state

if TYPE_CHECKING:
    from redis import Redis

SCAN_STEP = 5000
RESCAN_S = 5.0
"""New workers are looked for this often: finding them walks Redis, asking known ones does not."""
RESCAN_NONE_S = 1.0
"""And this often while there are none."""
MAX_STATE_BYTES = 1 << 20
"""Far above what a worker publishes: a longer value is no worker's, and is not loaded."""
MOST_LOOKED_AT = 1000
"""Of a queue that nobody serves so many shards are looked at from each end; a longer one has some of every batch."""
REGISTERED = ("last_heartbeat", "queues", "hostname")
MOST_REGISTERED = 1000
MOST_REGISTERED_BYTES = 1 << 16
"""Far above what RQ writes: longer fields are not loaded."""
QUIET_S = 10.0
"""A worker that starts is registered before it publishes; RQ's heartbeats come every ten seconds."""


class Workers:
    """Reads the states of live workers; names it knows are asked again without walking Redis."""

    def __init__(self, connection: Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._clock = clock
        self._keys: list[bytes] = []
        self._scanned_at: float | None = None

    def read(self) -> list[WorkerState]:
        """Workers that published within their last seconds, by name."""
        now = self._clock()
        patience = RESCAN_S if self._keys else RESCAN_NONE_S
        if self._scanned_at is None or now - self._scanned_at >= patience:
            self._keys = sorted(set(self._connection.scan_iter(match=worker_key("*"), count=SCAN_STEP)))
            self._scanned_at = now
        if not self._keys:
            return []
        stored = self._stored()
        self._keys = [key for key, raw in zip(self._keys, stored, strict=True) if raw]
        states = [parse_state(raw) for raw in stored if raw]
        return [state for state in states if state is not None]

    def _stored(self) -> list[bytes]:
        """What lies under the known keys, empty where there is nothing; of what is too long only the beginning."""
        with self._connection.pipeline(transaction=False) as pipe:
            for key in self._keys:
                pipe.getrange(key, 0, MAX_STATE_BYTES)
            found = replies(pipe)
        return [raw if isinstance(raw, bytes) else b"" for raw in found]

    def queues_of(self, batch_id: str, states: Iterable[WorkerState] = ()) -> frozenset[str]:
        """The queues a batch went to, but for those that none of these workers serves and that have nothing of it."""
        return self.queues_of_each([batch_id], states)[batch_id]

    def queues_of_each(self, batch_ids: Sequence[str], states: Iterable[WorkerState] = ()) -> dict[str, frozenset[str]]:
        """:meth:`queues_of` for several batches, in two round trips."""
        served = {queue for state in states for queue in state.queues}
        with self._connection.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.smembers(BatchKeys(batch_id).queues)
            stored = [reply if isinstance(reply, set) else set() for reply in replies(pipe)]
        found = {
            batch_id: {queue.decode(errors="replace") for queue in queues}
            for batch_id, queues in zip(batch_ids, stored, strict=True)
        }
        waiting = self._batches_in(sorted(set().union(*found.values()) - served))
        return {
            batch_id: frozenset(
                queue for queue in queues if queue in served or not waiting[queue].isdisjoint({batch_id, "*"})
            )
            for batch_id, queues in found.items()
        }

    def _batches_in(self, queues: Sequence[str]) -> dict[str, set[str]]:
        """The batches that have shards in these queues; ``*`` stands for all."""
        look = step(self._connection, "submit.status.lua", "queued_batches")
        with self._connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                keys = [f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate", f"rq:wip:{queue}"]
                look(keys=keys, args=[MOST_LOOKED_AT], client=pipe)
            found = replies(pipe)
        return {
            queue: {item.decode(errors="replace") for item in reply} if isinstance(reply, list) else {"*"}
            for queue, reply in zip(queues, found, strict=True)
        }


def served_by(queue: str, pool: str | None) -> str:
    """The model of a queue, with the adapter if there is one: what stands behind the priority and the pool."""
    return queue.split(":", 3 if pool is not None else 2)[-1]


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A worker that RQ still lists and that publishes nothing: killed, asleep, or cut off. Its last heartbeat is
    ``silent_s`` seconds old."""

    name: str
    silent_s: float
    hostname: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What ``workers --json`` prints."""
        return {
            "name": self.name,
            "state": "silent",
            "silent_s": round(self.silent_s, 1),
            "hostname": self.hostname,
        }


def read_lost_workers(connection: Redis, live: Set[str], now: float) -> list[LostWorker]:
    """Promptmill's workers in RQ's registry that are not among the ``live`` ones, by name; ``now`` is seconds since the
    epoch. Nobody where the registry may not be read: a submitter's user needs no right to it."""
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        listed = islice(connection.sscan_iter(RQ_WORKERS, count=MOST_REGISTERED), MOST_REGISTERED)
        names = {cast("bytes", key).decode(errors="replace").removeprefix(RQ_WORKER) for key in listed}
        registered = _registered(connection, sorted(names - live))
    except ResponseError as error:
        if isinstance(error, NoPermissionError) or foreign_data(error):
            return []
        raise
    found = [_lost_worker(name, fields, now) for name, fields in registered]
    return [worker for worker in found if worker is not None]


def _registered(connection: Redis, names: Sequence[str]) -> list[tuple[str, Any]]:
    """What RQ keeps of each worker, for those whose fields are of a worker's size: a list, or the server's error."""
    with connection.pipeline(transaction=False) as pipe:
        for name in names:
            for field in REGISTERED:
                pipe.hstrlen(RQ_WORKER + name, field)
        lengths = iter(replies(pipe))
        sizes = [(name, [next(lengths) for _ in REGISTERED]) for name in names]
        sound = [
            name
            for name, found in sizes
            if all(isinstance(size, int) and size < MOST_REGISTERED_BYTES for size in found)
        ]
        for name in sound:
            pipe.hmget(RQ_WORKER + name, REGISTERED)
        return list(zip(sound, replies(pipe), strict=True))


def _lost_worker(name: str, fields: Any, now: float) -> LostWorker | None:
    if not isinstance(fields, list) or fields[0] is None or fields[1] is None:
        return None
    heartbeat, queues, host = ((field or b"").decode(errors="replace") for field in fields)
    if not any(queue.startswith("promptmill:") for queue in queues.split(",")):
        return None
    try:
        beat = datetime.fromisoformat(heartbeat)
        silent_s = now - (beat if beat.tzinfo is not None else beat.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    if silent_s < QUIET_S:
        return None
    return LostWorker(printable(name), silent_s, printable(host) or None)
