"""Lua: the steps that must be one in Redis. Check and write happen together, so no stale attempt can write.

Each step is a file. It begins with what it does, its KEYS and ARGV, and what it returns. Pieces that several steps
share are files too: each returns a function or a table, and a step says
``local clock = require("jobs.store.lua.shared.clock")``.
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

__all__ = ["load", "step"]

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
