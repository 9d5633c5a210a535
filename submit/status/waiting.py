"""Why a batch waits: what its state, the pool's workers and its queues say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.batch import Batch
from jobs.store.orphans import Orphans, known_orphans
from jobs.store.store import Store
from submit.status.pool_pause import pool_known_paused
from submit.status.text import plural
from submit.status.worker_state import WorkerState
from submit.status.workers import Workers, served_by

NO_WORKER = "waiting: no worker serves"
STARTING = "waiting: its worker is starting"
RUN_ENDED = "waiting for its `promptmill run` to be started again"


@dataclass(frozen=True, slots=True)
class BatchOutlook:
    """A batch and what the pool has for it: ``queues`` are those of :meth:`Workers.queues_of`, ``orphans`` its shards
    that are in none."""

    batch: Batch
    queues: frozenset[str]
    workers: Sequence[WorkerState]
    pool_paused: bool = False
    orphans: Orphans | None = None

    @property
    def serving(self) -> list[WorkerState]:
        """The workers that may take from the batch's queues, while there is anything to take."""
        return [worker for worker in self.workers if self.queues & set(worker.queues) and not self.batch.done]

    @property
    def unserved(self) -> list[str]:
        """The models that lines of the batch wait for and no worker serves."""
        if self.batch.done:
            return []
        unserved = self.queues.difference(*(worker.queues for worker in self.workers))
        return sorted({served_by(queue, self.batch.pool) for queue in unserved})

    @property
    def _worked_on(self) -> bool:
        """Whether a worker lists lines of the batch as in flight."""
        return any(worker.lines_of(self.batch.id) for worker in self.workers)

    @property
    def why_waiting(self) -> str | None:
        """Why nothing of the batch seems to happen, for a person; None while its lines are generated, or it is done."""
        batch = self.batch
        if batch.done:
            return None
        if batch.paused:
            return f"paused: `promptmill resume {batch.id}` lets it go on"
        if "starts" in batch.times:
            return "waiting for its time"
        if self._worked_on:
            return None
        if self.pool_paused:
            return "paused with the pool: `promptmill resume` lets it go on"
        serving = self.serving
        if not serving and batch.pool is not None:
            return RUN_ENDED
        if self.orphans is not None:
            return f"waiting: {self._in_no_queue(self.orphans)}"
        if self.unserved:
            return f"{NO_WORKER} {', '.join(self.unserved)}"
        obstacles = [obstacle for worker in serving if (obstacle := self._obstacle(worker)) is not None]
        busy = None if obstacles and len(obstacles) == len(serving) else _why_workers_do_not_begin(serving)
        return busy or (f"waiting: {obstacles[0]}" if obstacles else None)

    @property
    def why_rest_waits(self) -> str | None:
        """Why some lines of the batch wait while others of its lines are worked on; None where none does."""
        if self.batch.done or not self._worked_on:
            return None
        if self.orphans is not None:
            return f"some of its lines wait: {self._in_no_queue(self.orphans)}"
        return f"some of its lines wait: no worker serves {', '.join(self.unserved)}" if self.unserved else None

    def _in_no_queue(self, orphans: Orphans) -> str:
        """That shards are in no queue, as after `rq empty`, and what puts them back."""
        lines = "" if orphans.lines is None else f" ({plural(orphans.lines, 'line')})"
        are, them = ("is", "it") if orphans.shards == 1 else ("are", "them")
        there = f"{plural(orphans.shards, 'shard')}{lines} {are} in no queue: "
        if self.workers:
            return f"{there}a worker puts {them} back within {orphans.back_within_s:.0f} s"
        return f"{there}start `promptmill worker`, which puts {them} back"

    def _obstacle(self, worker: WorkerState) -> str | None:
        """Why a worker takes nothing of the batch that it serves."""
        if self.batch.id in worker.refused:
            return f"{worker.name} refuses it: {worker.refused[self.batch.id]}"
        models = {served_by(queue, self.batch.pool) for queue in self.queues}
        failing = next((model for model in worker.failing if model.name in models), None)
        if failing is None or worker.state == "loading":
            return None
        # Without how long it takes until then: in a log each line would differ from the last.
        return f"{worker.name} cannot load {failing.name}: {failing.reason}; it is tried again"


def read_outlooks(
    store: Store, reader: Workers, batches: Sequence[Batch], workers: Sequence[WorkerState]
) -> dict[str, BatchOutlook]:
    """The outlook of each batch by its id; ``workers`` are what ``reader`` has read."""
    ids, paused = [batch.id for batch in batches], pool_known_paused(store)
    queues, orphans = reader.queues_of_each(ids, workers), known_orphans(store.connection, ids)
    return {
        batch.id: BatchOutlook(batch, queues[batch.id], workers, paused, orphans.get(batch.id)) for batch in batches
    }


def _why_workers_do_not_begin(serving: Sequence[WorkerState]) -> str | None:
    """Why the workers that serve a batch do nothing for it, where that will pass."""
    loading = [worker for worker in serving if worker.state == "loading"]
    if loading:
        model = loading[0].model
        return f"loading {model}" if model else "loading the model"
    if serving and all(worker.paused for worker in serving):
        return "waiting: its workers are paused, `promptmill workers` shows which"
    if serving and all(worker.state == "draining" for worker in serving):
        return "waiting: the worker at hand is stopping"
    if serving and all(worker.state in ("starting", "draining") for worker in serving):
        return STARTING
    return "waiting: workers are busy with other batches" if any(worker.in_flight for worker in serving) else None
