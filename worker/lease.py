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
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import ConnectionError as RedisConnectionError, RedisError, TimeoutError as RedisTimeoutError
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
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
    from redis.client import Pipeline

__all__ = ["LEASE_S", "MAINTENANCE_S", "ORPHAN_S", "RENEW_S", "Lease", "ShardJob", "ShardWorker"]

log = logging.getLogger("promptmill.worker")

LEASE_S = 30
"""A shard whose worker has not renewed its lease for this long is given to another."""
RENEW_S = 10.0
MAINTENANCE_S = 5.0
LISTEN_AGAIN_S = 2.0
RECOVERY_LOCK_MS = 10_000
ORPHAN_S = 15.0
"""A job that was dequeued but not begun for this long lost its worker in between."""

RENEW = """
-- Renew leases by the server's clock, those that are still there. What is removed first frees memory, so that a full
-- server, which refuses to begin with anything that adds, lets the rest of the script through.
-- KEYS: started registry, then per lease: execution, the job's executions.
-- ARGV: seconds, then per lease: the registry's entry, execution id.
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
for i = 2, #ARGV, 2 do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
    redis.call('HSET', KEYS[i], 'last_heartbeat', now)
    redis.call('EXPIRE', KEYS[i], ARGV[1])
    redis.call('ZADD', KEYS[i + 1], now + ARGV[1], ARGV[i + 1])
    redis.call('EXPIRE', KEYS[i + 1], ARGV[1])
  end
end
"""

RECOVER = """
-- Give jobs whose workers died back to their queue, each once: those whose leases have run out, unless another lease on
-- them lives, and those dequeued but never begun for some time. All by the server's clock.
-- RQ's own clean-up does this in several steps, and calls functions that it finds named in the job's hash.
-- KEYS: started registry, queue list, intermediate list, hash of when jobs were first seen there.
-- ARGV: the prefix of jobs' hashes, seconds for which a job may be dequeued and not begun, then the registry's entries
-- of workers that are known to be dead.  Returns the jobs given back.
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local held, back = {}, {}
local function give_back(id)
  if held[id] or redis.call('EXISTS', ARGV[1] .. id) == 0 then return end
  held[id] = true
  redis.call('HSET', ARGV[1] .. id, 'status', 'queued')
  redis.call('LPUSH', KEYS[2], id)
  back[#back + 1] = id
end
local dead = {}
for i = 3, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then dead[#dead + 1] = ARGV[i] end
end
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  held[entry:match('^[^:]*')] = true
end
for _, entry in ipairs(dead) do give_back(entry:match('^[^:]*')) end
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], entry)
  give_back(entry:match('^[^:]*'))
end
local seen = {}
local listed = redis.call('HGETALL', KEYS[4])
for i = 1, #listed, 2 do seen[listed[i]] = tonumber(listed[i + 1]) end
redis.call('DEL', KEYS[4])
for _, id in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  if held[id] then
    redis.call('LREM', KEYS[3], 1, id)
  elseif now - (seen[id] or now) > tonumber(ARGV[2]) then
    redis.call('LREM', KEYS[3], 1, id)
    give_back(id)
  else
    redis.call('HSET', KEYS[4], id, seen[id] or now)
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
        self._renew_leases = store.connection.register_script(RENEW)
        self._recover_leases = store.connection.register_script(RECOVER)
        self._acknowledge = store.connection.register_script(ACKNOWLEDGE)
        self._hand_back = store.connection.register_script(HAND_BACK)

    # --- life ---

    def _set_connection(self, connection: Redis) -> Redis:
        """As it is: RQ would have it wait for a silent server for a minute."""
        return connection

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Go on listening for RQ's commands after an outage, silent ones included, which would end RQ's own thread."""
        if not isinstance(exc, RedisConnectionError | RedisTimeoutError):
            raise exc
        log.debug("not listening for commands: %s", exc)
        time.sleep(LISTEN_AGAIN_S)

    def start(self) -> None:
        """Register with RQ and listen for its commands (``shutdown``).

        Raises:
            RefusedError: another worker of this name is registered.
        """
        if self.connection.hget(self.key, "machine") == machine().encode():
            self.connection.delete(self.key)  # our process id, so it is gone: a container's first process has always 1
        try:
            self._register()
        except ValueError:
            raise RefusedError(
                f"a worker named {self.name} is registered already: give this one another --name, or wait two minutes "
                "if that one was killed"
            ) from None
        self.subscribe()
        self.set_state(WorkerStatus.IDLE)

    def _register(self) -> None:
        self.register_birth()
        self.connection.hset(self.key, "machine", machine())

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
            lease = Lease(job, execution)
            self._renew([lease], pipe)  # RQ wrote the time of this machine's clock
            pipe.execute()
        return lease

    def renew(self, leases: Iterable[Lease], connection: Redis) -> None:
        """Renew each lease and the worker's registration, on the connection of a thread that never touches MLX.

        A server that has forgotten the worker, as after FLUSHALL, gets to know it again.
        """
        with connection.pipeline() as pipe:
            self._renew(leases, pipe)
            pipe.execute()
        # Apart from the leases: a server that is full renews those, and refuses this.
        if connection.hexists(self.key, "machine"):
            with connection.pipeline() as pipe:
                self.heartbeat(pipeline=pipe)
                pipe.execute()
        else:
            connection.delete(self.key)
            self._register()

    def _renew(self, leases: Iterable[Lease], pipe: Pipeline) -> None:
        by_registry: dict[str, list[Lease]] = defaultdict(list)
        for lease in leases:
            by_registry[lease.job.started_job_registry.key].append(lease)
        for registry, held in by_registry.items():
            keys, arguments = [registry], [str(LEASE_S)]
            for lease in held:
                keys += [lease.execution.key, lease.executions_key]
                arguments += [lease.execution.composite_key, lease.execution.id]
            self._renew_leases(keys=keys, args=arguments, client=pipe)

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
            dead = self._locally_dead(registry, alive or process_alive)
            keys = [registry.key, queue.key, queue.intermediate_queue_key, f"{PREFIX}dequeued:{queue.name}"]
            for job_id in self._recover_leases(keys=keys, args=["rq:job:", ORPHAN_S, *dead]):
                log.info("%s lost its worker; queued again", job_id.decode(), extra={"action": "recover"})
            self.connection.delete(lock)

    def _locally_dead(self, registry: StartedJobRegistry, alive: Callable[[int], bool]) -> list[str]:
        """The registry's entries of workers of this machine whose process is gone."""
        dead = []
        here = machine().encode()
        for job_id, execution_id in registry.get_job_and_execution_ids(cleanup=False):
            holder = cast("bytes | None", self.connection.hget(f"rq:execution:{job_id}:{execution_id}", "worker_name"))
            name = (holder or b"").decode(errors="replace")
            pid = name.rpartition(".")[2]
            if not pid.isdecimal() or alive(int(pid)):
                continue
            if self.connection.hget(f"{self.redis_worker_namespace_prefix}{name}", "machine") == here:
                log.info("worker %s is gone; taking back %s", name, job_id, extra={"action": "recover"})
                dead.append(f"{job_id}:{execution_id}")
        return dead

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
