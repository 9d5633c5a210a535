"""Requests that wait for their records. All of it belongs to the event loop's thread; others call into it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serve.errors import ApiError
from serve.requests.line import RequestLine


@dataclass(frozen=True, slots=True)
class Once:
    """Names a request that its client may send again, and what it asks, by their digests."""

    name: str
    asked: str


@dataclass(slots=True, eq=False)
class Waiter:
    """A request, and where its line is once it was sent: the batch, the number of its shard, its index."""

    line: RequestLine
    answer: asyncio.Future[bytes]
    once: Once | None = None
    batch_id: str | None = None
    number: int = 0
    index: int = 0
    gone: bool = False
    """Nobody waits for it any more."""


@dataclass(slots=True)
class SentBatch:
    """A batch of requests: who waits for its lines, by index; its shards and queues; how many were answered."""

    id: str
    waiters: dict[int, Waiter]
    shards: int
    queues: frozenset[str]
    kept: bool = False
    """A client may ask for its records again."""
    live: bool = False
    """It was committed: from then on it is in Redis."""
    answered: int = 0


class Waiting:
    """The batches of requests that are under way. Thread: the event loop's."""

    def __init__(self) -> None:
        self.batches: dict[str, SentBatch] = {}
        self.over: list[SentBatch] = []
        """Batches in which nobody waits any more."""

    def add(self, batch: SentBatch) -> None:
        self.batches[batch.id] = batch

    def answered(self, records: Iterable[tuple[str, int, bytes]]) -> None:
        """Give records, of lines by batch and index, to those who wait for them."""
        for batch_id, index, record in records:
            batch = self.batches.get(batch_id)
            waiter = None if batch is None else batch.waiters.pop(index, None)
            if batch is None or waiter is None:
                continue  # it came twice, or belongs to another time
            batch.answered += 1
            if not waiter.answer.done():
                waiter.answer.set_result(record)
            self._close(batch)

    def fail(self, waiters: Iterable[Waiter], error: Callable[[], ApiError]) -> None:
        """Tell each of those who wait that there will be no record."""
        for waiter in waiters:
            if not waiter.answer.done():
                waiter.answer.set_exception(error())
            self.leave(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Somebody waits no longer."""
        waiter.gone = True
        batch = None if waiter.batch_id is None else self.batches.get(waiter.batch_id)
        if batch is not None and batch.waiters.pop(waiter.index, None) is not None:
            self._close(batch)

    def _close(self, batch: SentBatch) -> None:
        if not batch.waiters and self.batches.pop(batch.id, None) is not None:
            self.over.append(batch)

    def take_over(self) -> list[SentBatch]:
        """The batches that came to their end since the last call."""
        over, self.over = self.over, []
        return over
