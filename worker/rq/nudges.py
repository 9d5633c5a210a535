"""Nudges: an idle worker hears of a shard when it comes into a queue, and not at its next look."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import redis.exceptions

from jobs.store.keys import nudge_key

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger("promptmill.worker")

BLOCK_S = 1
"""Less than what a silent Redis is given."""
OUTAGE_S = 2.0


class Nudges(threading.Thread):
    """Waits in Redis while the worker has nothing to take, on a connection of its own, and calls ``wake()``. Threads:
    main for :meth:`listen`; nudges for the rest."""

    def __init__(self, connection: Redis, wake: Callable[[], object]) -> None:
        super().__init__(name="nudges", daemon=True)
        self._connection, self._wake = connection, wake
        self._queues: Sequence[str] = ()
        self._listening = threading.Event()
        self._stopped = threading.Event()

    def listen(self, queues: Sequence[str]) -> None:
        """Wake the worker, once, when a shard comes into one of these queues: nothing was in them, or it is told of one
        that is there already."""
        self._queues = queues
        if queues:
            self._listening.set()
        else:
            self._listening.clear()

    def stop(self) -> None:
        """End soon. Thread: main."""
        self._stopped.set()
        self._listening.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            self._listening.wait()
            try:
                heard = self._queues and self._connection.blpop([nudge_key(queue) for queue in self._queues], BLOCK_S)
            except redis.exceptions.RedisError as error:
                log.debug("nobody tells of new shards: %s", error)
                self._stopped.wait(OUTAGE_S)
                continue
            if heard:
                self._listening.clear()
                self._wake()
