"""The function that shard jobs name. RQ's own workers would call it; promptmill's never do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.store.steps import step
from jobs.tasks import refuse

if TYPE_CHECKING:
    from rq.job import Job


def run_shard(batch_id: str, number: int, lines: int) -> None:
    """Refuse: a shard needs a worker that keeps a model loaded. It goes back to the end of its queue at once.

    Raises:
        RuntimeError: always.
    """
    from rq import get_current_job

    job = get_current_job()
    if job is not None:
        _hand_back(job)
    refuse(
        job,
        f"shard {number} of {batch_id} ({lines} lines) was taken by a plain RQ worker: "
        "start `promptmill worker` on this queue instead",
    )


def _hand_back(job: Job) -> None:
    """Give up this worker's lease on a job, and put it back to its queue."""
    hand_back = step(job.connection, "worker.rq.lua", "hand_back")
    for execution in job.get_executions():
        if job.connection.hget(execution.key, "worker_name") == str(job.worker_name).encode():
            keys = [job.started_job_registry.key, job.key, execution.key, f"rq:executions:{job.id}"]
            keys.append(f"rq:queue:{job.origin}")
            hand_back(keys=keys, args=[execution.composite_key, job.id, "RPUSH"])
