"""The desk where requests wait: it lets them in up to a number, has them sent, and gives them their answers."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence

from jobs.store.store import Store
from serve.errors import ApiError
from serve.pool.models import Models
from serve.requests.answers import Janitor, Listener
from serve.requests.line import RequestLine
from serve.requests.sender import Sender
from serve.requests.waiting import Once, Waiter, Waiting
from serve.settings import Limits

END_S = 5.0


class Desk:
    """All requests that wait at this server. Thread: the event loop's."""

    def __init__(
        self, store: Store, models: Models, limits: Limits, *, also: Sequence[Callable[[], object]] = ()
    ) -> None:
        self.store, self.models, self.limits = store, models, limits
        self._also = also
        self.instance = uuid.uuid4().hex
        self.waiting = Waiting()
        self.count = 0
        """Requests that wait now."""
        self.checking = asyncio.Lock()
        """Held by who has a large request checked."""
        self.closed = False
        """The server ends, and nobody waits any longer."""
        self._sender: Sender | None = None
        self._janitor: Janitor | None = None
        self._listener: Listener | None = None
        self._inside: set[Waiter] = set()

    def open(self) -> None:
        """Begin to work, in the loop that runs."""
        loop = asyncio.get_running_loop()
        self._sender = Sender(
            self.store,
            self.waiting,
            loop,
            instance=self.instance,
            request_s=self.limits.request_s,
            gather_s=self.limits.gather_s,
            serving=lambda: self.models.serving,
        )
        self._listener = Listener(self.store, self.waiting, loop, self.instance)
        self._janitor = Janitor(self.store, self.waiting, loop, also=[self.models.look, *self._also])
        for thread in (self._sender, self._listener, self._janitor):
            thread.start()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who wait, for as long as the block runs.

        Raises:
            ApiError: as :meth:`enter`.
        """
        self._take_place()
        try:
            yield
        finally:
            self.count -= 1

    def _take_place(self) -> None:
        if self.closed:
            raise closing()
        if self.count >= self.limits.waiting:
            raise ApiError(
                429,
                f"{self.count:,} requests wait already; try again in a moment, or create a batch.",
                code="too_many_waiting",
                headers={"Retry-After": "1"},
            )
        self.count += 1

    def enter(self, line: RequestLine, once: Once | None = None) -> Waiter:
        """Have a line run; who waits for it.

        Raises:
            ApiError: too many wait already, or the server is about to end.
        """
        if self._sender is None:
            raise closing()
        self._take_place()
        waiter = Waiter(line, asyncio.get_running_loop().create_future(), once)
        self._inside.add(waiter)
        self._sender.put(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Somebody waits no longer; where there was no answer the line is cancelled, unless it may be asked for
        again."""
        self.count -= 1
        self._inside.discard(waiter)
        if waiter.answer.done() and not waiter.answer.cancelled():
            waiter.answer.exception()  # it was heard, whoever has gone since
            return
        self.waiting.leave(waiter)
        if self._janitor is not None and waiter.once is None:
            self._janitor.cancel(waiter)

    def refuse_rest(self) -> None:
        """Send away those who wait still: the server ends."""
        self.closed = True
        inside = list(self._inside)
        self.waiting.fail(inside, closing)
        for waiter in inside:
            if self._janitor is not None and waiter.once is None:
                self._janitor.cancel(waiter)

    def close(self) -> None:
        """End the threads. Thread: any but the event loop's, which they may wait for."""
        threads = [thread for thread in (self._sender, self._listener, self._janitor) if thread is not None]
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join(END_S)
        if self._janitor is not None:
            self._janitor.end()


def closing() -> ApiError:
    """The server ends; another, or the next, takes the request."""
    return ApiError(
        503, "The server is being restarted; send the request again.", code="restarting", headers={"Retry-After": "1"}
    )
