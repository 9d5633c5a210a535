"""Names of everything promptmill keeps in Redis, all under one prefix, and of some of RQ's own, under ``rq:``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PREFIX = "promptmill:"
BATCHES = PREFIX + "batches"
"""Sorted set of batch ids by creation time."""
UPLOADING = PREFIX + "uploading"
"""Sorted set of batches being uploaded or retried, by the last sign of life of who does it."""
REQUESTS = PREFIX + "requests"
"""Sorted set of batches whose lines are requests that somebody waits for, by creation time: they are on no other
list."""
EXPIRING = PREFIX + "expiring"
"""Sorted set of batches that end by themselves, by the time at which they do (of Redis' clock)."""
STARTING = PREFIX + "starting"
"""Sorted set of batches that wait for their time, by that time (of Redis' clock)."""
KEEPING = PREFIX + "keeping"
"""Sorted set of batches that are done, by the time at which they are removed (of Redis' clock)."""
WEBHOOKS = PREFIX + "webhooks"
"""Sorted set of batches whose end is to be delivered to a webhook, by the time of the next try (of Redis' clock)."""
ORPHANS_LOOK = PREFIX + "orphans"
"""String: somebody has just looked for orphans (see :mod:`jobs.store.orphans`); gone when it is time to look again."""
SERVERS = PREFIX + "servers"
"""Sorted set of HTTP servers, each ``name url``, by when they last said that they are there (of Redis' clock)."""
INTAKE = PREFIX + "intake"
"""Sorted set of batches whose files an HTTP server is to check, by the time (of Redis' clock) until which one is at
it."""
PAUSED = PREFIX + "paused"
"""Hash: name of a worker, or of all workers so named on a host -> when it was paused."""

SCHEDULES = PREFIX + "schedules"
"""Set of the names of schedules."""
SCHEDULER = PREFIX + "scheduler"
"""JSON of the scheduler that is active, refreshed every second, gone soon after it."""

RQ_SUSPENDED = "rq:suspended"
"""What ``rq suspend`` sets and ``rq resume`` removes."""
RQ_WORKERS = "rq:workers"
"""Set of the keys of registered workers, each :data:`RQ_WORKER` and a name."""
RQ_WORKER = "rq:worker:"


def worker_key(name: str) -> str:
    """JSON of what a worker is doing, refreshed every second, gone soon after it."""
    return f"{PREFIX}worker:{name}"


def trouble_key(machine: str, group: str) -> str:
    """Set, gone after an hour: the lines, and the worker instances, with which a model failed on a machine; the newest
    reason is in a string beside it."""
    return f"{PREFIX}trouble:{machine}:{group}"


def run_key(digest: str) -> str:
    """Hash: the batch that ``promptmill run`` made for an output file, and the file's path."""
    return f"{PREFIX}run:{digest}"


def answers_key(waiter: str) -> str:
    """List, gone soon after its reader: each record of the batches that a ``waiter`` waits for, behind its batch's id
    and its index."""
    return f"{PREFIX}answers:{waiter}"


def nudge_key(queue: str) -> str:
    """List, gone in a moment: an entry for each shard that has just come into a queue. Idle workers wait for one."""
    return f"{PREFIX}nudge:{queue}"


class _OfBatch:
    """A key of a batch, by what stands behind the name of its hash."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def __get__(self, keys: BatchKeys, _owner: type) -> str:
        return f"{PREFIX}b:{keys.batch_id}{self._suffix}"


class _OfShard:
    """A key of each shard of a batch: a function of the shard's number."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def __get__(self, keys: BatchKeys, _owner: type) -> Callable[[int], str]:
        return lambda number: f"{keys.info}{self._suffix}:{number}"


@dataclass(frozen=True, slots=True)
class BatchKeys:
    """The keys of one batch, and of its shards by their numbers."""

    batch_id: str

    info = _OfBatch("")
    """Hash: status, counts, times, defaults (see :mod:`jobs.batch`)."""
    table = _OfBatch(":t")
    """Sorted set by number: one JSON row per shard: number, group, first index, lines."""
    fences = _OfBatch(":fence")
    """Hash: shard number -> fence: microseconds of the server's clock at its last claim, or more."""
    finished = _OfBatch(":f")
    """List: ``number:index`` of lines in the order their records were stored."""
    queues = _OfBatch(":q")
    """Set: names of the queues the batch goes to."""
    orphans = _OfBatch(":orphan")
    """Hash: number of a shard that is in no queue -> when that was first seen (of Redis' clock)."""
    retried = _OfBatch(":again")
    """Hash: ``number:index`` of lines run again -> length of :attr:`finished` then: earlier places are void."""
    problems = _OfBatch(":bad")
    """JSON of what is wrong with a batch that was refused (see :meth:`jobs.store.upload.Uploads.refuse`)."""
    hidden = _OfBatch(":hide")
    """Set: which of the batch's files, ``output`` and ``error``, were deleted by who fetches them over HTTP."""
    dropped = _OfBatch(":drop")
    """Set: ``number:index`` of lines that were cancelled one by one."""
    compacted_prefix = _OfBatch(":d:")
    """What stands before the shard's number in :attr:`compacted`, for scripts that look at many."""

    payload = _OfShard(":s")
    """String: the shard's compressed lines."""
    records = _OfShard(":r")
    """Hash: index -> record, while the shard runs (see :mod:`jobs.store.shard_records`)."""
    compacted = _OfShard(":d")
    """Sorted set: the shard's records in compressed pieces, once it is done; a string by earlier versions."""
    pieces = _OfShard(":pc")
    """Sorted set: pieces that become :attr:`compacted` once all are there."""
    reopened = _OfShard(":ro")
    """Hash: records that become :attr:`records` again once all are there; the empty field names the retry."""
    flights = _OfShard(":fl")
    """Hash: index -> the worker instance that has begun this line, or is about to, and not ended it; ``alone`` stands
    behind it where nothing is beside the line."""
    tries = _OfShard(":try")
    """Hash: index -> attempts at this line that failed; ``d`` and index -> how many of them a worker died in; ``b`` and
    index -> how many there were when the batch was retried: those no longer speak against the line; ``s`` and index ->
    attempts that a model ended with others beside this line; ``a`` and index -> the last that failed had nothing beside
    it."""
    refusals = _OfShard(":no")
    """Set: the worker instances that refused the shard."""

    def pending(self, queue: str) -> str:
        """Sorted set by shard number: RQ job ids held back until the batch is committed, begins or goes on."""
        return f"{self.info}:p:{queue}"

    def job_id(self, number: int) -> str:
        """The RQ job of a shard; RQ allows only letters, digits, ``_`` and ``-``."""
        return f"{self.batch_id}-{number}"


@dataclass(frozen=True, slots=True)
class ScheduleKeys:
    """The keys of one schedule."""

    name: str

    @property
    def info(self) -> str:
        """Hash: when it runs, what, and the run that has begun (see :mod:`submit.schedule.store`)."""
        return f"{PREFIX}schedule:{self.name}"

    @property
    def runs(self) -> str:
        """List: JSON of what became of its last runs, the newest first."""
        return f"{self.info}:runs"

    def prompts(self, incarnation: str) -> str:
        """String: the file that is stored with the schedule of this id, compressed; gone after some minutes where the
        schedule did not come about."""
        return f"{self.info}:prompts:{incarnation}"
