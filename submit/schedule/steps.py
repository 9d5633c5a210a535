"""The Lua of schedules: steps that must be one in Redis. Check and write happen together, so each may be repeated."""

from __future__ import annotations

import functools
import re
from importlib.resources import files

from jobs.store.steps import COMMIT

__all__ = ["load"]

_REQUIRE = re.compile(r'require\("([\w.]+)\.(\w+)"\)')
_COMMIT = f"return function(KEYS, ARGV)\n{COMMIT}\nend\n"


@functools.cache
def load(folder: str, name: str) -> str:
    """The text of a step, with the pieces that it requires in their places."""
    if (folder, name) == ("jobs.store.lua.shared", "commit"):
        return _COMMIT
    text = files(folder).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return _REQUIRE.sub(lambda found: f"(function()\n{load(found[1], found[2])}end)()", text)
