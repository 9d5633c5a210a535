"""The prompts of a batch, read back from its shards: records do not repeat them."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.lines.line import Defaults, Job, check_line
from jobs.shard import ShardLine, decode_lines
from jobs.store.store import Store
from submit.results.read import StoredRecord

CACHED_BYTES = 32 << 20
"""Most bytes of unpacked shards kept, the last one aside: neighbouring lines are asked for one after the other."""


class Inputs:
    """The jobs that a batch's records are of; memory does not grow with the batch."""

    def __init__(self, store: Store, batch: Batch) -> None:
        self._store = store
        self._batch = batch
        self._unpacked: OrderedDict[int, dict[int, ShardLine]] = OrderedDict()
        self._size = 0

    def job(self, record: StoredRecord) -> Job:
        """The job of a record, with the values that were effective.

        Raises:
            RefusedError: the batch's prompts are no longer in Redis.
        """
        line = self._lines(record.shard).get(record.index if record.source is None else record.source)
        if line is None:
            raise self._gone()
        checked = check_line(line.raw)
        return checked.job(index=line.index, line=line.line, batch_id=self._batch.id, defaults=self._defaults)

    @cached_property
    def _defaults(self) -> Defaults:
        return Defaults(self._batch.defaults)

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
