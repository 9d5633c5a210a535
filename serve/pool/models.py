"""The models of a pool: those that live workers serve, and those that were served not long ago."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from jobs.batch import queue_name
from jobs.shard import Group
from jobs.store.keys import PREFIX
from submit.status.workers import Workers

if TYPE_CHECKING:
    from redis import Redis

    from submit.status.worker_state import WorkerState

MODELS = PREFIX + "models"
"""Sorted set of groups that were served, by when that was last seen."""
KNOWN_S = 86400.0
"""A group that was served within so long is waited for: its worker is being started again."""
LOOK_S = 1.0


class Models:
    """Looks at the pool at most once a second. Threads: any; holds the lock."""

    def __init__(
        self, connection: Redis, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._connection, self._clock, self._now = connection, clock, now
        self._workers = Workers(connection)
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self.live: Mapping[str, float] = {}
        """The groups that live workers serve, by their keys: since when."""
        self.known: frozenset[str] = frozenset()
        """These, and those that were served not long ago."""
        self.serving: Mapping[str, int] = {}
        """How many live workers serve each group."""

    def expect(self, models: Sequence[str]) -> None:
        """Wait for these models as for one whose worker is being started again: it loads them."""
        if models:
            keys = [Group(model, None).key for model in models]
            self._connection.zadd(MODELS, dict.fromkeys(keys, self._now()))

    def look(self) -> None:
        """See what is served now, unless that was seen just now."""
        with self._lock:
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= LOOK_S:
                self._looked_at = now
                self._look()

    def _look(self) -> None:
        states = self._workers.read()
        live: dict[str, float] = {}
        serving: dict[str, int] = {}
        for state in states:
            for key in _groups(state):
                serving[key] = serving.get(key, 0) + 1
                live[key] = min(live.get(key, self._now()), state.started_at or self._now())
        moment = self._now()
        with self._connection.pipeline(transaction=False) as pipe:
            if live:
                pipe.zadd(MODELS, dict.fromkeys(live, moment))
            pipe.zremrangebyscore(MODELS, "-inf", moment - KNOWN_S)
            pipe.zrange(MODELS, 0, -1)
            known = cast("list[bytes]", pipe.execute()[-1])
        self.live, self.serving = live, serving
        self.known = frozenset(item.decode(errors="replace") for item in known)

    def serves(self, model: str, adapter_path: str | None) -> bool:
        """Whether a line for this may run: it is served, or was not long ago. True while nobody serves anything: a
        batch waits for its workers."""
        return not self.known or Group(model, adapter_path).key in self.known


def _groups(state: WorkerState) -> list[str]:
    """The groups that a worker of the common pool serves; those of private pools are nobody else's."""
    start = queue_name("", "normal") + ":"
    keys = [queue.removeprefix(start) for queue in state.queues if queue.startswith(start)]
    models = set(state.models)
    return [key for key in keys if key in models or key.partition("+")[0] in models]
