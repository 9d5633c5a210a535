"""Models that end their worker again and again: after a few times within the hour they are no longer served there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from jobs.errors import ModelLoadError
from jobs.keys import trouble_key
from jobs.shard import Group

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["SICK_AFTER", "TROUBLE_LIMIT", "note_trouble", "without_trouble"]

log = logging.getLogger("promptmill.worker")

SICK_AFTER = 3
"""So many lines that fail one after another, each by itself and with no good one between them, are not to blame: the
model is, or its device, and a new process is the remedy."""
TROUBLE_LIMIT = 3
TROUBLE_S = 3600


def note_trouble(connection: Redis, machine: str, group: Group, reason: str) -> None:
    """Remember for an hour that a worker of this machine ended because of a model."""
    key = trouble_key(machine, group.key)
    with connection.pipeline() as pipe:
        pipe.hincrby(key, "count", 1)
        pipe.hset(key, "reason", reason[:500])
        pipe.expire(key, TROUBLE_S)
        pipe.execute()


def without_trouble(connection: Redis, machine: str, groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups that a new worker of this machine shall serve; why others are left out is logged.

    Raises:
        ModelLoadError: none is left.
    """
    good, bad = [], []
    for group in groups:
        key = trouble_key(machine, group.key)
        count, reason = cast("list[bytes | None]", connection.hmget(key, ["count", "reason"]))
        if count is None or int(count) < TROUBLE_LIMIT:
            good.append(group)
            continue
        minutes = max(1, round(connection.ttl(key) / 60))
        bad.append(
            f"{group.key} is not served here: it ended its worker {int(count)} times within the hour, the last time by "
            f"{(reason or b'').decode(errors='replace')}; mend it, and wait {minutes} min or delete '{key}' in Redis"
        )
    for message in bad if good else []:
        log.error("%s", message, extra={"action": "model_in_trouble"})
    if not good:
        raise ModelLoadError("; ".join(bad))
    return tuple(good)
