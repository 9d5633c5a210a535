"""Pausing: whether this worker is to take nothing new, and giving back what it holds and has not begun.

A pause never stops a line that was begun: those are finished, and their shards then go back with the lines that are
left. What is paused (the pool, this worker, or a shard's batch) is looked for in Redis by the main thread and by the
heartbeat.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from jobs.redis.connect import replies
from jobs.store.keys import PAUSED, RQ_SUSPENDED
from worker.shards.claimed import State

if TYPE_CHECKING:
    from redis import Redis

    from worker.models.compute import Compute
    from worker.shards.claimed import HeldShard
    from worker.shards.writer import Writer

log = logging.getLogger("promptmill.worker")


class PauseWatch:
    """Thread: main; the attributes are for any to read. ``paused`` says whether the worker takes nothing new, and
    ``looked`` whether it has looked for that at all: before, it is not ready for work."""

    def __init__(self, name: str, compute: Compute, writer: Writer) -> None:
        self._names = [name, name.rpartition(".")[0]]
        self._compute, self._writer = compute, writer
        self._asked: dict[str, tuple[HeldShard, Future[int]]] = {}
        self.paused = self.looked = False

    def look(self, connection: Redis) -> bool:
        """Whether the pool or this worker is paused, as Redis has it now."""
        with connection.pipeline(transaction=False) as pipe:
            pipe.exists(RQ_SUSPENDED)
            pipe.hmget(PAUSED, self._names)
            suspended, named = replies(pipe)
        paused = suspended == 1 or (isinstance(named, list) and any(item is not None for item in named))
        if paused != self.paused:
            message = "paused: lines that were begun are finished, nothing new is taken" if paused else "resumed"
            log.info(message, extra={"action": "paused" if paused else "resumed"})
        self.paused, self.looked = paused, True
        return paused

    def withdraw(self, held: Iterable[HeldShard]) -> None:
        """Go on with giving back the shards that are to wait: all of them, or those that the heartbeat found paused."""
        shards = {shard.job_id: shard for shard in held if not shard.ended}
        for job_id, shard in shards.items():
            if self.paused:
                shard.withdraw()
            if shard.state is State.WITHDRAWING and job_id not in self._asked:
                self._asked[job_id] = (shard, self._compute.withdraw((job_id, shard.taken_under)))
        for job_id, (shard, left) in list(self._asked.items()):
            if shards.get(job_id) is not shard or shard.state is State.IDLE:
                del self._asked[job_id]
            elif left.done() and left.result() == 0:
                # Those that ended are with the writer by now: it hands the shard back when their records are stored.
                shard.settle()
                self._writer.check(shard)
            elif left.done():
                self._asked[job_id] = (shard, self._compute.withdraw((job_id, shard.taken_under)))
