"""Models that end their worker again and again: after a few times in an hour this machine no longer serves them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.errors import ModelLoadError
from jobs.redis.connect import refusing
from jobs.shard import Group
from jobs.store.keys import trouble_key

if TYPE_CHECKING:
    from redis import Redis

    from worker.models.compute import Compute

log = logging.getLogger("promptmill.worker")

TROUBLE_LIMIT = 5
TROUBLE_S = 3600


def note_trouble(connection: Redis, machine: str, group: Group, what: str, reason: str) -> None:
    """Remember for an hour that a worker of this machine ended because of a model; ``what`` names the line it had
    under way alone, or this worker instance. The same again is no further trouble."""
    key = trouble_key(machine, group.key)
    with connection.pipeline() as pipe:
        pipe.sadd(key, what)
        pipe.expire(key, TROUBLE_S)
        pipe.set(f"{key}:reason", reason[:500], ex=TROUBLE_S)
        pipe.execute()


def note_failure(connection: Redis, machine: str, compute: Compute, instance: str) -> None:
    """Note the model that ended a worker instance, if one did.

    Raises:
        RefusedError: something else lies where that is noted.
    """
    failure, group, alone = compute.failure, compute.failed_group, compute.alone
    if failure is None or group is None:
        return
    # A line that fails its model again and again is one trouble, not many.
    what = f"{alone[0]}:{alone[2]}" if alone is not None else instance
    with refusing(f"the trouble with {group.key}"):
        note_trouble(connection, machine, group, what, str(failure) or type(failure).__name__)


def without_trouble(connection: Redis, machine: str, groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups that a new worker of this machine shall serve; why others are left out is logged.

    Raises:
        ModelLoadError: none is left.
    """
    good, bad = [], []
    for group in groups:
        key = trouble_key(machine, group.key)
        with connection.pipeline() as pipe:
            pipe.scard(key)
            pipe.getrange(f"{key}:reason", 0, 500)
            pipe.ttl(key)
            count, reason, seconds = pipe.execute(raise_on_error=False)
        if not isinstance(count, int) or count < TROUBLE_LIMIT:  # somebody may have put something else there
            good.append(group)
            continue
        said = reason.decode(errors="replace") if isinstance(reason, bytes) else "an unknown reason"
        bad.append(
            f"{group.key} is not served here: it ended its worker again and again within the hour, the last time by: "
            f"{said}; mend it, and wait {max(1, round(seconds / 60))} min or delete '{key}' in Redis"
        )
    for message in bad if good else []:
        log.error("%s", message, extra={"action": "model_in_trouble"})
    if not good:
        raise ModelLoadError("; ".join(bad))
    return tuple(good)
