"""The table of a batch's shards: one row for each, as JSON, in the order of their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import orjson

from jobs.errors import RefusedError
from jobs.store.keys import BatchKeys

if TYPE_CHECKING:
    from redis import Redis

REJECTED_GROUP = -1
"""The group number of shards that hold records of lines refused at submission."""
TWIN_GROUP = -2
"""That of shards that hold the places of lines which earlier ones are equal to: see :mod:`jobs.twin`."""


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard: its number in the batch, its group's, the index of its first line, and how many lines it has."""

    number: int
    group: int
    first: int
    lines: int

    @property
    def rejected(self) -> bool:
        """Whether its lines were refused at submission: they have their records, and no prompts."""
        return self.group == REJECTED_GROUP

    @property
    def runs(self) -> bool:
        """Whether its lines are run: they have prompts, and a job."""
        return self.group >= 0

    @property
    def of_twins(self) -> bool:
        """Whether its lines get the records of others."""
        return self.group == TWIN_GROUP

    def encoded(self) -> bytes:
        return orjson.dumps([self.number, self.group, self.first, self.lines])


def parse_row(batch_id: str, raw: bytes) -> ShardRow:
    """A row of a batch as Redis keeps it.

    Raises:
        RefusedError: it is none of ours.
    """
    try:
        return ShardRow(*map(int, orjson.loads(raw)))
    except (TypeError, ValueError):
        raise RefusedError(f"the table of batch {batch_id} is damaged: {raw[:40]!r} is no row of it") from None


def read_rows(connection: Redis, batch_id: str) -> list[ShardRow]:
    """All rows of a batch.

    Raises:
        RefusedError: one of them is none of ours.
    """
    rows = cast("list[bytes]", connection.zrange(BatchKeys(batch_id).table, 0, -1))
    return [parse_row(batch_id, row) for row in rows]
