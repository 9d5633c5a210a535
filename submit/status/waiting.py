"""Why a batch waits: what its state, the pool's workers and its queues say of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.batch import Batch
from jobs.store.orphans import Orphans
from submit.status.text import plural
from submit.status.worker_state import WorkerState
from submit.status.workers import served_by

__all__ = ["NO_WORKER", "RUN_ENDED", "STARTING", "serving", "unserved_models", "why_rest_waits", "why_waiting"]

NO_WORKER = "waiting: no worker serves"
STARTING = "waiting: its worker is starting"
RUN_ENDED = "waiting for its `promptmill run` to be started again"


def why_waiting(
    batch: Batch,
    queues: frozenset[str],
    workers: Sequence[WorkerState],
    *,
    pool_paused: bool = False,
    orphans: Orphans | None = None,
) -> str | None:
    """Why nothing of a batch seems to happen, for a person; None while its lines are generated, or it is done.

    ``queues`` are those of :meth:`Workers.queues_of`; ``orphans`` its shards that are in none.
    """
    if batch.done:
        return None
    if batch.paused:
        return f"paused: `promptmill resume {batch.id}` lets it go on"
    if "starts" in batch.times:
        return "waiting for its time"
    if any(worker.lines_of(batch.id) for worker in workers):
        return None
    if pool_paused:
        return "paused with the pool: `promptmill resume` lets it go on"
    at_hand = serving(batch, queues, workers)
    if not at_hand and batch.pool is not None:
        return RUN_ENDED
    if orphans is not None:
        return f"waiting: {_in_no_queue(orphans, workers)}"
    if missing := unserved_models(batch, queues, workers):
        return f"{NO_WORKER} {', '.join(missing)}"
    obstacles = [obstacle for worker in at_hand if (obstacle := _obstacle(batch, queues, worker)) is not None]
    busy = None if obstacles and len(obstacles) == len(at_hand) else _why_workers_do_not_begin(at_hand)
    return busy or (f"waiting: {obstacles[0]}" if obstacles else None)


def why_rest_waits(
    batch: Batch, queues: frozenset[str], workers: Sequence[WorkerState], orphans: Orphans | None = None
) -> str | None:
    """Why some lines of a batch wait while others of its lines are worked on; None where none does."""
    missing = unserved_models(batch, queues, workers)
    if batch.done or not (missing or orphans) or not any(worker.lines_of(batch.id) for worker in workers):
        return None
    why = f"no worker serves {', '.join(missing)}" if orphans is None else _in_no_queue(orphans, workers)
    return f"some of its lines wait: {why}"


def serving(batch: Batch, queues: frozenset[str], workers: Iterable[WorkerState]) -> list[WorkerState]:
    """The workers that may take from a batch's queues, while there is anything to take."""
    return [worker for worker in workers if queues & set(worker.queues) and not batch.done]


def unserved_models(batch: Batch, queues: frozenset[str], workers: Iterable[WorkerState]) -> list[str]:
    """The models that lines of a batch wait for and no worker serves; ``queues`` are those of
    :meth:`Workers.queues_of`."""
    if batch.done:
        return []
    return sorted({served_by(queue, batch.pool) for queue in queues.difference(*(worker.queues for worker in workers))})


def _in_no_queue(orphans: Orphans, workers: Sequence[WorkerState]) -> str:
    """That shards are in no queue, as after `rq empty`, and what puts them back."""
    lines = "" if orphans.lines is None else f" ({plural(orphans.lines, 'line')})"
    are, them = ("is", "it") if orphans.shards == 1 else ("are", "them")
    there = f"{plural(orphans.shards, 'shard')}{lines} {are} in no queue: "
    if workers:
        return f"{there}a worker puts {them} back within {orphans.back_within_s:.0f} s"
    return f"{there}start `promptmill worker`, which puts {them} back"


def _obstacle(batch: Batch, queues: frozenset[str], worker: WorkerState) -> str | None:
    """Why a worker takes nothing of a batch that it serves."""
    if batch.id in worker.refused:
        return f"{worker.name} refuses it: {worker.refused[batch.id]}"
    models = {served_by(queue, batch.pool) for queue in queues}
    failing = next((model for model in worker.failing if model.name in models), None)
    if failing is None or worker.state == "loading":
        return None
    # Without how long it takes until then: in a log each line would differ from the last.
    return f"{worker.name} cannot load {failing.name}: {failing.reason}; it is tried again"


def _why_workers_do_not_begin(at_hand: Sequence[WorkerState]) -> str | None:
    """Why the workers that serve a batch do nothing for it, where that will pass."""
    loading = [worker for worker in at_hand if worker.state == "loading"]
    if loading:
        model = loading[0].model
        return f"loading {model}" if model else "loading the model"
    if at_hand and all(worker.paused for worker in at_hand):
        return "waiting: its workers are paused, `promptmill workers` shows which"
    if at_hand and all(worker.state == "draining" for worker in at_hand):
        return "waiting: the worker at hand is stopping"
    if at_hand and all(worker.state in ("starting", "draining") for worker in at_hand):
        return STARTING
    return "waiting: workers are busy with other batches" if any(worker.in_flight for worker in at_hand) else None
