"""Which rows of a decode batch lie together: buckets of rows of like length. Policy only: no tensors.

A step computes the attention of each bucket as wide as its longest row. All rows grow by one token per step, so what a
bucket pads its rows with stays the same for as long as they live: it is decided when a row joins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Source = tuple[int, int]
"""Where a row of a new bucket comes from: a bucket of the layout, or the one after the last for the rows that join, and
the place in it."""

MOST_BUCKETS = 8
LEAST_SPAN = 16
"""Columns of padding that are never worth a bucket."""
IDLE_COLUMNS = 64
"""An idle place costs this many columns of attention besides its own: the rest of the model computes it along."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place for a row that joins: in a bucket, at an index that is idle or the one after the last."""

    bucket: int
    index: int


@dataclass(slots=True)
class Bucket:
    """Rows that are computed ``width`` columns wide: ``lengths`` are the tokens that each holds, None where a place is
    idle. ``wasted`` adds up the columns computed for nothing since the bucket was last copied."""

    lengths: list[int | None]
    width: int = 0
    wasted: int = 0

    def __post_init__(self) -> None:
        self.width = self.width or max((length for length in self.lengths if length is not None), default=0)

    @property
    def active(self) -> list[int]:
        """The lengths of the rows."""
        return [length for length in self.lengths if length is not None]

    @property
    def idle(self) -> list[int]:
        """The idle places."""
        return [index for index, length in enumerate(self.lengths) if length is None]

    @property
    def columns(self) -> int:
        """Columns that a step computes, over all places."""
        return self.width * len(self.lengths)

    @property
    def avoidable(self) -> int:
        """Columns that a step would not compute were the bucket copied without idle places and common padding."""
        active = self.active
        common = self.width - max(active, default=0)
        return len(active) * common + (len(self.lengths) - len(active)) * (self.width + IDLE_COLUMNS)


