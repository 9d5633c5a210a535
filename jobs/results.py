"""Reading records back: in the order they were finished, or in the order of the input."""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import orjson

from jobs.keys import BatchKeys
from jobs.shard import unpack

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["StoredRecord", "finished_records", "ordered_records"]

CACHED_SHARDS = 64
"""Unpacked shards kept while following: lines of one shard finish near each other."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it was stored: JSON bytes, and whether it is a result (else an error)."""

    index: int
    raw: bytes

    @property
    def ok(self) -> bool:
        """Whether this is a result; error records carry an ``error`` right after their identity."""
        return b'"error":{' not in self.raw[:2048] or "error" not in orjson.loads(self.raw)


class _Shards:
    """Records of a batch's shards, wherever they lie at the moment."""

    def __init__(self, connection: Redis, batch_id: str) -> None:
        self.connection = connection
        self.keys = BatchKeys(batch_id)
        self._unpacked: OrderedDict[int, dict[int, bytes]] = OrderedDict()

    def records(self, number: int) -> dict[int, bytes]:
        """All records of a shard so far, by index."""
        if number in self._unpacked:
            self._unpacked.move_to_end(number)
            return self._unpacked[number]
        live = cast("dict[bytes, bytes]", self.connection.hgetall(self.keys.records(number)))
        packed = cast("bytes | None", self.connection.get(self.keys.compacted(number)))
        if packed is None:
            return {int(index): raw for index, raw in live.items()}
        found = {orjson.loads(raw)["index"]: raw for raw in unpack(packed).split(b"\n")}
        self._unpacked[number] = found
        if len(self._unpacked) > CACHED_SHARDS:
            self._unpacked.popitem(last=False)
        return found


def finished_records(connection: Redis, batch_id: str, *, start: int = 0, chunk: int = 1000) -> Iterator[StoredRecord]:
    """Records from position ``start`` of the order of finishing, up to those stored by now."""
    shards = _Shards(connection, batch_id)
    while places := cast("list[bytes]", connection.lrange(shards.keys.finished, start, start + chunk - 1)):
        pairs = [tuple(map(int, place.split(b":"))) for place in places]
        wanted: dict[int, dict[int, bytes]] = defaultdict(dict)
        for number in dict.fromkeys(number for number, _ in pairs):
            wanted[number] = shards.records(number)
        for number, index in pairs:
            yield StoredRecord(index, wanted[number][index])
        start += len(places)


def ordered_records(connection: Redis, batch_id: str) -> Iterator[StoredRecord]:
    """All records stored by now in the order of the input; memory does not grow with the batch."""
    shards = _Shards(connection, batch_id)
    groups: dict[int, list[int]] = defaultdict(list)
    for row in cast("list[bytes]", connection.zrange(shards.keys.table, 0, -1)):
        number, group, _first, _lines = orjson.loads(row)
        groups[group].append(number)

    def one_group(numbers: list[int]) -> Iterator[StoredRecord]:
        # Shards of one group hold ascending, disjoint ranges of indices: each is read when its turn comes.
        for number in numbers:
            for index, raw in sorted(shards.records(number).items()):
                yield StoredRecord(index, raw)

    streams = [one_group(numbers) for numbers in groups.values()]
    return heapq.merge(*streams, key=lambda record: record.index) if streams else itertools.chain()
