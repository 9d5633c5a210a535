"""Workers that RQ still lists and that say nothing any more: killed, asleep, or cut off."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from jobs.redis.connect import foreign_data
from jobs.store.keys import RQ_WORKER, RQ_WORKERS
from submit.status.text import printable

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Silent", "read_silent"]

FIELDS = ("last_heartbeat", "queues", "hostname")
MOST_WORKERS = 1000
MOST_BYTES = 1 << 16
"""Far above what RQ writes: longer fields are not loaded."""
QUIET_S = 10.0
"""One that starts is registered before it publishes; heartbeats come every ten seconds."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A registered worker that publishes nothing; its last sign of life is ``silent_s`` seconds old."""

    name: str
    silent_s: float
    hostname: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What ``workers --json`` prints."""
        return {
            "name": self.name,
            "state": "silent",
            "silent_s": round(self.silent_s, 1),
            "hostname": self.hostname,
        }


def read_silent(connection: Redis, live: Container[str], now: float) -> list[Silent]:
    """Promptmill's workers in RQ's registry that are not among the ``live`` ones, by name; ``now`` is seconds since the
    epoch. Nobody where the registry may not be read: a submitter's user needs no right to it."""
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        listed = islice(connection.sscan_iter(RQ_WORKERS, count=MOST_WORKERS), MOST_WORKERS)
        names = sorted({cast("bytes", key).decode(errors="replace").removeprefix(RQ_WORKER) for key in listed})
        quiet = [name for name in names if name not in live]
        sizes = _asked(connection, quiet, lambda pipe, key, field: pipe.hstrlen(key, field))
        sound = [
            name for name, found in sizes.items() if all(type(size) is int and size < MOST_BYTES for size in found)
        ]
        stored = _asked(connection, sound, lambda pipe, key, field: pipe.hget(key, field))
    except ResponseError as error:
        if isinstance(error, NoPermissionError) or foreign_data(error):
            return []
        raise
    found = [_silent(name, values, now) for name, values in stored.items()]
    return [one for one in found if one is not None]


def _asked(connection: Redis, names: list[str], ask: Callable[[Any, str, str], Any]) -> dict[str, list[Any]]:
    """The replies for each name, one per field; an error of the server stands for what is no hash."""
    if not names:
        return {}
    from redis.exceptions import NoPermissionError

    with connection.pipeline(transaction=False) as pipe:
        for name in names:
            for field in FIELDS:
                ask(pipe, RQ_WORKER + name, field)
        replies = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, NoPermissionError):
            raise reply
    return {name: replies[place * len(FIELDS) :][: len(FIELDS)] for place, name in enumerate(names)}


def _silent(name: str, values: list[Any], now: float) -> Silent | None:
    if not all(isinstance(value, bytes) for value in values[:2]):
        return None
    heartbeat, queues = (value.decode(errors="replace") for value in values[:2])
    if not any(queue.startswith("promptmill:") for queue in queues.split(",")):
        return None
    try:
        seen = datetime.fromisoformat(heartbeat)
        silent_s = now - (seen if seen.tzinfo is not None else seen.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    if silent_s < QUIET_S:
        return None
    host = values[2].decode(errors="replace") if isinstance(values[2], bytes) else None
    return Silent(printable(name), silent_s, None if host is None else printable(host))
