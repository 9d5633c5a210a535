"""That a server is there: said in Redis now and then, for `promptmill doctor`."""

from __future__ import annotations

from jobs.store.keys import SERVERS
from jobs.store.store import Store

SAID_S = 5.0
GONE_S = 60.0
"""Who has said nothing for so long is off the list."""


class Presence:
    """Says where a server is, as ``name url``. Threads: any."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._said: str | None = None

    def at(self, url: str) -> None:
        """It serves there."""
        self._said = f"{self._name} {url}"

    def say(self) -> None:
        """Say that it is there."""
        if self._said is not None:
            now = self._store.server_time()
            self._store.connection.zadd(SERVERS, {self._said: now})
            self._store.connection.zremrangebyscore(SERVERS, "-inf", now - GONE_S)

    def leave(self) -> None:
        """It ends."""
        if self._said is not None:
            self._store.connection.zrem(SERVERS, self._said)
