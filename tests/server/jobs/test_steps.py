"""The Lua files: Redis takes each of them, and each names what it shares with the code that calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store import keys
from jobs.store.keys import BatchKeys
from jobs.store.steps import load
from jobs.store.store import Store

ROOT = Path(__file__).parents[3]
FILES = [path for folder in ("jobs", "submit", "serve", "worker") for path in sorted((ROOT / folder).rglob("*.lua"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_redis_compiles_each_step(store: Store, path: Path) -> None:
    """Each file is Lua, with what it requires in its place; nothing of Redis' own Lua is missing for it."""
    text = load(".".join(path.relative_to(ROOT).parent.parts), path.stem)
    assert "require(" not in text
    assert store.connection.script_load(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_step_says_what_it_is(path: Path) -> None:
    """It begins with a comment, and one that has keys or arguments names them there."""
    text = path.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("--"))
    assert text.startswith("-- ")
    assert [name for name in ("KEYS", "ARGV") if f"{name}[" in text and f"-- {name}: " not in head] == []


def test_names_of_keys_are_the_same_in_lua(store: Store) -> None:
    """What steps know by themselves is what the code calls it."""
    table = f"local keys = (function()\n{load('jobs.store.lua.shared', 'keys')}end)()\n"
    found = store.connection.eval(f"{table}return {{keys.batch, keys.keeping, keys.webhooks}}", 0)
    assert found == [name.encode() for name in (BatchKeys("").info, keys.KEEPING, keys.WEBHOOKS)]
