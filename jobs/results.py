"""Reading records back: in the order they were finished, or in the order of the input.

Lines that a cancelled or expired batch left without a record get one here: each line has exactly one.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import orjson

from jobs.batch import Batch, parse_batch
from jobs.keys import BatchKeys
from jobs.shard import unpack
from jobs.store import REJECTED_GROUP
from jobs.unrun import unrun_records

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["StoredRecord", "finished_records", "ordered_records"]

CACHED_SHARDS = 64
"""Unpacked shards kept while following: lines of one shard finish near each other."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it was stored: JSON bytes, and whether it is a result (else an error).

    ``after`` is where in the order of finishing to go on reading once this record is taken.
    """

    index: int
    raw: bytes
    after: int = 0

    @property
    def ok(self) -> bool:
        """Whether this is a result; error records carry an ``error`` right after their identity."""
        return b'"error":{' not in self.raw[:2048] or "error" not in orjson.loads(self.raw)


class _Shards:
    """Records of a batch's shards, wherever they lie at the moment."""

    def __init__(self, connection: Redis, batch_id: str) -> None:
        self.connection = connection
        self.keys = BatchKeys(batch_id)
        self.ended = self._ended(batch_id)
        self._unpacked: OrderedDict[int, dict[int, bytes]] = OrderedDict()

    def _ended(self, batch_id: str) -> Batch | None:
        """The batch, if it was cancelled or has expired: no record is written to it any more."""
        stored = cast("dict[bytes, bytes]", self.connection.hgetall(self.keys.info))
        batch = parse_batch(batch_id, stored) if b"status" in stored else None
        return batch if batch is not None and batch.ended else None

    def rows(self) -> Iterator[tuple[int, int]]:
        """Number and group of each shard, by number."""
        for row in cast("list[bytes]", self.connection.zrange(self.keys.table, 0, -1)):
            number, group, _first, _lines = orjson.loads(row)
            yield number, group

    def records(self, number: int) -> dict[int, bytes]:
        """All records of a shard so far, by index."""
        if number in self._unpacked:
            self._unpacked.move_to_end(number)
            return self._unpacked[number]
        # Both in one step: a worker moves them to one place, a retry to the other.
        with self.connection.pipeline() as pipe:
            pipe.hgetall(self.keys.records(number))
            pipe.get(self.keys.compacted(number))
            live, packed = cast("tuple[dict[bytes, bytes], bytes | None]", tuple(pipe.execute()))
        if packed is None:
            return {int(index): raw for index, raw in live.items()}
        found = {orjson.loads(raw)["index"]: raw for raw in unpack(packed).split(b"\n")}
        self._unpacked[number] = found
        if len(self._unpacked) > CACHED_SHARDS:
            self._unpacked.popitem(last=False)
        return found

    def unrun(self, number: int, group: int, known: dict[int, bytes]) -> dict[int, bytes]:
        """Records of the lines that were left without one, by index; none while the batch may go on."""
        if self.ended is None or group == REJECTED_GROUP or self.connection.exists(self.keys.compacted(number)):
            return {}
        payload = cast("bytes | None", self.connection.get(self.keys.payload(number)))
        return {} if payload is None else unrun_records(self.ended, payload, known)


def finished_records(connection: Redis, batch_id: str, *, start: int = 0, chunk: int = 1000) -> Iterator[StoredRecord]:
    """Records from position ``start`` of the order of finishing, up to those there are by now.

    Raises:
        KeyError: the batch is being purged.
    """
    shards = _Shards(connection, batch_id)  # before the list is read: of a batch that has ended, it is complete
    while places := cast("list[bytes]", connection.lrange(shards.keys.finished, start, start + chunk - 1)):
        again = cast("list[bytes | None]", connection.hmget(shards.keys.retried, cast("list[str]", places)))
        pairs = [tuple(map(int, place.split(b":"))) for place in places]
        wanted: dict[int, dict[int, bytes]] = defaultdict(dict)
        for number in dict.fromkeys(number for number, _ in pairs):
            wanted[number] = shards.records(number)
        for position, ((number, index), retried_at) in enumerate(zip(pairs, again, strict=True), start):
            if retried_at is not None and position < int(retried_at):
                continue  # what it had then was taken back
            if index in wanted[number]:
                yield StoredRecord(index, wanted[number][index], position + 1)
            elif not connection.exists(shards.keys.info):
                raise KeyError(index)
        start += len(places)
    if shards.ended is None:
        return
    # Positions go on behind the list, which does not grow any more.
    position = connection.llen(shards.keys.finished)
    for number, group in shards.rows():
        known = shards.records(number)
        for index, raw in shards.unrun(number, group, known).items():
            position += 1
            if position > start:
                yield StoredRecord(index, raw, position)


def ordered_records(connection: Redis, batch_id: str) -> Iterator[StoredRecord]:
    """All records there are by now in the order of the input; memory does not grow with the batch."""
    shards = _Shards(connection, batch_id)
    groups: dict[int, list[int]] = defaultdict(list)
    for number, group in shards.rows():
        groups[group].append(number)

    def one_group(group: int, numbers: list[int]) -> Iterator[StoredRecord]:
        # Shards of one group hold ascending, disjoint ranges of indices: each is read when its turn comes.
        for number in numbers:
            known = shards.records(number)
            for index, raw in sorted({**known, **shards.unrun(number, group, known)}.items()):
                yield StoredRecord(index, raw)

    streams = [one_group(group, numbers) for group, numbers in groups.items()]
    return heapq.merge(*streams, key=lambda record: record.index) if streams else itertools.chain()
