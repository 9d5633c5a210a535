"""What a client and the handles it makes work with: one Redis, a clock, and ways to wait."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping

from jobs.batch import Batch
from jobs.embedded.server import data_folder, embedded_server
from jobs.errors import WaitTimeoutError
from jobs.redis.connect import connect, translated
from jobs.store.cancel import current
from jobs.store.store import Store
from submit.status.text import duration

POLL_S = 0.2


class Session:
    """Connections to one Redis, open until :meth:`close`. ``clock`` is a steady one, in seconds.

    Raises:
        RedisError: unreachable or refused.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.clock, self.sleep = clock, sleep
        with contextlib.ExitStack() as stack:
            given = url or environ.get("PROMPTMILL_REDIS_URL") or environ.get("RQ_REDIS_URL")
            self._url = given or stack.enter_context(embedded_server(data_folder(environ)))
            connection = connect(self._url)
            stack.callback(connection.close)
            self._store = Store(connection)
            self._stack = stack.pop_all()

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """The storage layer; what Redis raises inside the block becomes a :class:`jobs.errors.RedisError`."""
        with translated(self._url):
            yield self._store

    def batch(self, batch_id: str) -> Batch:
        """The batch as it is now.

        Raises:
            BatchNotFoundError: it was purged.
        """
        with self.store() as store:
            return current(store, batch_id)

    def until_done(self, batch_id: str, timeout: float | None = None) -> Iterator[Batch]:
        """The batch now and again; the last one is done.

        Raises:
            WaitTimeoutError: it is not done after ``timeout`` seconds.
            BatchNotFoundError: it was purged.
        """
        begun = self.clock()
        while not (batch := self.batch(batch_id)).done:
            yield batch
            if timeout is not None and self.clock() - begun >= timeout:
                raise WaitTimeoutError(
                    f"batch {batch_id} is not done after {duration(timeout)}; it goes on without you"
                )
            self.sleep(POLL_S)
        yield batch

    def close(self) -> None:
        """End the connections, and the embedded server when nobody else uses it."""
        self._stack.close()
