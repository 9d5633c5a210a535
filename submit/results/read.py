"""Reading records back: in the order they were finished, or in the order of the input.

Lines that a cancelled or expired batch left without a record get one here: each line has exactly one. Memory grows
neither with the batch nor with its shards: :mod:`jobs.store.shard_records` reads records in parts of bounded size.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, cast

import msgspec

from jobs.batch import Batch, parse_batch
from jobs.errors import BatchNotFoundError, RefusedError
from jobs.record_head import head_of
from jobs.shard import ShardLine, decode_lines
from jobs.store.keys import BatchKeys
from jobs.store.lost_lines import lost_lines
from jobs.store.shard_records import PIECE_BYTES, ShardRecords, loaded
from jobs.store.shard_table import ShardRow, read_rows
from jobs.twin import Twin, read_twin
from submit.results.missing_records import unrun_records

if TYPE_CHECKING:
    from redis import Redis

EARLY_BYTES = 32 << 20
"""Most bytes of records read before their turn in the order of finishing: lines of one shard finish near each other."""


class StoredRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it was stored: JSON bytes, and whether it is a result (else an error).

    ``shard`` is the number of its line's shard. ``after`` is where in the order of finishing to go on reading once this
    record is taken.
    """

    index: int
    raw: bytes
    shard: int
    after: int = 0
    source: int | None = None
    """Of a twin the index of the line in that shard whose record it has."""

    @property
    def ok(self) -> bool:
        """Whether this is a result; error records carry an ``error`` right after their identity."""
        return b'"error":{' not in self.raw[:2048] or head_of(self.raw).error is None


class _Shards:
    """A batch's shards, and what is to be read of each."""

    def __init__(self, connection: Redis, batch_id: str, part_bytes: int) -> None:
        self.connection = connection
        self.keys = BatchKeys(batch_id)
        self.records = ShardRecords(connection, batch_id, part_bytes)
        batch = self._batch(batch_id)
        self.ended = batch if batch is not None and batch.ended else None
        """The batch, if it was cancelled or has expired: no record is written to it any more."""
        self.done = batch is not None and batch.done
        self._lately: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        self._lately_bytes = 0

    def _batch(self, batch_id: str) -> Batch | None:
        stored = cast("dict[bytes, bytes]", self.connection.hgetall(self.keys.info))
        return parse_batch(batch_id, stored) if b"status" in stored else None

    @cached_property
    def _begins(self) -> dict[int, list[ShardRow]]:
        """The shards of each group, in the order of their lines."""
        groups: dict[int, list[ShardRow]] = defaultdict(list)
        for row in self.rows():
            groups[row.group].append(row)
        return groups

    def rows(self) -> list[ShardRow]:
        """The shards, by number."""
        return read_rows(self.connection, self.keys.batch_id)

    def of_group(self, shards: list[ShardRow]) -> Iterator[StoredRecord]:
        """All records of a group's shards so far, by index: they hold ascending, disjoint ranges of indices."""
        if shards[0].of_twins:
            return chain.from_iterable(map(self.twins, shards))
        found = self.records.of_each(shard.number for shard in shards)
        return chain.from_iterable(map(self._all, shards, found))

    def _all(self, shard: ShardRow, stored: Iterator[tuple[int, bytes]]) -> Iterator[StoredRecord]:
        """All records of a shard so far, by index, with those of lines that were left without one."""
        # After the last one Redis need not be asked whether there are more.
        found = islice(stored, shard.lines)
        own = (StoredRecord(index, loaded(value), shard.number) for index, value in found)
        if self.ended is None:
            return own
        return heapq.merge(own, self.unrun(shard), key=lambda record: record.index)

    def twins(self, shard: ShardRow) -> Iterator[StoredRecord]:
        """The records of lines that have those of others, as far as these have any."""
        for twin in self._twins(shard):
            rows = self._begins.get(twin.group, [])
            at = bisect_right(rows, twin.first, key=lambda row: row.first) - 1
            first = self._record(rows[at], twin.first) if at >= 0 else None
            if first is not None:
                yield StoredRecord(twin.index, twin.record(first), rows[at].number, source=twin.first)

    def _twins(self, shard: ShardRow) -> Iterator[Twin]:
        try:
            for _, raw in self.records.all(shard.number):
                yield read_twin(raw)
        except ValueError as error:
            raise RefusedError(f"what Redis keeps of batch {self.keys.batch_id} is damaged: {error!s:.200}") from None

    def _record(self, shard: ShardRow, index: int) -> bytes | None:
        """The record of a line; those of its shard are kept for lines to come, as long as there is room."""
        if shard.number not in self._lately:
            found = {record.index: record.raw for record in self.of_group([shard])}
            self._lately[shard.number] = found
            self._lately_bytes += sum(map(len, found.values()))
            while self._lately_bytes > EARLY_BYTES and len(self._lately) > 1:
                self._lately_bytes -= sum(map(len, self._lately.popitem(last=False)[1].values()))
        self._lately.move_to_end(shard.number)
        return self._lately[shard.number].get(index)

    def unrun(self, shard: ShardRow) -> Iterator[StoredRecord]:
        """Records of the lines that were left without one, by index; none while the batch may go on."""
        number = shard.number
        if self.ended is None or not shard.runs or self.connection.exists(self.keys.compacted(number)):
            return
        known = {int(index) for index in cast("list[bytes]", self.connection.hkeys(self.keys.records(number)))}
        for index, raw in unrun_records(self.ended, self._lines(self.ended, number), known):
            yield StoredRecord(index, raw, number)

    def _lines(self, batch: Batch, number: int) -> list[ShardLine]:
        """The lines of a shard: without their prompts where Redis has lost those."""
        payload = cast("bytes | None", self.connection.get(self.keys.payload(number)))
        if payload is not None:
            return decode_lines(payload)
        return [ShardLine(index, index + 1, b"") for index in lost_lines(self.connection, batch, number)]


