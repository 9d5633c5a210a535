"""The heartbeat: renews leases, gives up shards that are no longer ours, publishes what the worker is doing, and keeps
the machine awake meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import redis.exceptions

from jobs.attempt import Attempt, Standing
from jobs.store.keys import worker_key
from worker.rq.worker import RENEW_S

if TYPE_CHECKING:
    from redis import Redis

    from jobs.store.store import Store
    from worker.health.keep_awake import SleepAssertion
    from worker.rq.worker import ShardWorker
    from worker.shards.claimed import HeldShard, HeldShards

log = logging.getLogger("promptmill.worker")

PUBLISH_S = 1.0
PUBLISHED_FOR_S = 6


class Heartbeat(threading.Thread):
    """Beats every second on a connection of its own, and waits for no other thread: no long write can delay a lease.
    Thread: heartbeat; the attributes are for any to read.

    ``state()`` is what is published, ``abandon(held, attempt)`` drops a shard that is no longer ours,
    ``drop(held, indices)`` lines of one that nobody waits for any more.
    ``answered_at`` is when Redis took the last beat, in seconds since the epoch, ``outages`` how often it stopped to.
    """

    def __init__(
        self,
        connection: Redis,
        store: Store,
        rq: ShardWorker,
        held: HeldShards,
        assertion: SleepAssertion,
        *,
        state: Callable[[], dict[str, Any]],
        abandon: Callable[[HeldShard, Attempt], None],
        drop: Callable[[HeldShard, set[int]], None] = lambda held, indices: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._connection, self._store, self._rq = connection, store, rq
        self._held, self._assertion = held, assertion
        self._state, self._abandon, self._drop, self._now = state, abandon, drop, now
        self._stopped = threading.Event()
        self._renewed_at = 0.0
        self._answering = True
        self.answered_at = now()
        self.outages = 0

    def stop(self) -> None:
        """End and take the published state away. Thread: main."""
        self._stopped.set()
        self.join(timeout=5.0)

    def run(self) -> None:
        while not self._stopped.wait(PUBLISH_S):
            try:
                self._beat()
            except redis.exceptions.RedisError as error:
                self._missed(error)
            else:
                self._taken()
        self._assertion.keep(False)
        try:
            self._connection.delete(worker_key(self._rq.name))
        except redis.exceptions.RedisError:
            log.debug("the published state expires by itself")

    def _taken(self) -> None:
        if not self._answering:
            message = "Redis takes this worker's pulse again, after %.0f s"
            log.warning(message, self._now() - self.answered_at, extra={"action": "pulse_taken"})
        self.answered_at, self._answering = self._now(), True

    def _missed(self, error: redis.exceptions.RedisError) -> None:
        if self._answering:
            message = (
                "Redis does not take this worker's pulse (%s): until it does nothing new is begun, and leases run out"
            )
            log.warning(message, error, extra={"action": "pulse_missed"})
        self.outages += self._answering
        self._answering = False

    def _beat(self) -> None:
        self._assertion.keep(bool(self._held))  # before what fails without Redis
        now = time.monotonic()
        due = now - self._renewed_at >= RENEW_S
        # A server that is full still takes a renewal: so it goes first.
        if due:
            self._rq.renew(self._held.leases(), self._connection)
        self._check_shards()
        if due:
            self._renewed_at = now
            self._rq.show_alive(self._connection)
        self._connection.set(worker_key(self._rq.name), orjson.dumps(self._state()), ex=PUBLISHED_FOR_S)

    def _check_shards(self) -> None:
        """Abandon shards that are no longer ours, or whose batch has ended, within a second or two, and withdraw those
        whose batch is paused."""
        held = [shard for shard in self._held if not shard.ended]
        attempts = [shard.attempt for shard in held]
        standing = self._store.standing(attempts, self._connection) if held else []
        for shard, attempt, found in zip(held, attempts, standing, strict=True):
            # One that has all its records is the writer's to end, which may end its batch.
            if found is Standing.LOST and shard.remaining:
                self._abandon(shard, attempt)
            elif found is Standing.PAUSED:
                shard.withdraw()
        self._check_lines([shard for shard in held if shard.batch.answers is not None])

    def _check_lines(self, held: list[HeldShard]) -> None:
        """Drop lines of requests whose clients have gone."""
        dropped = self._store.dropped([shard.attempt for shard in held], self._connection) if held else []
        for shard, indices in zip(held, dropped, strict=True):
            if indices & shard.remaining:
                self._drop(shard, indices & shard.remaining)
