"""Pausing the whole pool, in RQ's own way, or single workers of it by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jobs.redis.connect import refusing
from jobs.store.keys import PAUSED, RQ_SUSPENDED
from jobs.store.steps import step
from jobs.store.store import Store

POOL_PAUSED = "the pool is paused: `promptmill resume` lets it go on"

LUA = "submit.status.lua"


def pause_pool(store: Store) -> bool:
    """Have no worker take anything new, as ``rq suspend``; False: it was so already."""
    return bool(step(store.connection, LUA, "pause")(keys=[PAUSED, RQ_SUSPENDED]))


def resume_pool(store: Store) -> bool:
    """Let the pool go on, as ``rq resume``; False: it was not paused."""
    return bool(store.connection.delete(RQ_SUSPENDED))


def pool_paused(store: Store) -> bool:
    """Whether the pool is paused."""
    return bool(store.connection.exists(RQ_SUSPENDED))


def pool_known_paused(store: Store) -> bool:
    """Whether the pool is paused, as far as this user of Redis may know."""
    from redis.exceptions import NoPermissionError

    try:
        return pool_paused(store)
    except NoPermissionError:
        return False


def pause_workers(store: Store, names: Sequence[str]) -> list[str]:
    """Have workers take nothing new: ``mini.4711`` is one process, ``mini`` all of this name, later ones too. Those of
    the names that were not paused before."""
    with refusing(PAUSED):
        pause = step(store.connection, LUA, "pause")
        return [name for name in names if pause(keys=[PAUSED], args=[name, repr(store.now())])]


def resume_workers(store: Store, names: Sequence[str]) -> list[str]:
    """Let workers go on, by the names under which they were paused; those of the names that were."""
    with refusing(PAUSED):
        return [name for name in names if store.connection.hdel(PAUSED, name)]


def paused_workers(store: Store) -> list[str]:
    """The names under which workers are paused."""
    with refusing(PAUSED):
        found = cast("list[bytes]", store.connection.hkeys(PAUSED))
    return sorted(name.decode(errors="replace") for name in found)
