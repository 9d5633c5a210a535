"""What RQ's own tools see of schedules: the active scheduler, and the next run of each schedule as a scheduled job.

RQ's CronScheduler knows no time zones and no lock, takes its jobs from a Python file and passes over what it missed
without a word. So its part is that of RQ's RQScheduler: registration, its lock, the registry of scheduled jobs. Nothing
is read back from the registry: whatever is lost or put there by others is written anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from rq.job import Job, JobStatus
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from jobs.batch import timestamp

if TYPE_CHECKING:
    from redis import Redis

QUEUE = "promptmill:schedules"
SCHEDULE_FUNCTION = "jobs.tasks.run_schedule"
LOCK_S = 15
"""A scheduler that is silent for so long is no longer the active one."""
AGAIN_S = 30.0
"""What RQ sees is written anew that often, should somebody have changed it."""
JOB_TTL = timedelta(hours=1)
"""What a scheduler that died has written is gone by then."""


class Lock:
    """RQ's registration of a scheduler, and its lock on the queue: who holds it is the active one."""

    def __init__(self, connection: Redis, name: str) -> None:
        # RQ's lock and registration last for a minute and this interval: nothing else comes of it here.
        self._rq = RQScheduler(
            [QUEUE],
            connection,
            interval=LOCK_S - 60,
            logging_level=logging.WARNING,
            serializer=JSONSerializer,
            name=name,
        )
        # As it is: RQ would make one of its own.
        self._rq._connection = connection  # type: ignore[assignment]

    def refresh(self) -> bool:
        """Register again, and take or renew the lock; whether this process has it."""
        self._rq.register_birth()
        return bool(self._rq.acquire_locks())  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Deregister, and let the next take over at once."""
        self._rq.stop()  # type: ignore[no-untyped-call]


class RqMirror:
    """The next runs of schedules as jobs of RQ's. Only the active scheduler writes them."""

    def __init__(self, connection: Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._clock = clock
        self._shown: dict[str, int] = {}
        self._shown_at = float("-inf")

    def show(self, due: Mapping[str, int]) -> None:
        """Have RQ see these runs, and no others: the time by the schedule's name."""
        if due == self._shown and self._clock() - self._shown_at < AGAIN_S:
            return
        doomed = [Job.key_for(_job_id(*run)) for run in {*due.items(), *self._shown.items()}]
        registry, queue = f"rq:scheduled:{QUEUE}", f"rq:queue:{QUEUE}"
        with self._connection.pipeline() as pipe:
            # Earlier versions of promptmill queued runs.
            pipe.unlink(registry, queue, f"{queue}:intermediate", *doomed)
            for name, at in due.items():
                job = self._job(name, at)
                job.save(pipeline=pipe)
                pipe.expire(job.key, JOB_TTL)
                pipe.zadd(registry, {job.id: at})
            pipe.sadd("rq:queues", queue)
            pipe.execute(raise_on_error=False)  # what somebody put where RQ has its list of queues stops no schedule
        self._shown, self._shown_at = dict(due), self._clock()

    def _job(self, name: str, at: int) -> Job:
        return Job.create(
            SCHEDULE_FUNCTION,
            args=(name, at),
            connection=self._connection,
            id=_job_id(name, at),
            origin=QUEUE,
            status=JobStatus.SCHEDULED,
            timeout=-1,
            result_ttl=0,
            description=f"schedule {name}, {timestamp(at)}",
            serializer=JSONSerializer,
        )


def _job_id(name: str, at: int) -> str:
    return f"cron-{name}-{at}"
