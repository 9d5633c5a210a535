"""RQ's side of the worker: registration, safe dequeueing, leases by liveness, acknowledgement, recovery.

RQ's own work loop runs one job at a time and sends no heartbeat from a process that cannot fork; a worker that
keeps a batch full holds several jobs at once and must never fork. So this class keeps RQ's registration,
registries and commands (``rq info``, ``rq suspend`` and dashboards see an ordinary worker), and replaces its loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended
from rq.worker.base import BaseWorker, WorkerStatus

from jobs.errors import RefusedError
from jobs.keys import PREFIX
from jobs.store import JOB_FUNCTION, Store

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["LEASE_S", "MAINTENANCE_S", "RENEW_S", "Lease", "ShardJob", "ShardWorker"]

log = logging.getLogger("promptmill.worker")

LEASE_S = 30
"""A shard whose worker has not renewed its lease for this long is given to another."""
RENEW_S = 10.0
MAINTENANCE_S = 5.0
RECOVERY_LOCK_MS = 10_000
ORPHAN_S = 15.0
"""A job that was dequeued but not begun for this long lost its worker in between."""

REQUEUE = """
-- Put a job that was dequeued and never begun back to the front of its queue, once.
-- KEYS: intermediate list, queue list.  ARGV: job id.
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""


RECOVER = """
-- Give jobs whose leases have run out back to their queue, each once, unless another lease on it lives.
-- RQ's own clean-up does this in several steps, and calls functions that it finds named in the job's hash.
-- KEYS: started registry, queue list.  ARGV: now, the prefix of jobs' hashes.  Returns the jobs given back.
local held, back = {}, {}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf')) do
  held[entry:match('^[^:]*')] = true
end
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])) do
  local id = entry:match('^[^:]*')
  redis.call('ZREM', KEYS[1], entry)
  if not held[id] and redis.call('EXISTS', ARGV[2] .. id) == 1 then
    held[id] = true
    redis.call('HSET', ARGV[2] .. id, 'status', 'queued')
    redis.call('LPUSH', KEYS[2], id)
    back[#back + 1] = id
  end
end
return back
"""

ACKNOWLEDGE = """
-- End a lease and remove its job; a job that is another's by now (taken back, or retried) stays.
-- KEYS: started registry, job, execution, the job's executions.  ARGV: the registry's entry.
redis.call('DEL', KEYS[3])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[2], KEYS[4])
return 1
"""

HAND_BACK = """
-- Give up a lease and put its job back into its queue; a lease that was taken back already changes nothing.
-- KEYS: started registry, queue list, job, execution, the job's executions.
-- ARGV: the registry's entry, job id, LPUSH or RPUSH.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[4], KEYS[5])
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[3], 'status', 'queued')
redis.call(ARGV[3], KEYS[2], ARGV[2])
return 1
"""


def machine() -> str:
    """Names the space in which a process id means something: hosts, and containers of one host, may share a name."""
    space = ""
    with contextlib.suppress(OSError):  # Linux alone has it
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{uuid.getnode():012x}{space}"


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A dequeued RQ job, checked to be one of ours."""

    job: Job
    queue: str
    batch_id: str
    number: int
    lines: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Our hold on a shard in RQ's registries, kept alive by :meth:`ShardWorker.renew`."""

    job: Job
    execution: Execution

    @property
    def job_id(self) -> str:
        return str(self.job.id)

    @property
    def executions_key(self) -> str:
        return f"rq:executions:{self.job_id}"


