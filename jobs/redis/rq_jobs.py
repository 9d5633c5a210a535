"""The RQ jobs of shards, as RQ's own tools understand them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from jobs.store.keys import BatchKeys

if TYPE_CHECKING:
    from redis import Redis

JOB_FUNCTION = "worker.tasks.run_shard"
"""The only function a promptmill worker acts on, whatever a job's hash says. RQ's own retries are not asked for: with
them a plain RQ worker would take a shard thousands of times a second."""


class RqJobs:
    """RQ's side of a queue's shards: jobs that RQ's tools understand, with our function and JSON arguments."""

    def __init__(self, connection: Redis, queue: str, batch_id: str) -> None:
        from rq.job import Job, JobStatus
        from rq.serializers import JSONSerializer

        self._batch_id = batch_id
        # Made once and copied: making a job takes RQ longer than all else that is done for a shard.
        self._model = Job.create(
            JOB_FUNCTION,
            connection=connection,
            origin=queue,
            status=JobStatus.QUEUED,
            timeout=-1,
            result_ttl=0,
            serializer=JSONSerializer,
        )

    def save(self, pipe: Any, number: int, lines: int) -> None:
        """Store the job of a shard; it runs once its id is in a queue."""
        job = copy.copy(self._model)
        job.id = BatchKeys(self._batch_id).job_id(number)
        job.args = (self._batch_id, number, lines)
        job.description = f"{lines} lines of {self._batch_id}"
        job.save(pipeline=pipe)
