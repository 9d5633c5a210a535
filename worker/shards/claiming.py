"""Claiming a shard whose job was taken from its queue: from then on this worker alone may write its records."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import redis.exceptions

from jobs.attempt import Attempt
from jobs.errors import BatchNotFoundError, BatchPausedError, LineError, RefusedError
from jobs.store.lost_lines import end_lost_lines
from worker.shards.claimed import HeldShard, HeldShards

if TYPE_CHECKING:
    from jobs.shard import Group
    from worker.faults.refused_shards import Refusals
    from worker.rq.entries import ShardJob
    from worker.rq.worker import Lease, ShardWorker

log = logging.getLogger("promptmill.worker")


class ShardClaimer:
    """Makes a held shard of a job. Thread: main.

    ``keep_trying()`` waits a while for a Redis that is out; False: the worker is stopping.
    """

    def __init__(
        self,
        rq: ShardWorker,
        refusals: Refusals,
        held: HeldShards,
        *,
        max_attempts: int,
        keep_trying: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rq, self._store, self._refusals, self._held = rq, rq.store, refusals, held
        self._max_attempts, self._keep_trying, self._now = max_attempts, keep_trying, now

    def claim(self, shard: ShardJob, group: Group, rank: int) -> HeldShard | None:
        """The shard, whose lines go by ``rank``; None where it was held already and goes on under its new lease, where
        it has gone back, and where nothing of it is left to do."""
        lease = self._rq.begin(shard)
        if lease is None or self._refusals.waits(shard, lease):
            return None
        self._held.claiming = lease
        try:
            return self._claim(shard, lease, group, rank)
        finally:
            self._held.claiming = None

    def _claim(self, shard: ShardJob, lease: Lease, group: Group, rank: int) -> HeldShard | None:
        attempt = None
        try:
            batch = self._store.batch(shard.batch_id)
            known = self._held.get(lease.job_id)
            if known is not None and known.renew(lease, partial(self._insist, shard)):
                return None  # our own lease had run out, as when the machine slept
            attempt = self._attempt(shard)
            if attempt is None:
                self._rq.acknowledge(lease, 0.0)
                return None
            contents = self._refusals.contents(shard, batch, group)
            if contents is None:
                log.warning("%s has lost its prompts; its lines fail", lease.job_id, extra={"action": "prompts_lost"})
                end_lost_lines(self._store, batch, attempt, self._rq.name)
                self._rq.acknowledge(lease, 0.0)
                return None
        except BatchPausedError:
            self._rq.hand_back(lease, shard.queue)
            return None
        except BatchNotFoundError as error:
            log.warning("removed shard %s: %s", lease.job_id, error, extra={"action": "refuse_shard"})
            self._rq.acknowledge(lease, 0.0)
            return None
        except (RefusedError, LineError, ValueError, KeyError, TypeError) as error:
            self._refusals.leave(shard, lease, attempt, error)
            return None
        held = HeldShard(
            lease=lease,
            attempt=attempt,
            batch=batch,
            group=group,
            queue=shard.queue,
            defaults=contents.defaults,
            committed_at=batch.times.get("in_progress", self._now()),
            lines=contents.lines,
            taken_at=self._now(),
            max_attempts=self._max_attempts,
            rank=rank,
        )
        return held if self._refusals.takes(held, contents.refusal) else None

    def _attempt(self, shard: ShardJob) -> Attempt | None:
        return self._store.claim(shard.batch_id, shard.number, self._rq.instance)

    def _insist(self, shard: ShardJob) -> Attempt | None:
        """Claim a shard whose lines are under way here: an answer that was lost may have made their attempt stale."""
        while True:
            try:
                return self._attempt(shard)
            except redis.exceptions.RedisError:
                if not self._keep_trying():
                    raise
