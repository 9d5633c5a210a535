"""What the pool's workers say they are doing, and what that means for a batch that waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from jobs.batch import Batch
from jobs.redis.connect import foreign_data, replies
from jobs.store.keys import BatchKeys, worker_key
from jobs.store.orphans import Orphans
from submit.status.pool_pause import pool_paused
from submit.status.text import plural
from submit.status.worker_state import WorkerState, parse_state

if TYPE_CHECKING:
    from redis import Redis

    from jobs.store.store import Store

__all__ = [
    "NO_WORKER",
    "POOL_PAUSED",
    "RUN_ENDED",
    "STARTING",
    "Workers",
    "activity",
    "orphaned",
    "pool_is_paused",
    "unserved",
]

NO_WORKER = "waiting: no worker serves"
STARTING = "waiting: its worker is starting"
POOL_PAUSED = "the pool is paused: `promptmill resume` lets it go on"
RUN_ENDED = "waiting for its `promptmill run` to be started again"

SCAN_STEP = 5000
RESCAN_S = 5.0
"""New workers are looked for this often: finding them walks Redis, asking known ones does not."""
RESCAN_NONE_S = 1.0
"""And this often while there are none."""
MAX_STATE_BYTES = 1 << 20
"""Far above what a worker publishes: a longer value is no worker's, and is not loaded."""
MOST_LOOKED_AT = 1000
"""Of a queue that nobody serves so many shards are looked at from each end; a longer one has some of every batch."""