class ShardWorker(BaseWorker):
    """An RQ worker for shards: visible to RQ's tools, never forking, JSON only, running only our own function."""

    def __init__(self, store: Store, queues: Sequence[str], name: str) -> None:
        super().__init__(list(queues), name=name, connection=store.connection, serializer=JSONSerializer, worker_ttl=60)
        self.store = store
        self._requeue_orphan = store.connection.register_script(REQUEUE)
        self._recover_leases = store.connection.register_script(RECOVER)
        self._acknowledge = store.connection.register_script(ACKNOWLEDGE)
        self._hand_back = store.connection.register_script(HAND_BACK)

    # --- life ---

    def start(self) -> None:
        """Register with RQ and listen for its commands (``shutdown``).

        Raises:
            RefusedError: another worker of this name is registered.
        """
        if self.connection.hget(self.key, "machine") == machine().encode():
            self.connection.delete(self.key)  # our process id, so it is gone: a container's first process has always 1
        try:
            self.register_birth()
        except ValueError:
            raise RefusedError(
                f"a worker named {self.name} is registered already: give this one another --name, or wait two minutes "
                "if that one was killed"
            ) from None
        self.connection.hset(self.key, "machine", machine())
        self.subscribe()
        self.set_state(WorkerStatus.IDLE)

    def end(self) -> None:
        """Deregister."""
        self.register_death()
        self.unsubscribe()

    @property
    def suspended(self) -> bool:
        """Whether ``rq suspend`` holds all workers."""
        return bool(is_suspended(self.connection))

    def show_state(self, *, busy: bool) -> None:
        self.set_state(WorkerStatus.BUSY if busy else WorkerStatus.IDLE)

    def filled(self, queues: Sequence[str]) -> list[str]:
        """Those of some queues that have jobs waiting."""
        with self.connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(f"rq:queue:{queue}")
            return [queue for queue, length in zip(queues, pipe.execute(), strict=True) if length]

    # --- one shard's way ---

    def take(self, queues: Sequence[str]) -> ShardJob | None:
        """The next shard's job, in RQ's safe way; it stays in the intermediate list until :meth:`begin`.

        Jobs that are not ours (a foreign function, other arguments, pickled data) are refused and logged.
        """
        while found := self.store.take(queues):
            queue, job_id = found
            try:
                return self._checked(queue, Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer))
            except NoSuchJobError:
                self._drop(queue, job_id)
            except RedisError:
                raise
            except Exception as error:  # whoever may write to Redis can make RQ's parsing raise anything
                log.warning("refused job %s of queue %s: %s", job_id, queue, error, extra={"action": "refuse_job"})
                self._drop(queue, job_id)
                self.connection.hset(f"rq:job:{job_id}", "status", JobStatus.FAILED.value)
        return None

    def _checked(self, queue: str, job: Job) -> ShardJob:
        if job.func_name != JOB_FUNCTION:
            raise RefusedError(f"its function is {job.func_name!r}, not promptmill's")
        batch_id, number, lines = job.args
        if not (isinstance(batch_id, str) and type(number) is int and type(lines) is int and not job.kwargs):
            raise RefusedError("its arguments are not a shard's")
        if job.id != f"{batch_id}-{number}":
            raise RefusedError("its id is not its shard's")
        return ShardJob(job, queue, batch_id, number, lines)

    def begin(self, shard: ShardJob) -> Lease:
        """Take the lease: from now on a lost worker's shard comes back by itself."""
        job, queue = shard.job, Queue(shard.queue, connection=self.connection)
        with self.connection.pipeline() as pipe:
            execution = Execution.create(job, LEASE_S, pipeline=pipe, worker_name=self.name)
            job.prepare_for_execution(self.name, pipeline=pipe)
            pipe.lrem(queue.intermediate_queue_key, 1, job.id)
            # Else a later stay in that list would look as if it had begun with this one.
            pipe.delete(queue.intermediate_queue.get_first_seen_key(job.id))
            pipe.execute()
        return Lease(job, execution)

    def renew(self, leases: Iterable[Lease], connection: Redis) -> None:
        """Renew the worker's registration and each lease, on the connection of a thread that never touches MLX."""
        with connection.pipeline() as pipe:
            self.heartbeat(pipeline=pipe)
            for lease in leases:
                lease.execution.heartbeat(lease.job.started_job_registry, LEASE_S, pipeline=pipe)
            pipe.execute()

    def acknowledge(self, lease: Lease, seconds: float) -> None:
        """The shard is done: its job leaves RQ. ``seconds`` is how long it was held."""
        job, execution = lease.job, lease.execution
        # Not RQ's own delete(): it stumbles over the executions that dead workers left behind.
        keys = [job.started_job_registry.key, job.key, execution.key, lease.executions_key]
        if self._acknowledge(keys=keys, args=[execution.composite_key]):
            with self.connection.pipeline() as pipe:
                pipe.hincrby(self.key, "successful_job_count", 1)
                pipe.hincrbyfloat(self.key, "total_working_time", seconds)
                pipe.execute()

    def hand_back(self, lease: Lease, queue: str, *, front: bool = True) -> None:
        """Give a shard back to its queue at once; nothing happens when the lease was taken back already."""
        job, execution = lease.job, lease.execution
        keys = [job.started_job_registry.key, f"rq:queue:{queue}", job.key, execution.key, lease.executions_key]
        self._hand_back(keys=keys, args=[execution.composite_key, lease.job_id, "LPUSH" if front else "RPUSH"])

    def _drop(self, queue: str, job_id: str) -> None:
        Queue(queue, connection=self.connection).intermediate_queue.remove(job_id)

    # --- recovery ---

    def recover(self, *, alive: Callable[[int], bool] | None = None) -> None:
        """Return to their queues the shards whose workers died: expired leases, and jobs dequeued but never begun.

        Workers of this machine whose process is gone are not waited for. ``alive`` tells whether a process id lives.
        """
        for queue in self.queues:
            # Not RQ's own lock: a worker that dies with it would stop all recovery for a quarter of an hour.
            lock = f"{PREFIX}recover:{queue.name}"
            if not self.connection.set(lock, self.name, nx=True, px=RECOVERY_LOCK_MS):
                continue
            registry = StartedJobRegistry(
                queue.name, connection=self.connection, serializer=JSONSerializer, job_class=Job
            )
            self._expire_local_dead(registry, alive or process_alive)
            for job_id in self._recover_leases(keys=[registry.key, queue.key], args=[repr(time.time()), "rq:job:"]):
                log.info("lease of %s has run out; queued again", job_id.decode(), extra={"action": "recover"})
            self._recover_orphans(queue, registry)
            self.connection.delete(lock)

    def _expire_local_dead(self, registry: StartedJobRegistry, alive: Callable[[int], bool]) -> None:
        here = machine().encode()
        for job_id, execution_id in registry.get_job_and_execution_ids(cleanup=False):
            holder = cast("bytes | None", self.connection.hget(f"rq:execution:{job_id}:{execution_id}", "worker_name"))
            name = (holder or b"").decode(errors="replace")
            pid = name.rpartition(".")[2]
            if not pid.isdecimal() or alive(int(pid)):
                continue
            if self.connection.hget(f"{self.redis_worker_namespace_prefix}{name}", "machine") == here:
                log.info("worker %s is gone; taking back %s", name, job_id, extra={"action": "recover"})
                self.connection.zadd(registry.key, {f"{job_id}:{execution_id}": 0}, xx=True)

    def _recover_orphans(self, queue: Queue, registry: StartedJobRegistry) -> None:
        waiting: IntermediateQueue = queue.intermediate_queue
        started = set(registry.get_job_ids(cleanup=False))
        for job_id in waiting.get_job_ids():
            if job_id in started or waiting.set_first_seen(job_id):
                continue
            seen = waiting.get_first_seen(job_id)
            if seen is not None and self.store.now() - seen.timestamp() > ORPHAN_S:
                self._requeue_orphan(keys=[waiting.key, queue.key], args=[job_id])
                self.connection.delete(waiting.get_first_seen_key(job_id))

    def served_by(self, queue: str) -> frozenset[str]:
        """Names of the live workers on a queue, this one among them."""
        workers = BaseWorker.all(queue=Queue(queue, connection=self.connection))
        return frozenset(worker.name for worker in workers) | {self.name}


def process_alive(pid: int) -> bool:
    """Whether a process of this host lives (a zombie does not matter: its parent reaps it)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
