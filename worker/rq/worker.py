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
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import (
    ConnectionError as RedisConnectionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat
from rq.worker.base import BaseWorker, WorkerStatus
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from jobs.errors import RefusedError
from jobs.redis.connect import foreign_data, refusing
from jobs.redis.permissions import refusals
from jobs.store.keys import PAUSED, PREFIX
from jobs.store.orphans import remake_job
from jobs.store.steps import step
from jobs.store.store import Store
from worker.rq.entries import ShardJob, read_job, short_field

if TYPE_CHECKING:
    from redis import Redis

__all__ = [
    "LEASE_S",
    "MAINTENANCE_S",
    "RENEW_S",
    "UNBEGUN_S",
    "UNWATCHED_S",
    "Lease",
    "ShardJob",
    "ShardWorker",
    "check_permissions",
]

log = logging.getLogger("promptmill.worker")

LEASE_S = 30
"""A shard whose worker has not renewed its lease for this long is given to another."""
RENEW_S = 10.0
MAINTENANCE_S = 5.0
LISTEN_AGAIN_S = 2.0
UNWATCHED_S = LEASE_S / 2
"""Where no worker looked after leases for this long, one of them may have run out although its holder lives: they are
renewed every 10 s, and last 30."""
RECOVERY_LOCK_MS = 10_000
MOST_CLEANED = 1000
"""Entries of a registry that are looked at in one go: a pool has a handful."""
UNBEGUN_S = 15.0
"""A job that was dequeued but not begun for this long lost its worker in between."""


def machine() -> str:
    """Names the space in which a process id means something: hosts, and containers of one host, may share a name."""
    space = ""
    with contextlib.suppress(OSError):  # Linux alone has it
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{uuid.getnode():012x}{space}"


@dataclass(frozen=True, slots=True)
class Lease:
    """Our hold on a shard in RQ's registries, kept alive by :meth:`ShardWorker.renew`."""

    job: Job
    execution: Execution

    @property
    def job_id(self) -> str:
        return str(self.job.id)

    @property
    def keys(self) -> list[str]:
        """What all steps with a lease change: the registry of leases, the job, the execution, the job's executions."""
        executions = f"rq:executions:{self.job_id}"
        return [self.job.started_job_registry.key, self.job.key, self.execution.key, executions]

    @property
    def entry(self) -> str:
        """Its entry in the registry."""
        return str(self.execution.composite_key)


class ShardWorker(BaseWorker):
    """An RQ worker for shards: visible to RQ's tools, never forking, JSON only, running only our own function."""

    def __init__(self, store: Store, queues: Sequence[str], name: str, instance: str | None = None) -> None:
        super().__init__(list(queues), name=name, connection=store.connection, serializer=JSONSerializer, worker_ttl=60)
        self.store = store
        self.instance = instance or f"{name}/{uuid.uuid4().hex}"
        self._unsound: set[str] = set()

    def _step(self, name: str, keys: Sequence[str], args: Iterable[Any] = (), client: Redis | None = None) -> Any:
        """Do a step of the folder ``worker/rq/lua``."""
        return step(self.connection, "worker.rq.lua", name)(keys=keys, args=args, client=client)

    # --- registration ---

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
        with contextlib.suppress(RefusedError), refusing(PAUSED):
            self.connection.hdel(PAUSED, self.name)  # who was paused by this name is gone
        self.subscribe()
        self.set_state(WorkerStatus.IDLE)

    def _register(self) -> None:
        self.register_birth()
        self.connection.hset(self.key, mapping={"machine": machine(), "life": self.instance})

    def end(self) -> None:
        """Deregister."""
        self.register_death()
        self.unsubscribe()

    def show_state(self, *, busy: bool) -> None:
        with contextlib.suppress(OutOfMemoryError):
            self.set_state(WorkerStatus.BUSY if busy else WorkerStatus.IDLE)

    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        """How many jobs wait in those of some queues that have any, in the order of the queues."""
        with self.connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(f"rq:queue:{queue}")
            lengths = pipe.execute(raise_on_error=False)
        for error in lengths:
            if isinstance(error, RedisError) and not foreign_data(error):
                raise error
        found = zip(queues, lengths, strict=True)
        return {queue: length for queue, length in found if isinstance(length, int) and length}

    # --- one shard's way ---

    def take(self, queues: Sequence[str]) -> ShardJob | None:
        """The next shard's job, in RQ's safe way; it stays in the intermediate list until :meth:`begin`.

        Entries that are not ours (a foreign function, other arguments, pickled data, keys of another type) are
        refused and logged.
        """
        while found := self.store.take(queues):
            queue, job_id = found
            try:
                shard = self._read(queue, job_id)
            except RefusedError as error:
                log.warning("refused job %.80r of queue %s: %s", job_id, queue, error, extra={"action": "refuse_job"})
                self._drop(queue, job_id)
                with contextlib.suppress(ResponseError):  # it may be no hash at all
                    self._step("mark_failed", [f"rq:job:{job_id}"])
                continue
            if shard is not None:
                return shard
            self._drop(queue, job_id)
        return None

    def _read(self, queue: str, job_id: str) -> ShardJob | None:
        """The shard of a queue's entry, also where its job was lost; None where there is no such shard to run."""
        shard = read_job(self.connection, queue, job_id)
        batch_id, _, number = job_id.rpartition("-")
        if shard is None and remake_job(self.store, batch_id, int(number), queue):
            shard = read_job(self.connection, queue, job_id)
        return shard

    def begin(self, shard: ShardJob) -> Lease | None:
        """Take the lease: from now on a lost worker's shard comes back by itself. None: it was given to another since
        it was taken, as when this worker slept in between."""
        job, queue = shard.job, Queue(shard.queue, connection=self.connection)
        lease = Lease(job, Execution(uuid.uuid4().hex, job.id, self.connection, self.name))
        arguments = [lease.entry, lease.execution.id, job.id, LEASE_S, self.name, utcformat(now())]
        if self._step("lease", [*lease.keys, queue.intermediate_queue_key], arguments):
            return lease
        log.info("%s was given to another worker meanwhile", job.id, extra={"action": "not_begun"})
        return None

    def renew(self, leases: Iterable[Lease], connection: Redis) -> None:
        """Renew each lease, on the connection of a thread that never touches MLX."""
        keys, arguments = list[str](), [str(LEASE_S)]
        for lease in leases:
            keys += lease.keys
            arguments += [lease.entry, lease.execution.id]
        if keys:
            self._step("renew", keys, arguments, connection)

    def show_alive(self, connection: Redis) -> None:
        """Renew the registration. A server that has forgotten this worker, as after FLUSHALL, gets to know it again."""
        if connection.hexists(self.key, "machine"):
            with connection.pipeline() as pipe:
                self.heartbeat(pipeline=pipe)
                pipe.execute()
        else:
            connection.delete(self.key)
            self._register()

    def acknowledge(self, lease: Lease, seconds: float) -> None:
        """The shard is done: its job leaves RQ. ``seconds`` is how long it was held."""
        # Not RQ's own delete(): it stumbles over the executions that dead workers left behind.
        acknowledged = self._step("acknowledge", lease.keys, [lease.entry])
        # What a server that is full refuses is for RQ's tools only.
        with contextlib.suppress(OutOfMemoryError), self.connection.pipeline() as pipe:
            if acknowledged:
                pipe.hincrby(self.key, "successful_job_count", 1)
                pipe.hincrbyfloat(self.key, "total_working_time", seconds)
                pipe.execute()

    def hand_back(self, lease: Lease, queue: str, *, front: bool = True) -> None:
        """Give a shard back at once, to its queue or to where its batch is held back; nothing happens when the lease
        was taken back already."""
        keys = [*lease.keys, f"rq:queue:{queue}"]
        self._step("hand_back", keys, [lease.entry, lease.job_id, "LPUSH" if front else "RPUSH"])

    def _drop(self, queue: str, job_id: str) -> None:
        Queue(queue, connection=self.connection).intermediate_queue.remove(job_id)

    def handle_payload(self, message: Any) -> None:
        """A command that came by RQ's channel (``shutdown``); one that is none leaves the listening thread alive."""
        try:
            super().handle_payload(message)
        except Exception as error:  # whoever may publish can make RQ's parsing raise anything
            log.warning("refused a command: %.200s", error, extra={"action": "refuse_command"})

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
            try:
                with refusing(f"queue {queue.name}"):
                    self._recover(queue, alive or process_alive)
            except RefusedError as error:
                if queue.name not in self._unsound:  # said once, not every few seconds
                    log.warning("%s; remove that key: nothing of this queue is served", error)
                self._unsound.add(queue.name)
            else:
                self._unsound.discard(queue.name)
            self.connection.delete(lock)

    def _recover(self, queue: Queue, alive: Callable[[int], bool]) -> None:
        registry = StartedJobRegistry(queue.name, connection=self.connection, serializer=JSONSerializer, job_class=Job)
        self.connection.llen(queue.key)  # which fails where it is no list
        for entry in self._step("clean", [registry.key, queue.intermediate_queue_key], [MOST_CLEANED]):
            log.warning("refused entry %.80r of RQ's registries", entry, extra={"action": "refuse_job"})
        dead = self._locally_dead(registry, alive)
        keys = [registry.key, queue.key, queue.intermediate_queue_key, f"{PREFIX}dequeued:{queue.name}"]
        keys.append(f"{PREFIX}watch:{queue.name}")
        for job_id in self._step("recover", keys, ["rq:job:", UNBEGUN_S, LEASE_S, UNWATCHED_S, *dead]):
            log.info("%s is nobody's any more; queued again", job_id.decode(), extra={"action": "recover"})

    def _locally_dead(self, registry: StartedJobRegistry, alive: Callable[[int], bool]) -> list[bytes]:
        """The registry's entries of workers of this machine whose process is gone."""
        dead = []
        here = machine().encode()
        for entry in cast("list[bytes]", self.connection.zrange(registry.key, 0, MOST_CLEANED - 1)):
            name = self._short(f"rq:execution:{entry.decode(errors='replace')}", "worker_name").decode(errors="replace")
            pid = name.rpartition(".")[2]
            if not (pid.isascii() and pid.isdecimal() and len(pid) < 20) or alive(int(pid)):
                continue
            if self._short(f"{self.redis_worker_namespace_prefix}{name}", "machine") == here:
                log.info("worker %s is gone; taking back %s", name, entry.decode(), extra={"action": "recover"})
                dead.append(entry)
        return dead

    def _short(self, key: str, field: str) -> bytes:
        """A field of a hash of RQ's; empty where there is none that could be RQ's."""
        try:
            with refusing(key):
                return short_field(self.connection, key, field, 1024) or b""
        except RefusedError:
            return b""

    def served_by(self, queue: str) -> dict[str, str]:
        """The live workers on a queue, this one among them: the instance of each by its name. RQ's own, which run no
        shards, are left out."""
        start, found = self.redis_worker_namespace_prefix, {self.name: self.instance}
        for item in cast("set[bytes]", self.connection.smembers(WORKERS_BY_QUEUE_KEY % queue)):
            key = item.decode(errors="replace")
            name = key.removeprefix(start)
            if key != name != self.name and self._short(key, "machine"):
                # One of an older version names no instance: it is known by its name.
                found[name] = self._short(key, "life").decode(errors="replace") or name
        return found


def check_permissions(connection: Redis, name: str) -> None:
    """Try what a worker of this name does in Redis, on keys of its own that are gone in the end.

    Raises:
        NoPermissionError: the first that the user is not allowed.
    """
    keys = [f"{prefix}permissions:{name}" for prefix in (PREFIX, "rq:")]
    for refusal in refusals(connection, keys, channel=f"rq:pubsub:{name}:permissions"):
        raise refusal.error


def process_alive(pid: int) -> bool:
    """Whether a process of this host lives (a zombie does not matter: its parent reaps it)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