LEFT = """
-- Which batches have shards in a queue, waiting or held; '*': it is too long to say.
-- KEYS: the queue's list, RQ's list of what was just taken from it, its registry of what is held.  ARGV: how many to
-- look at.
local most = tonumber(ARGV[1])
if redis.call('LLEN', KEYS[1]) > 2 * most then return {'*'} end
local found, seen = {}, {}
local function note(entries)
    for _, entry in ipairs(entries) do
        local batch = string.match(entry, '^([%w_]+)%-')
        if batch and #batch <= 64 and not seen[batch] then
            seen[batch] = true
            found[#found + 1] = batch
        end
    end
end
note(redis.call('LRANGE', KEYS[1], 0, -1))
note(redis.call('LRANGE', KEYS[2], 0, most - 1))
note(redis.call('ZRANGE', KEYS[3], 0, most - 1))
return found
"""


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
            found = pipe.execute(raise_on_error=False)
        for error in found:
            if isinstance(error, Exception) and not foreign_data(error):
                raise error
        return [raw if isinstance(raw, bytes) else b"" for raw in found]

    def queues_of(self, batch_id: str, states: Iterable[WorkerState] = ()) -> frozenset[str]:
        """The queues a batch went to, but for those that none of these workers serves and that have nothing of it."""
        return self.queues_of_each([batch_id], states)[batch_id]

    def queues_of_each(self, batch_ids: Sequence[str], states: Iterable[WorkerState] = ()) -> dict[str, frozenset[str]]:
        """The queues that batches went to, but for those that none of these workers serves and that have nothing of
        theirs any more; in two round trips."""
        served = {queue for state in states for queue in state.queues}
        queues = self._named(batch_ids)
        left = self._left(sorted({queue for each in queues.values() for queue in each if queue not in served}))
        return {
            batch_id: frozenset(
                queue for queue in each if queue in served or not left[queue].isdisjoint({batch_id, "*"})
            )
            for batch_id, each in queues.items()
        }

    def _left(self, queues: Sequence[str]) -> dict[str, set[str]]:
        """The batches that have shards in these queues; ``*`` stands for all."""
        if not queues:
            return {}
        look = self._connection.register_script(LEFT)
        with self._connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                keys = [f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate", f"rq:wip:{queue}"]
                look(keys=keys, args=[MOST_LOOKED_AT], client=pipe)
            found = replies(pipe)
        return {
            queue: {item.decode(errors="replace") for item in reply} if isinstance(reply, list) else {"*"}
            for queue, reply in zip(queues, found, strict=True)
        }

    def _named(self, batch_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        with self._connection.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.smembers(BatchKeys(batch_id).queues)
            found = [reply if isinstance(reply, set) else set() for reply in replies(pipe)]
        names = (frozenset(queue.decode(errors="replace") for queue in queues) for queues in found)
        return dict(zip(batch_ids, names, strict=True))


def served_by(queue: str, pool: str | None) -> str:
    """The model of a queue, with the adapter if there is one: what stands behind the priority and the pool."""
    return queue.split(":", 3 if pool is not None else 2)[-1]


def pool_is_paused(store: Store) -> bool:
    """Whether the pool is paused, as far as this user of Redis may know."""
    from redis.exceptions import NoPermissionError

    try:
        return pool_paused(store)
    except NoPermissionError:
        return False


def orphaned(orphans: Orphans, states: Sequence[WorkerState]) -> str:
    """That shards are in no queue, as where `rq empty` was said, and what becomes of them."""
    lines = "" if orphans.lines is None else f" ({plural(orphans.lines, 'line')})"
    are, them = ("is", "it") if orphans.shards == 1 else ("are", "them")
    there = f"{plural(orphans.shards, 'shard')}{lines} {are} in no queue: "
    if states:
        return f"{there}a worker puts {them} back within {orphans.back_within_s:.0f} s"
    return f"{there}start `promptmill worker`, which puts {them} back"


def activity(
    batch: Batch,
    queues: frozenset[str],
    states: Iterable[WorkerState],
    *,
    pool_paused: bool = False,
    orphans: Orphans | None = None,
) -> str | None:
    """Why nothing of a batch seems to happen, for a person; None while its lines are generated, or it is done.

    ``queues`` are those of :meth:`Workers.queues_of`; ``orphans`` its shards that are in none.
    """
    states = list(states)
    if batch.done:
        return None
    if batch.paused:
        return f"paused: `promptmill resume {batch.id}` lets it go on"
    if "starts" in batch.times:
        return "waiting for its time"
    if any(state.lines_of(batch.id) for state in states):
        return None
    if pool_paused:
        return "paused with the pool: `promptmill resume` lets it go on"
    serving = [state for state in states if queues & set(state.queues)]
    if not serving and batch.pool is not None:
        return RUN_ENDED
    if orphans is not None:
        return f"waiting: {orphaned(orphans, states)}"
    if missing := unserved(batch, queues, states):
        return f"{NO_WORKER} {', '.join(missing)}"
    troubles = [trouble for state in serving if (trouble := _trouble(batch, queues, state)) is not None]
    served = None if troubles and len(troubles) == len(serving) else _served(serving)
    return served or (f"waiting: {troubles[0]}" if troubles else None)


def _trouble(batch: Batch, queues: frozenset[str], state: WorkerState) -> str | None:
    """Why a worker takes nothing of a batch that it serves."""
    if batch.id in state.refused:
        return f"{state.name} refuses it: {state.refused[batch.id]}"
    models = {served_by(queue, batch.pool) for queue in queues}
    failing = next((model for model in state.failing if model.name in models), None)
    if failing is None or state.state == "loading":
        return None
    # Without how long it takes until then: in a log each line would differ from the last.
    return f"{state.name} cannot load {failing.name}: {failing.reason}; it is tried again"


def _served(serving: Sequence[WorkerState]) -> str | None:
    """Why the workers that serve a batch do nothing for it."""
    loading = [state for state in serving if state.state == "loading"]
    if loading:
        model = loading[0].model
        return f"loading {model}" if model else "loading the model"
    others = any(state.in_flight for state in serving)
    if serving and all(state.paused for state in serving):
        return "waiting: its workers are paused, `promptmill workers` shows which"
    if serving and all(state.state == "draining" for state in serving):
        return "waiting: the worker at hand is stopping"
    if serving and all(state.state in ("starting", "draining") for state in serving):
        return STARTING
    return "waiting: workers are busy with other batches" if others else None


def unserved(batch: Batch, queues: frozenset[str], states: Iterable[WorkerState]) -> list[str]:
    """The models that lines of a batch wait for and no worker serves; ``queues`` are those of
    :meth:`Workers.queues_of`."""
    if batch.done:
        return []
    return sorted({served_by(queue, batch.pool) for queue in queues.difference(*(state.queues for state in states))})
