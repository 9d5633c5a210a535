"""Orders: batches that were created over HTTP and whose files are to be checked and submitted.

An order is kept in Redis until its batch is live or has failed. Whoever works on it holds it for a while, and holds it
anew while it works: an order whose process died is taken up by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from jobs.store.keys import INTAKE, PREFIX
from jobs.store.retention import KEEP_S
from jobs.store.steps import step

if TYPE_CHECKING:
    from redis import Redis

WAKE = PREFIX + "intake:wake"
"""List, gone soon: an entry for each new order. The processes wait for one."""
HELD_S = 60.0
"""An order is held for so long."""
WAKE_S = 10
OWNED_S = 90 * 86400.0
"""No batch of HTTP is there for so long: the longest window and the longest time of keeping are 61 days."""
OPENAI = "_openai"
"""The field of a batch's metadata that says what HTTP needs to know of it."""


@dataclass(frozen=True, slots=True)
class IntakeOrder:
    """A batch to be made of a file. ``window_s`` are the seconds of its ``completion_window``; ``models`` are those
    that its key may use (none named: all). ``plain``: its lines may be all that `promptmill submit` takes."""

    batch_id: str
    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: float
    created_at: float
    owner: str = ""
    admin: bool = True
    models: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    priority: str = "normal"
    webhook: str | None = None
    keep_s: float | None = KEEP_S
    defaults: Mapping[str, Any] = field(default_factory=dict)
    on_bad_line: str = "reject"
    plain: bool = False

    @property
    def batch_metadata(self) -> dict[str, Any]:
        """The metadata of the batch: the user's, and what HTTP needs to know."""
        known = {
            "input_file_id": self.input_file_id,
            "endpoint": self.endpoint,
            "completion_window": self.completion_window,
            "owner": self.owner,
        }
        return {**self.metadata, OPENAI: known}


class Orders:
    """The orders in Redis. Threads: any."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection

    def put(self, order: IntakeOrder) -> None:
        """Place an order; a process is woken for it."""
        with self._connection.pipeline() as pipe:
            pipe.set(_key(order.batch_id), msgspec.json.encode(order))
            pipe.zadd(INTAKE, {order.batch_id: 0})
            owned = owned_key(order.owner)
            pipe.zadd(owned, {order.batch_id: order.created_at})
            pipe.zremrangebyscore(owned, "-inf", order.created_at - OWNED_S)
            pipe.rpush(WAKE, "1")
            pipe.expire(WAKE, WAKE_S)
            pipe.execute()

    def find(self, batch_id: str) -> IntakeOrder | None:
        """The order of this batch; None where there is none, or none any more."""
        raw = cast("bytes | None", self._connection.get(_key(batch_id)))
        try:
            return None if raw is None else msgspec.json.decode(raw, type=IntakeOrder)
        except msgspec.MsgspecError:
            return None

    def ids(self) -> list[str]:
        """The ids of the ordered batches."""
        return [item.decode(errors="replace") for item in cast("list[bytes]", self._connection.zrange(INTAKE, 0, -1))]

    def cancel(self, batch_id: str, now: float) -> None:
        """Have the batch cancelled: by the process that works on its order, once it sees this."""
        self._connection.set(_cancelled_key(batch_id), now, nx=True, ex=86400)

    def cancelled(self, batch_id: str) -> float | None:
        """When somebody wanted the batch cancelled."""
        moment = cast("bytes | None", self._connection.get(_cancelled_key(batch_id)))
        return None if moment is None else float(moment)

    def take(self) -> str | None:
        """The id of an order that nobody holds; it is held from now on."""
        taken = step(self._connection, "serve.lua", "take_order")(keys=[INTAKE], args=[HELD_S])
        return None if taken is None else cast("bytes", taken).decode(errors="replace")

    def hold(self, batch_id: str) -> None:
        """Go on holding an order."""
        step(self._connection, "serve.lua", "hold_order")(keys=[INTAKE], args=[batch_id, HELD_S])

    def done(self, batch_id: str) -> None:
        """The order's batch is live, or has failed."""
        with self._connection.pipeline() as pipe:
            pipe.zrem(INTAKE, batch_id)
            pipe.delete(_key(batch_id), _cancelled_key(batch_id))
            pipe.execute()

    def wait(self, seconds: int) -> None:
        """Wait for a new order, for so long at the most."""
        self._connection.blpop([WAKE], seconds)


def owned_key(owner: str) -> str:
    """Sorted set of the batches that a key has made, by creation time."""
    return f"{PREFIX}batches:of:{owner}"


def _key(batch_id: str) -> str:
    return f"{PREFIX}intake:{batch_id}"


def _cancelled_key(batch_id: str) -> str:
    return f"{PREFIX}intake:{batch_id}:cancel"
