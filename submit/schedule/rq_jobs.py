"""The next run of each schedule as a job of RQ's, where RQ's own tools see it: scheduled, then queued, then taken.

RQ's CronScheduler knows no time zones and no lock, takes its jobs from a Python file and passes over what it missed
without a word; so its part is the RQScheduler: registration, its lock, the registry of scheduled jobs. Of that, the
move to the queue is done here in one step and by the server's clock, and loads no job: of a job nothing is believed
but its id, and that only where it names a run that its schedule has due. Whatever is lost or put here by others is
made again, or removed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from rq.job import Job, JobStatus
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from jobs.redis.connect import foreign_data
from jobs.store.store import Store

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["LOCK_S", "QUEUE", "DueRun", "Lock", "RunQueue"]

log = logging.getLogger("promptmill.scheduler")

QUEUE = "promptmill:schedules"
JOB_FUNCTION = "jobs.tasks.run_schedule"
LOCK_S = 15
"""A scheduler that is silent for so long is no longer the active one."""
MOST_LISTED = 10_000
_JOB_ID = re.compile(r"cron-([A-Za-z0-9][A-Za-z0-9_-]*)-([0-9]{1,12})")
_RQ_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"

DueRun = tuple[str, int]
"""A schedule's name, and when its run is due in seconds since the epoch."""

SYNC = """
-- Compare what RQ has with what is wanted.  KEYS: registry, queue, intermediate list, registry of what is at work.
-- ARGV: most entries looked at, then ids.  Returns those that are in none of them; and what was removed, shortened: a
-- key of a foreign type, entries of the registry that are not wanted.
local removed, wanted, missing = {}, {}, {}
for position, kind in ipairs({'zset', 'list', 'list', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= 'none' and found ~= kind then
    redis.call('UNLINK', KEYS[position])
    removed[#removed + 1] = KEYS[position]
  end
end
for i = 2, #ARGV do
  wanted[ARGV[i]] = true
  if not (redis.call('ZSCORE', KEYS[1], ARGV[i]) or redis.call('LPOS', KEYS[2], ARGV[i])
      or redis.call('LPOS', KEYS[3], ARGV[i])) then missing[#missing + 1] = ARGV[i] end
end
for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  if not wanted[entry] then
    redis.call('ZREM', KEYS[1], entry)
    removed[#removed + 1] = entry:sub(1, 80)
  end
end
return {missing, removed}
"""

MOVE = """
-- Move what is due from RQ's registry to the queue.  KEYS: registry, queue, RQ's set of queues.
-- ARGV: now, now as RQ writes it.  Returns how many were moved.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 100)
for _, id in ipairs(due) do
  local job = 'rq:job:' .. id
  if redis.call('TYPE', job).ok == 'hash' then
    redis.call('HSET', job, 'status', 'queued', 'enqueued_at', ARGV[2])
  end
  redis.call('RPUSH', KEYS[2], id)
  redis.pcall('SADD', KEYS[3], KEYS[2])
  redis.call('ZREM', KEYS[1], id)
end
return #due
"""


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
        """Show a sign of life, and take or keep the lock; whether it is held."""
        self._rq.register_birth()
        return bool(self._rq.acquire_locks())  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Deregister, and let the next take over at once."""
        self._rq.stop()  # type: ignore[no-untyped-call]


class RunQueue:
    """The jobs of schedules' runs. Only the active scheduler uses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection = store.connection
        self._sync = store.connection.register_script(SYNC)
        self._move = store.connection.register_script(MOVE)
        self._registry = f"rq:scheduled:{QUEUE}"
        self._list = f"rq:queue:{QUEUE}"
        self._intermediate = f"{self._list}:intermediate"

    def sync(self, wanted: Mapping[DueRun, str]) -> None:
        """Have a job in RQ for each of the wanted runs, which come with a description, and for no other."""
        ids = {_job_id(run): run for run in wanted}
        keys = [self._registry, self._list, self._intermediate, f"rq:wip:{QUEUE}"]
        missing, removed = self._sync(keys=keys, args=[MOST_LISTED, *ids])
        for entry in removed:
            text = entry.decode(errors="replace")
            if _JOB_ID.fullmatch(text):  # the run of a schedule that was removed or replaced
                self._connection.unlink(f"rq:job:{text}")
            else:
                log.warning(
                    "removed %.80r, which is not ours, from RQ's schedule", text, extra={"action": "refuse_job"}
                )
        with self._connection.pipeline() as pipe:
            for job_id in (item.decode() for item in missing):
                run = ids[job_id]
                job = Job.create(
                    JOB_FUNCTION,
                    args=run,
                    connection=self._connection,
                    id=job_id,
                    origin=QUEUE,
                    status=JobStatus.SCHEDULED,
                    timeout=-1,
                    result_ttl=0,
                    description=wanted[run],
                    serializer=JSONSerializer,
                )
                pipe.unlink(job.key)
                job.save(pipeline=pipe)
                pipe.zadd(self._registry, {job_id: run[1]})
            pipe.execute()

    def move(self) -> int:
        """Queue the jobs that are due; how many there were."""
        now = self._store.server_time()
        written = datetime.fromtimestamp(now, UTC).strftime(_RQ_TIME)
        return int(cast("int", self._move(keys=[self._registry, self._list, "rq:queues"], args=[repr(now), written])))

    def reclaim(self) -> None:
        """Queue again what was taken and not seen to by a scheduler that died."""
        while self._connection.lmove(self._intermediate, self._list, "RIGHT", "LEFT"):
            pass

    def take(self) -> tuple[DueRun, float | None] | None:
        """The next run that was queued, and when that was, if RQ's job says so.

        Entries that name no run are dropped and logged.
        """
        while found := self._store.take([QUEUE]):
            job_id = found[1]
            match = _JOB_ID.fullmatch(job_id)
            if match is not None:
                return (match[1], int(match[2])), self._queued_at(job_id)
            log.warning("refused entry %.80r of the queue of schedules", job_id, extra={"action": "refuse_job"})
            self._drop(job_id)
        return None

    def done(self, run: DueRun) -> None:
        """A run that was taken is in its schedule's hands: its job leaves RQ."""
        self._drop(_job_id(run))

    def _drop(self, job_id: str) -> None:
        with self._connection.pipeline() as pipe:
            pipe.lrem(self._intermediate, 1, job_id)
            pipe.unlink(f"rq:job:{job_id}")
            pipe.execute()

    def _queued_at(self, job_id: str) -> float | None:
        from redis.exceptions import ResponseError

        key = f"rq:job:{job_id}"
        try:
            if not 0 < self._connection.hstrlen(key, "enqueued_at") <= 40:
                return None
            text = cast("bytes", self._connection.hget(key, "enqueued_at") or b"")
            return datetime.strptime(text.decode(), _RQ_TIME).replace(tzinfo=UTC).timestamp()
        except ValueError:
            return None
        except ResponseError as error:
            if not foreign_data(error):
                raise
            return None


def _job_id(run: DueRun) -> str:
    return f"cron-{run[0]}-{run[1]}"