@dataclass(slots=True)
class Layout:
    """The buckets of a batch, in the order of its slots.

    ``bucket_columns`` is what computing one bucket more costs, in columns of attention: launching its kernels. With
    infinity there is one bucket. Since a batch is copied at the price of a step or two, a bucket is copied as soon as
    it has wasted as many columns as it has: no policy that knows the future wastes less than half of that.
    """

    bucket_columns: float
    buckets: list[Bucket] = field(default_factory=list)

    @property
    def slots(self) -> int:
        return sum(len(bucket.lengths) for bucket in self.buckets)

    @property
    def columns(self) -> int:
        """Columns that a step computes."""
        return sum(bucket.columns for bucket in self.buckets)

    @property
    def needed(self) -> int:
        """Columns that the rows have tokens in."""
        return sum(sum(bucket.active) for bucket in self.buckets)

    def lengths(self) -> list[int | None]:
        """The tokens of the row in each slot."""
        return [length for bucket in self.buckets for length in bucket.lengths]

    def starts(self) -> Iterator[tuple[int, Bucket]]:
        """The first slot of each bucket."""
        first = 0
        for bucket in self.buckets:
            yield first, bucket
            first += len(bucket.lengths)

    def leave(self, slot: int) -> None:
        """The row of a slot has ended."""
        for first, bucket in self.starts():
            if slot < first + len(bucket.lengths):
                bucket.lengths[slot - first] = None
                return
        raise IndexError(f"there is no slot {slot}")

    def grow(self) -> None:
        """All rows have taken in a token."""
        for bucket in self.buckets:
            bucket.width += 1
            bucket.lengths = [None if length is None else length + 1 for length in bucket.lengths]
            bucket.wasted += bucket.avoidable

    def span(self, lengths: Sequence[int] = ()) -> float:
        """The most columns that a row is padded with rather than given another bucket.

        Rows spread evenly over lengths from the shortest to the longest, and cut into k buckets, are padded with half a
        bucket's span each; this is the span where that and the price of the buckets are least together.
        """
        known = [*lengths, *(length for bucket in self.buckets for length in bucket.active)]
        if not known or math.isinf(self.bucket_columns):
            return math.inf
        best = math.sqrt(2 * self.bucket_columns * (max(known) - min(known)) / len(known))
        return max(min(LEAST_SPAN, self.bucket_columns), best)

    def place(self, length: int, span: float) -> Place | None:
        """Where a row that joins fits as it is: in the narrowest bucket that holds it, in an idle place first."""
        fitting = [
            (bucket.width, number)
            for number, bucket in enumerate(self.buckets)
            if 0 <= bucket.width - length <= span and bucket.active
        ]
        if not fitting:
            return None
        bucket = self.buckets[min(fitting)[1]]
        idle = bucket.idle
        return Place(min(fitting)[1], idle[0] if idle else len(bucket.lengths))

    def slot(self, place: Place) -> int:
        """The slot of a place."""
        return sum(len(bucket.lengths) for bucket in self.buckets[: place.bucket]) + place.index

    def occupied(self, place: Place) -> bool:
        """Whether a place is a slot already, which is idle, and not one behind the bucket's last."""
        return place.index < len(self.buckets[place.bucket].lengths)

    def put(self, place: Place, length: int) -> None:
        """A row has joined."""
        lengths = self.buckets[place.bucket].lengths
        if place.index < len(lengths):
            lengths[place.index] = length
        else:
            lengths.append(length)

    @property
    def due(self) -> bool:
        """Whether some bucket has wasted what a copy of it costs."""
        return any(map(_due, self.buckets))

    def rearranged(self, joining: Sequence[int] = ()) -> list[list[Source]] | None:
        """The buckets as they should be, with rows of ``joining`` lengths that fit nowhere; None where they are so.

        Buckets stay as they are but for those that have wasted a copy's worth, those whose rows would be placed
        together today, and those that rows join. In each the rows that were there come before those that join.
        """
        span = self.span(joining)
        parts = [
            [(number, index) for index, length in enumerate(bucket.lengths) if length is not None or not _due(bucket)]
            for number, bucket in enumerate(self.buckets)
            if bucket.active
        ]
        parts += self._cut(joining, span)
        parts.sort(key=lambda part: self._width(part, joining))
        while (narrow := self._mergeable(parts, joining, span)) is not None:
            both = parts[narrow] + parts.pop(narrow + 1)
            parts[narrow] = sorted(source for source in both if self._length(source, joining) is not None)
        if all(self.whole(part) is not None for part in parts) and len(parts) == len(self.buckets):
            return None
        return parts

    def arrange(self, parts: Sequence[list[Source]], joining: Sequence[int] = ()) -> None:
        """Take on the buckets that :meth:`rearranged` gave."""
        kept = [self.whole(part) for part in parts]
        self.buckets = [
            Bucket([self._length(source, joining) for source in part]) if number is None else self.buckets[number]
            for number, part in zip(kept, parts, strict=True)
        ]

    def whole(self, part: Sequence[Source]) -> int | None:
        """The bucket that a part is as it stands; None for one that must be copied."""
        number = part[0][0]
        if number >= len(self.buckets) or _due(self.buckets[number]):
            return None
        same = part == [(number, index) for index in range(len(self.buckets[number].lengths))]
        return number if same else None

    def _length(self, source: Source, joining: Sequence[int]) -> int | None:
        number, index = source
        return self.buckets[number].lengths[index] if number < len(self.buckets) else joining[index]

    def _width(self, part: Sequence[Source], joining: Sequence[int]) -> int:
        number = self.whole(part)
        if number is not None:
            return self.buckets[number].width
        return max(self._length(source, joining) or 0 for source in part)

    def _cut(self, joining: Sequence[int], span: float) -> list[list[Source]]:
        """Rows that join, in parts no more than a span wide."""
        parts: list[list[Source]] = []
        widest = -math.inf
        for index in sorted(range(len(joining)), key=joining.__getitem__, reverse=True):
            if widest - joining[index] <= span and parts:
                parts[-1].append((len(self.buckets), index))
            else:
                parts.append([(len(self.buckets), index)])
                widest = joining[index]
        return [sorted(part) for part in parts]

    def _mergeable(self, parts: Sequence[list[Source]], joining: Sequence[int], span: float) -> int | None:
        """The place of a part that should be one with the next wider: no row would be padded with more than a span, or
        there are too many parts, and together they cost the least."""
        if len(parts) < 2:
            return None
        widths = [self._width(part, joining) for part in parts]
        if len(parts) > MOST_BUCKETS:
            return min(range(len(parts) - 1), key=lambda i: len(parts[i]) * (widths[i + 1] - widths[i]))
        for number, (part, wider) in enumerate(zip(parts, widths[1:], strict=False)):
            lengths = (self._length(source, joining) for source in part)
            if wider - min((length for length in lengths if length is not None), default=wider) <= span:
                return number
        return None


def _due(bucket: Bucket) -> bool:
    return bucket.avoidable > 0 and bucket.wasted >= bucket.columns
