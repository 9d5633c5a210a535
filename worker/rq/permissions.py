"""What a worker must be allowed in Redis, tried at its start, before it has any lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.redis.permissions import refusals
from jobs.store.keys import PREFIX

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["check_permissions"]


def check_permissions(connection: Redis, name: str) -> None:
    """Try what a worker of this name does, on keys of its own that are gone in the end.

    Raises:
        NoPermissionError: the first that the user is not allowed.
    """
    keys = [f"{prefix}permissions:{name}" for prefix in (PREFIX, "rq:")]
    for refusal in refusals(connection, keys, channel=f"rq:pubsub:{name}:permissions"):
        raise refusal.error
