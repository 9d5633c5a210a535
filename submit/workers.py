"""What the pool's workers say they are doing, and what that means for a batch that waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from jobs.batch import Batch
from jobs.connect import foreign_data, replies
from jobs.keys import BatchKeys, worker_key
from submit.worker_state import WorkerState, parse_state

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["NO_WORKER", "RUN_ENDED", "Workers", "activity"]

NO_WORKER = "waiting for a worker"
RUN_ENDED = "waiting for its `promptmill run` to be started again"

SCAN_STEP = 5000
RESCAN_S = 5.0
"""New workers are looked for this often: finding them walks Redis, asking known ones does not."""
RESCAN_NONE_S = 1.0
"""And this often while there are none."""
MAX_STATE_BYTES = 1 << 20
"""Far above what a worker publishes: a longer value is no worker's, and is not loaded."""


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

    def queues_of(self, batch_id: str) -> frozenset[str]:
        """The queues a batch went to."""
        return self.queues_of_each([batch_id])[batch_id]

    def queues_of_each(self, batch_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """The queues that batches went to, in one round trip."""
        with self._connection.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.smembers(BatchKeys(batch_id).queues)
            found = [reply if isinstance(reply, set) else set() for reply in replies(pipe)]
        names = (frozenset(queue.decode(errors="replace") for queue in queues) for queues in found)
        return dict(zip(batch_ids, names, strict=True))


def served_by(queue: str, pool: str | None) -> str:
    """The model of a queue, with the adapter if there is one: what stands behind the priority and the pool."""
    return queue.split(":", 3 if pool is not None else 2)[-1]


def activity(batch: Batch, queues: frozenset[str], states: Iterable[WorkerState]) -> str | None:
    """Why nothing of a batch seems to happen, for a person; None while its lines are generated, or it is done."""
    states = list(states)
    if batch.paused:
        return f"paused: `promptmill resume {batch.id}` lets it go on"
    if "starts" in batch.times:
        return "waiting for its time"
    if batch.done or any(state.lines_of(batch.id) for state in states):
        return None
    serving = [state for state in states if queues & set(state.queues)]
    loading = [state for state in serving if state.state == "loading"]
    if loading:
        model = loading[0].model
        return f"loading {model}" if model else "loading the model"
    unserved = queues.difference(*(state.queues for state in serving))
    if not serving and batch.pool is not None:
        return RUN_ENDED
    others = any(state.in_flight for state in serving)
    if serving and all(state.paused for state in serving):
        return "waiting: its workers are paused, `promptmill workers` shows which"
    if unserved and not others:
        return f"{NO_WORKER} that serves {', '.join(sorted(served_by(queue, batch.pool) for queue in unserved))}"
    if all(state.state == "draining" for state in serving):
        return f"{NO_WORKER}: the one at hand is stopping"
    return "waiting: workers are busy with other batches" if others else None
