"""Sending requests to the queues: those that came together are one batch, packed into shards for the workers there are.

What comes while Redis is busy with the last ones goes together next: the more there is, the larger are the shards.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import redis.exceptions

from jobs.batch import new_batch_id, queue_name
from jobs.errors import PromptmillError, RedisError
from jobs.shard import Group, ShardLine
from jobs.store.keys import PREFIX, REQUESTS
from jobs.store.store import NewBatch, Store, UploadedShard
from serve.errors import unavailable
from serve.requests.waiting import SentBatch, Waiter, Waiting

log = logging.getLogger("promptmill.serve")

SHARD_LINES = 50
SHARD_BYTES = 1 << 20
MOST_LINES = 1000
"""Of one batch."""
SPARE_S = 30.0
"""A batch expires so long after its last client gave up."""
KEPT_S = 60.0
"""A batch that nobody removed, as where its server died, goes so long after its end."""
ONCE_S = 3600
"""Requests that name themselves may be sent again for so long."""


def once_key(name: str) -> str:
    """String: where the line of a request is that may be sent again, and what it asks: batch, shard, index, digest."""
    return f"{PREFIX}http:answer:{name}"


class Sender(threading.Thread):
    """Sends requests, in a thread of its own. Threads: any for :meth:`put` and :meth:`stop`."""

    def __init__(
        self,
        store: Store,
        waiting: Waiting,
        loop: asyncio.AbstractEventLoop,
        *,
        instance: str,
        request_s: float,
        gather_s: float,
        serving: Callable[[], Mapping[str, int]],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self._store, self._waiting, self._loop = store, waiting, loop
        self._instance, self._request_s, self._gather_s = instance, request_s, gather_s
        self._serving, self._sleep = serving, sleep
        self._queue: queue.SimpleQueue[Waiter | None] = queue.SimpleQueue()

    def put(self, waiter: Waiter) -> None:
        self._queue.put(waiter)

    def stop(self) -> None:
        self._queue.put(None)

    def run(self) -> None:
        while (first := self._queue.get()) is not None:
            self._sleep(self._gather_s)
            came = [first]
            running = True
            while not self._queue.empty() and len(came) < MOST_LINES:
                item = self._queue.get()
                if item is None:
                    running = False
                    break
                came.append(item)
            by_priority: dict[str, list[Waiter]] = defaultdict(list)
            for waiter in came:
                if not waiter.gone:
                    by_priority[waiter.line.priority].append(waiter)
            for priority, waiters in by_priority.items():
                self._send(priority, waiters)
            if not running:
                return

    def _send(self, priority: str, waiters: Sequence[Waiter]) -> None:
        try:
            self._send_batch(priority, waiters)
        except (redis.exceptions.RedisError, PromptmillError) as error:
            log.warning("requests cannot be queued: %s", error, extra={"action": "not_queued"})
            self._loop.call_soon_threadsafe(self._waiting.fail, waiters, partial(unavailable, error))
        except Exception:  # the thread goes on: others wait for it
            log.exception("requests cannot be queued", extra={"action": "not_queued"})
            self._loop.call_soon_threadsafe(self._waiting.fail, waiters, unavailable)

    def _send_batch(self, priority: str, waiters: Sequence[Waiter]) -> None:
        kept = any(waiter.once is not None for waiter in waiters)
        batch = NewBatch(
            id=new_batch_id(),
            name=None,
            source="requests",
            priority=priority,
            defaults={},
            metadata={},
            keep_s=float(ONCE_S) if kept else KEPT_S,
            answers=self._instance,
        )
        shards = self._packed(batch.id, waiters)
        queues = frozenset(queue_name(shard.group.key, priority) for shard in shards)
        sent = SentBatch(batch.id, {waiter.index: waiter for waiter in waiters}, len(shards), queues, kept)
        # Before anything may be answered.
        self._loop.call_soon_threadsafe(self._waiting.add, sent)
        self._store.create(batch)
        self._store.upload(batch, shards)
        if kept:
            self._note_once(waiters)
        sent.live = self._store.commit(
            batch.id,
            total=len(waiters),
            shards=len(shards),
            groups={shard.group for shard in shards},
            expires_in=self._request_s + SPARE_S,
            listed=REQUESTS,
        )
        if not sent.live:
            raise RedisError("the batch of some requests was swept before it was complete")

    def _packed(self, batch_id: str, waiters: Sequence[Waiter]) -> list[UploadedShard]:
        """The shards of some requests: as many as there are workers to share them, where there are enough lines."""
        by_group: dict[Group, list[Waiter]] = defaultdict(list)
        for waiter in waiters:
            by_group[waiter.line.group].append(waiter)
        serving = self._serving()
        shards: list[UploadedShard] = []
        index = 0
        for place, (group, own) in enumerate(by_group.items()):
            workers = max(serving.get(group.key, 1), 1)
            most = min(SHARD_LINES, -(-len(own) // workers))
            for start in range(0, len(own), most):
                for few in _within(own[start : start + most], SHARD_BYTES):
                    lines = []
                    for waiter in few:
                        waiter.batch_id, waiter.number, waiter.index = batch_id, len(shards), index
                        lines.append(ShardLine(index, index + 1, waiter.line.raw))
                        index += 1
                    shards.append(UploadedShard(len(shards), place, group, lines))
        return shards

    def _note_once(self, waiters: Sequence[Waiter]) -> None:
        with self._store.connection.pipeline(transaction=False) as pipe:
            for waiter in waiters:
                if waiter.once is not None:
                    place = f"{waiter.batch_id} {waiter.number} {waiter.index} {waiter.once.asked}"
                    pipe.set(once_key(waiter.once.name), place, ex=ONCE_S)
            pipe.execute()


def _within(waiters: Sequence[Waiter], most: int) -> list[list[Waiter]]:
    """The same in parts whose lines have at most so many bytes, or are one longer line."""
    parts: list[list[Waiter]] = []
    size = most
    for waiter in waiters:
        length = len(waiter.line.raw)
        if size + length > most:
            parts.append([])
            size = 0
        parts[-1].append(waiter)
        size += length
    return parts
