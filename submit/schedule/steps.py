"""The steps of schedules that must be one in Redis: files of Lua, each behind the functions that it shares with others.

Check and write happen together, so each step may be repeated by anyone and is done once.
"""

from __future__ import annotations

from importlib.resources import files

from jobs.store.steps import COMMIT

__all__ = ["ADD", "BEGIN", "COMMIT_RUN", "END", "KEPT_RUNS", "NAMES", "READ", "REMOVE"]

KEPT_RUNS = 20
"""Of a schedule's last runs so many are kept, see ``lua/runs.lua``."""


def _load(*names: str) -> str:
    folder = files("submit.schedule") / "lua"
    return "\n".join((folder / f"{name}.lua").read_text() for name in names)


READ = _load("read")
NAMES = _load("names")
ADD = _load("runs", "forget", "add")
REMOVE = _load("forget", "remove")
BEGIN = _load("runs", "begin")
END = _load("runs", "end")
COMMIT_RUN = f"local function commit(KEYS, ARGV)\n{COMMIT}\nend\n{_load('runs', 'commit_run')}"
