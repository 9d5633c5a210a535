"""Lua: the steps that must be one in Redis. Check and write happen together, so no stale attempt can write.

Each step is a file. It begins with what it does, its KEYS and ARGV, and what it returns. Pieces that several steps
share are files too: each returns a function or a table, and a step says
``local clock = require("jobs.store.lua.shared.clock")``.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

_REQUIRE = re.compile(r'require\("([\w.]+)\.(\w+)"\)')


@functools.cache
def load(folder: str, name: str) -> str:
    """The text of a step: the file ``name`` of ``folder``, such as ``jobs.store.lua.attempt``, with the pieces that it
    requires in their places. Redis' Lua has no ``require`` of its own."""
    text = files(folder).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return _REQUIRE.sub(lambda found: f"(function()\n{load(found[1], found[2])}end)()", text)


def step(connection: Redis, folder: str, name: str) -> Script:
    """A step that can be called with its keys and arguments, on this connection or another."""
    return connection.register_script(load(folder, name))


class Steps:
    """What all parts of the store share. ``connection`` replies with bytes; ``now`` gives seconds since the epoch.

    ``server_time`` gives the same by the server's clock: what several machines compare must come from one of them.
    """

    def __init__(
        self,
        connection: Redis,
        *,
        now: Callable[[], float] = time.time,
        server_time: Callable[[], float] | None = None,
    ) -> None:
        self.connection, self.now = connection, now
        self.server_time = server_time or self._server_time

    def _server_time(self) -> float:
        seconds, micros = self.connection.time()
        return seconds + micros / 1e6

    def step(self, name: str, keys: Sequence[str], args: Iterable[Any] = (), client: Redis | None = None) -> Any:
        """Do a step of the folder ``jobs/store/lua``, such as ``attempt.claim``; what it returns."""
        folder, _, file = name.rpartition(".")
        return step(self.connection, f"jobs.store.lua.{folder}", file)(keys=keys, args=args, client=client)
