"""What a client and the handles it makes work with: one Redis, a clock and a way to wait."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping

from jobs.embedded.server import data_folder, embedded_server
from jobs.redis.connect import connect, translated
from jobs.store.store import Store

__all__ = ["Session"]


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

    def close(self) -> None:
        """End the connections, and the embedded server when nobody else uses it."""
        self._stack.close()