def finished_records(
    connection: Redis,
    batch_id: str,
    *,
    start: int = 0,
    chunk: int = 1000,
    part_bytes: int = PIECE_BYTES,
    early_bytes: int = EARLY_BYTES,
) -> Iterator[StoredRecord]:
    """Records from position ``start`` of the order of finishing, up to those there are by now.

    About ``part_bytes`` are read at a time, and at most ``early_bytes`` wait for their turn.

    Raises:
        BatchNotFoundError: the batch was purged meanwhile.
        RefusedError: what Redis keeps of it is damaged.
    """
    # Before the list is read: of a batch that has ended, it is complete.
    shards = _Shards(connection, batch_id, part_bytes)
    while places := cast("list[bytes]", connection.lrange(shards.keys.finished, start, start + chunk - 1)):
        yield from _finished_at(shards, places, start, early_bytes)
        start += len(places)
    if not shards.done:
        return
    # Positions go on behind the list, which does not grow any more.
    position = connection.llen(shards.keys.finished)
    for shard in shards.rows():
        for record in shards.twins(shard) if shard.of_twins else shards.unrun(shard):
            position += 1
            if position > start:
                yield msgspec.structs.replace(record, after=position)


def _finished_at(shards: _Shards, places: list[bytes], start: int, most: int) -> Iterator[StoredRecord]:
    """The records at some places in the order of finishing, read in as few parts as their bytes allow."""
    lines: dict[int, tuple[int, int]] = {}
    of_shard: dict[int, list[int]] = defaultdict(list)
    for position, place in enumerate(places, start):
        number, index = map(int, place.split(b":"))
        lines[position] = number, index
        of_shard[number].append(position)
    early: dict[int, bytes] = {}
    for position, (number, index) in lines.items():
        if position not in early:
            later = (other for other in of_shard[number] if other >= position and other not in early)
            wanted = {other: lines[other][1] for other in later}
            _read(shards, number, wanted, early, most)
        if early.get(position):
            # Not in a variable, which would keep it while the next ones are read.
            yield StoredRecord(index, loaded(early.pop(position)), number, position + 1)
        elif early.pop(position, None) is None and not shards.connection.exists(shards.keys.info):
            # Records can be gone while their places are still listed: when the batch is being purged.
            raise BatchNotFoundError(f"batch {shards.keys.batch_id} was purged while it was read")


def _read(shards: _Shards, number: int, wanted: dict[int, int], early: dict[int, bytes], most: int) -> None:
    """Read a shard's records at these places, whose lines' indices are given, into those early: the first one at least,
    and no more than so many bytes.

    A record is empty where its line was run again: what it had then was taken back.
    """
    indices = list(wanted.values())
    part = shards.records.part(number, indices[0] - 1, indices)
    places: dict[int, int] = {}
    for (position, index), retried_at in zip(wanted.items(), part.retried, strict=True):
        if retried_at is not None and position < int(retried_at):
            early[position] = b""
        else:
            places[index] = position
    size = sum(map(len, early.values()))
    for index, value in part.records:
        if index in places:
            early[places[index]] = value
            size += len(value)
        while size > most and len(early) > 1:
            # What is wanted last is read again then.
            size -= len(early.pop(max(early)))


def ordered_records(connection: Redis, batch_id: str, *, part_bytes: int = PIECE_BYTES) -> Iterator[StoredRecord]:
    """All records there are by now in the order of the input, read about ``part_bytes`` at a time.

    Raises:
        RefusedError: what Redis keeps of it is damaged.
    """
    shards = _Shards(connection, batch_id, part_bytes)
    groups: dict[int, list[ShardRow]] = defaultdict(list)
    for shard in shards.rows():
        groups[shard.group].append(shard)
    streams = [shards.of_group(group) for group in groups.values()]
    if len(streams) == 1:
        return iter(streams[0])
    return heapq.merge(*streams, key=lambda record: record.index)
