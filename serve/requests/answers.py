"""Answers: records come from Redis as they are stored, and batches that are over are removed from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

import redis.exceptions

from jobs.batch import ENDED
from jobs.errors import PromptmillError
from jobs.record import error_record
from jobs.redis.connect import replies
from jobs.store.cancel import cancel_line
from jobs.store.keys import EXPIRING, KEEPING, REQUESTS, BatchKeys, answers_key
from jobs.store.read_batch import shard_keys
from jobs.store.shard_records import ShardRecords, loaded
from jobs.store.store import Store
from serve.requests.waiting import SentBatch, Waiter, Waiting

log = logging.getLogger("promptmill.serve")

BLOCK_S = 1
OUTAGE_S = 0.5
AT_ONCE = 500
LOOK_S = 3.0
"""How often it is looked whether an answer was missed, as when Redis lost its last second."""
TIDY_S = 1.0
WAKE = b"wake"
"""In place of a record: the listener is to look around."""
GONE = b"gone"
"""In place of the record of a line whose batch ended without it."""


class Listener(threading.Thread):
    """Takes records out of this server's list, in a thread of its own, and gives them to the event loop."""

    def __init__(self, store: Store, waiting: Waiting, loop: asyncio.AbstractEventLoop, instance: str) -> None:
        super().__init__(name="listener", daemon=True)
        self._connection, self._waiting, self._loop = store.connection, waiting, loop
        self._key = answers_key(instance)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End now. Thread: any but the event loop's."""
        self._stopped.set()
        with contextlib.suppress(redis.exceptions.RedisError):
            self._connection.rpush(self._key, WAKE)
            self._connection.expire(self._key, 1)

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                first = cast("tuple[bytes, bytes] | None", self._connection.blpop([self._key], BLOCK_S))
                if first is None:
                    continue
                rest = cast("list[bytes] | None", self._connection.lpop(self._key, AT_ONCE))
            except redis.exceptions.RedisError as error:
                log.debug("no answers are heard: %s", error)
                self._stopped.wait(OUTAGE_S)
                continue
            found = [record for item in (first[1], *(rest or ())) if (record := _parsed(item)) is not None]
            self._loop.call_soon_threadsafe(self._waiting.answered, found)


def _parsed(item: bytes) -> tuple[str, int, bytes] | None:
    batch_id, _, rest = item.partition(b":")
    index, colon, record = rest.partition(b":")
    if not (colon and index.isdigit() and len(index) < 16):
        return None
    try:
        return batch_id.decode("ascii"), int(index), loaded(record)
    except (PromptmillError, UnicodeDecodeError):
        return None


