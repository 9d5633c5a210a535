"""Which lines are under way, kept in Redis: should the worker die, one of them may have been the cause."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import redis.exceptions

from jobs.store import Store
from worker.held import HeldShard, LineKey

if TYPE_CHECKING:
    from redis import Redis

    from jobs.attempt import Attempt

__all__ = ["Marks"]

log = logging.getLogger("promptmill.worker")

QUIET_S = 5.0
QUIET_RATIO = 20
"""A Redis that did not answer is left alone for so long, and for so many times what it took to find out: generation
must not wait for it."""


class Marks:
    """Notes lines before they begin, in one round trip per shard. It is called by the compute thread alone, and has a
    connection of its own with a short timeout.

    What begins while Redis is out is noted with the first lines that begin when it is back. Shards that turn out to be
    another's, as after a sleep, are let go by ``let_go``, and their lines do not begin.
    """

    def __init__(
        self,
        store: Store,
        connection: Redis,
        life: str,
        held: Mapping[str, HeldShard],
        let_go: Callable[[HeldShard, Attempt], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._connection, self._life, self._held = store, connection, life, held
        self._let_go, self._clock = let_go, clock
        self._missed: set[LineKey] = set()
        self._quiet_until = 0.0

    def begin(self, keys: Iterable[LineKey]) -> frozenset[LineKey]:
        """Note that these lines begin now; those that shall not."""
        if not (wanted := self._missed.union(keys)):
            return frozenset()
        refused: frozenset[LineKey] = frozenset()
        begun = self._clock()
        if begun >= self._quiet_until:
            try:
                refused = self._note(wanted)
            except redis.exceptions.RedisError as error:
                log.debug("lines under way cannot be noted: %s", error)
                now = self._clock()
                self._quiet_until = now + max(QUIET_S, QUIET_RATIO * (now - begun))
            else:
                wanted = set()
        self._missed = wanted
        return refused

    def _note(self, keys: Iterable[LineKey]) -> frozenset[LineKey]:
        by_shard: dict[str, list[int]] = defaultdict(list)
        for job_id, fence, index in keys:
            held = self._held.get(job_id)
            if held is not None and held.taken_under == fence and index in held.remaining:
                by_shard[job_id].append(index)
        for job_id, indices in by_shard.items():
            held = self._held.get(job_id)
            while held is not None and not held.ended:
                attempt = held.attempt
                if self._store.begin(attempt, indices, self._life, self._connection):
                    break
                self._let_go(held, attempt)
        return frozenset(key for key in keys if not self._wanted(key))

    def _wanted(self, key: LineKey) -> bool:
        """Whether a line's shard is still the one it was taken with."""
        held = self._held.get(key[0])
        return held is not None and held.taken_under == key[1] and not held.ended
