"""Packing checked lines into shards of one group each, and shards into parcels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jobs.lines.line import Defaults
from jobs.record import rejected_record
from jobs.shard import Group, ShardLine
from jobs.store.store import FinishedLine, UploadedShard
from jobs.twin import Twin
from submit.input.validate import BadLine, Chunk, GoodLine
from submit.upload.twins import Firsts, own_of
from submit.upload.uploader import Parcel, RejectedShard, TwinShard

SHARD_LINES = 50
SHARD_BYTES = 1 << 20
REJECTED_SHARD_LINES = 500
OPEN_BYTES = 16 << 20
"""Most bytes that wait in shards not yet full: with many models, all are sent then."""
PARCEL_SHARDS = 32
PARCEL_BYTES = 4 << 20


@dataclass(slots=True)
class _OpenShard:
    """A shard that takes lines still, for one group."""

    group_number: int
    group: Group
    lines: list[ShardLine] = field(default_factory=list)
    size: int = 0


class Packing:
    """Collects the lines of a batch. Within a group, shards hold ascending indices in the order of their numbers."""

    def __init__(
        self, batch_id: str, now: Callable[[], float], defaults: Defaults | None = None, firsts: Firsts | None = None
    ) -> None:
        self.twins = 0
        """Lines so far that are not run because earlier ones are equal; found only where ``firsts`` are given."""
        self._defaults, self._firsts = defaults or Defaults({}), firsts
        self._spared: list[Twin] = []
        self._full: list[TwinShard] = []
        self.shards = 0
        """Shards so far, those of rejected lines included."""
        self._batch_id = batch_id
        self._now = now
        self._open: dict[Group, _OpenShard] = {}
        self._open_bytes = 0
        self._rejected: list[FinishedLine] = []
        self._runnable: list[UploadedShard] = []
        self._refused: list[RejectedShard] = []
        self._parcel_bytes = 0

    @property
    def groups(self) -> list[Group]:
        """All groups so far, in the order of their numbers."""
        return list(self._open)

    def add(self, chunk: Chunk) -> Iterator[Parcel]:
        """Take in a chunk; the parcels that are ready with it."""
        for line in chunk.good:
            if (twin := self._twin(line)) is None:
                self._add(line.group, line.place)
            else:
                self._spare(twin)
        for bad in chunk.bad:
            self._reject(bad)
        if self._open_bytes > OPEN_BYTES:
            self._close_all()
        if len(self._runnable) >= PARCEL_SHARDS or self._refused or self._full or self._parcel_bytes > PARCEL_BYTES:
            yield self._parcel()

    def rest(self) -> Parcel:
        """What is left at the end."""
        self._close_all()
        if self._rejected:
            self._close_rejected()
        if self._spared:
            self._close_spared()
        return self._parcel()

    def _twin(self, line: GoodLine) -> Twin | None:
        """The line as the twin of an earlier one; None where it is none."""
        if self._firsts is None or line.checked is None or (own := own_of(line.checked, self._defaults)) is None:
            return None
        place = line.place
        first = self._firsts.first(own.same, place.index)
        if first is None:
            return None
        name = own.id if own.id is not None else f"line-{place.line}"
        return Twin(place.index, name, self._open[line.group].group_number, first, own.metadata)

    def _spare(self, twin: Twin) -> None:
        self.twins += 1
        self._spared.append(twin)
        if len(self._spared) == REJECTED_SHARD_LINES:
            self._close_spared()

    def _close_spared(self) -> None:
        self._full.append(TwinShard(self.shards, self._spared))
        self.shards += 1
        self._spared = []

    def _add(self, group: Group, line: ShardLine) -> None:
        shard = self._open.get(group)
        if shard is None:
            shard = self._open[group] = _OpenShard(len(self._open), group)
        size = len(line.raw)
        if shard.lines and shard.size + size > SHARD_BYTES:
            self._close(shard)
        shard.lines.append(line)
        shard.size += size
        self._open_bytes += size
        if len(shard.lines) == SHARD_LINES:
            self._close(shard)

    def _close(self, shard: _OpenShard) -> None:
        self._runnable.append(UploadedShard(self.shards, shard.group_number, shard.group, shard.lines))
        self.shards += 1
        self._parcel_bytes += shard.size
        self._open_bytes -= shard.size
        shard.lines, shard.size = [], 0

    def _close_all(self) -> None:
        for shard in self._open.values():
            if shard.lines:
                self._close(shard)

    def _reject(self, bad: BadLine) -> None:
        record = rejected_record(
            line_id=bad.id,
            index=bad.index,
            batch_id=self._batch_id,
            problems=bad.problems,
            now=self._now(),
            metadata=bad.metadata,
        )
        self._rejected.append(FinishedLine(bad.index, False, 0, 0, 0, record))
        if len(self._rejected) == REJECTED_SHARD_LINES:
            self._close_rejected()

    def _close_rejected(self) -> None:
        self._refused.append(RejectedShard(self.shards, self._rejected))
        self.shards += 1
        self._rejected = []

    def _parcel(self) -> Parcel:
        parcel = Parcel(self._runnable, self._refused, self._full)
        self._runnable, self._refused, self._full, self._parcel_bytes = [], [], [], 0
        return parcel
