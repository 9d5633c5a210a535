"""The prompts of a batch, read back from its shards: records do not repeat them."""

from __future__ import annotations

import bisect
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.lines.line import Defaults, Job, check_line
from jobs.shard import ShardLine, decode_lines
from jobs.store.shard_table import read_rows
from jobs.store.store import Store

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Inputs"]

CACHED_BYTES = 32 << 20
"""Most bytes of unpacked shards kept, the last one aside: neighbouring lines are asked for one after the other."""


class Inputs:
    """Jobs of a batch by their index; memory does not grow with the batch."""

    def __init__(self, store: Store, batch: Batch) -> None:
        self._store = store
        self._batch = batch
        self._defaults = Defaults(batch.defaults)
        self._groups = _groups(store.connection, batch.id)
        self._unpacked: OrderedDict[int, dict[int, ShardLine]] = OrderedDict()
        self._size = 0

    def job(self, index: int) -> Job:
        """The job at ``index``, with the values that were effective.

        Raises:
            RefusedError: the batch's prompts are no longer in Redis.
        """
        line = self._line(index)
        checked = check_line(line.raw)
        return checked.job(index=index, line=line.line, batch_id=self._batch.id, defaults=self._defaults)

    def _line(self, index: int) -> ShardLine:
        # Shards of one group hold ascending, disjoint ranges; those of different groups interleave.
        for firsts, numbers in self._groups:
            place = bisect.bisect_right(firsts, index) - 1
            if place >= 0 and index in (lines := self._lines(numbers[place])):
                return lines[index]
        raise self._gone()

    def _lines(self, number: int) -> dict[int, ShardLine]:
        if number in self._unpacked:
            self._unpacked.move_to_end(number)
            return self._unpacked[number]
        payload = self._store.payload(self._batch.id, number)
        if payload is None:
            raise self._gone()
        lines = {line.index: line for line in decode_lines(payload)}
        self._unpacked[number] = lines
        self._size += _size(lines)
        while self._size > CACHED_BYTES and len(self._unpacked) > 1:
            self._size -= _size(self._unpacked.popitem(last=False)[1])
        return lines

    def _gone(self) -> RefusedError:
        return RefusedError(f"the prompts of batch {self._batch.id} are no longer in Redis: take --format native")


def _size(lines: dict[int, ShardLine]) -> int:
    return sum(len(line.raw) for line in lines.values())


def _groups(connection: Redis, batch_id: str) -> list[tuple[list[int], list[int]]]:
    """For each group its shards' first indices and numbers, in order."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in read_rows(connection, batch_id):
        if not row.rejected:
            found[row.group].append((row.first, row.number))
    return [([first for first, _ in shards], [number for _, number in shards]) for shards in found.values()]