class Janitor(threading.Thread):
    """Looks now and then for answers that were missed, cancels lines that nobody waits for, and removes batches that
    are over. Threads: any for :meth:`cancel` and :meth:`stop`."""

    def __init__(
        self,
        store: Store,
        waiting: Waiting,
        loop: asyncio.AbstractEventLoop,
        *,
        also: Sequence[Callable[[], object]] = (),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="janitor", daemon=True)
        self._store, self._waiting, self._loop = store, waiting, loop
        self._also, self._clock, self._now = also, clock, now
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._cancelled: list[Waiter] = []
        self._over: list[SentBatch] = []
        self._looked_at = clock()

    def cancel(self, waiter: Waiter) -> None:
        """Cancel the line of a request, soon."""
        with self._lock:
            self._cancelled.append(waiter)

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.wait(TIDY_S):
            for task in (self.tidy, *self._also):
                try:
                    task()
                except (redis.exceptions.RedisError, PromptmillError, OSError) as error:
                    log.debug("not tidied up: %s", error)
                except Exception:  # the thread goes on: the other tasks wait for it
                    log.exception("not tidied up", extra={"action": "not_tidied"})

    def tidy(self) -> None:
        """One round."""
        batches, over = asyncio.run_coroutine_threadsafe(self._state(), self._loop).result()
        self._over += over
        self._cancel_lines()
        if self._clock() - self._looked_at >= LOOK_S:
            self._looked_at = self._clock()
            self._look(batches)
        self._remove()

    async def _state(self) -> tuple[list[SentBatch], list[SentBatch]]:
        return list(self._waiting.batches.values()), self._waiting.take_over()

    # --- lines that nobody waits for ---

    def _cancel_lines(self) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, []
        for waiter in cancelled:
            if waiter.batch_id is not None:
                self._cancel_line(waiter, waiter.batch_id)

    def _cancel_line(self, waiter: Waiter, batch_id: str) -> None:
        record = error_record(
            line_id=f"line-{waiter.index + 1}",
            index=waiter.index,
            batch_id=batch_id,
            code="cancelled",
            message="the client went away before this line was finished",
            finished_at=self._now(),
            model=waiter.line.group.model,
        )
        cancel_line(self._store, batch_id, waiter.number, waiter.index, record)

    # --- answers that were missed ---

    def _look(self, sent: Sequence[SentBatch]) -> None:
        """Find records that are there and were not heard of, and lines that will have none."""
        batches = [batch for batch in sent if batch.live]
        with self._store.connection.pipeline(transaction=False) as pipe:
            for batch in batches:
                pipe.hmget(BatchKeys(batch.id).info, "status", "completed", "failed")
            found = replies(pipe)
        for batch, info in zip(batches, found, strict=True):
            status, *counts = info if isinstance(info, list) else (None, None, None)
            finished = sum(int(count or 0) for count in counts)
            # One that is being validated was committed, and is not any more: Redis lost its last second.
            over = status in (None, b"validating") or status.decode() in ENDED
            if over or finished > batch.answered:
                self._recover(batch, over=status != b"in_progress")

    def _recover(self, batch: SentBatch, *, over: bool) -> None:
        """Read a batch's records. Where it is ``over`` lines without one are given up."""
        records = ShardRecords(self._store.connection, batch.id)
        answers: list[tuple[str, int, bytes]] = []
        for waiter in list(batch.waiters.values()):
            part = records.part(waiter.number, waiter.index - 1, [waiter.index])
            own = [record for index, record in part.records if index == waiter.index]
            if own:
                answers.append((batch.id, waiter.index, loaded(own[0])))
            elif over:
                answers.append((batch.id, waiter.index, GONE))
        self._loop.call_soon_threadsafe(self._waiting.answered, answers)

    # --- batches that are over ---

    def _remove(self) -> None:
        """Remove batches that are done from Redis; those whose last lines are just being closed stay for another
        round. What is kept for clients who ask again goes by itself."""
        over, self._over = [batch for batch in self._over if not batch.kept], []
        if not over:
            return
        with self._store.connection.pipeline(transaction=False) as pipe:
            for batch in over:
                pipe.hget(BatchKeys(batch.id).info, "status")
            statuses = replies(pipe)
        with self._store.connection.pipeline(transaction=False) as pipe:
            for batch, status in zip(over, statuses, strict=True):
                if status == b"in_progress":
                    self._over.append(batch)
                    continue
                ids = [batch.id]
                for listed in (REQUESTS, EXPIRING, KEEPING):
                    pipe.zrem(listed, *ids)
                pipe.unlink(*_keys_of(batch))
            pipe.execute()

    def end(self) -> None:
        """Cancel what is left. Thread: main, once the others are over."""
        try:
            self._cancel_lines()
        except (redis.exceptions.RedisError, PromptmillError) as error:
            log.debug("lines are not cancelled: %s", error)


def _keys_of(batch: SentBatch) -> list[str]:
    keys = BatchKeys(batch.id)
    pending = [keys.pending(name) for name in batch.queues]
    shards = [key for number in range(batch.shards) for key in shard_keys(batch.id, number)]
    return [keys.info, keys.table, keys.queues, keys.fences, keys.finished, keys.dropped, *pending, *shards]
