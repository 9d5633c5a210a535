"""Keys and values of a layer that keeps all tokens, for the rows of a decode batch in their buckets.

A bucket is computed as wide as its own rows need. The model sees one batch: what it hands to its attention is in parts,
one for each bucket, and :func:`in_parts` computes them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from worker.engine.caches.buckets import Layout, Place, Source
from worker.engine.caches.prompt_cache import Prefilled

COLUMNS = 128
"""Columns that a bucket grows by."""


class Parts(list[Any]):
    """The arrays of each bucket, for what a model takes to be one array."""


class RowPositions:
    """What all layers of a batch share: its ``layout``, and the arrays that follow from it, made once per step."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._offset: mx.array | None = None
        self._padding: list[tuple[bool, mx.array]] = []
        self._masks: dict[tuple[int | None, bool], Any] = {}

    @property
    def offset(self) -> mx.array:
        """``[slots]``: the position of each row's next token."""
        if self._offset is None:
            self._offset = mx.array([length or 0 for length in self.layout.lengths()])
        return self._offset

    def grow(self) -> None:
        """All rows have taken in a token."""
        self.layout.grow()
        self._offset = self.offset + 1
        self._masks.clear()

    def change(self) -> None:
        """The layout is another."""
        self._offset = None
        self._padding = []
        self._masks.clear()

    def mask(self, window: int | None, needed: bool) -> Any:
        """Which columns a row's next token may look at: ``[rows, 1, 1, columns]``, in parts if there are several
        buckets; None where that is all of them, unless an array is ``needed``."""
        if not self._padding:
            paddings = [[bucket.width - (length or 0) for length in bucket.lengths] for bucket in self.layout.buckets]
            self._padding = [(any(padding), mx.array(padding)[:, None, None, None]) for padding in paddings]
        if (window, needed) not in self._masks:
            masks = Parts(
                _mask(bucket.width + 1, padding if padded else None, window, needed)
                for bucket, (padded, padding) in zip(self.layout.buckets, self._padding, strict=True)
            )
            seen = any(mask is not None for mask in masks)
            self._masks[window, needed] = (masks[0] if len(masks) == 1 else masks) if seen else None
        return self._masks[window, needed]


def _mask(columns: int, padding: mx.array | None, window: int | None, needed: bool) -> mx.array | None:
    first = mx.array(0) if padding is None else padding
    if window is not None and columns > window:
        first = mx.maximum(first, columns - window)
    elif padding is None and not needed:
        return None
    return mx.arange(columns)[None, None, None] >= first


@dataclass(slots=True, eq=False)
class GrowingCache:
    """One layer's keys and values, an array ``[places, heads, columns, size]`` for each bucket, with room for
    more columns than are in use; None for a bucket of rows without tokens. Rows end at the same column.

    It is what :class:`mlx_lm.models.cache.BatchKVCache` is, for steps of one token.
    """

    positions: RowPositions
    _keys: list[mx.array | None] = field(default_factory=list)
    _values: list[mx.array | None] = field(default_factory=list)

    @property
    def keys(self) -> Any:
        """The array of all rows, as some models look at it; in parts if there are several buckets."""
        return self._keys[0] if len(self._keys) == 1 else Parts(self._keys)

    @keys.setter
    def keys(self, keys: Any) -> None:
        self._keys = list(keys) if isinstance(keys, Parts) else [keys]

    @property
    def values(self) -> Any:
        return self._values[0] if len(self._values) == 1 else Parts(self._values)

    @values.setter
    def values(self, values: Any) -> None:
        self._values = list(values) if isinstance(values, Parts) else [values]

    @property
    def offset(self) -> mx.array:
        return self.positions.offset

    @property
    def state(self) -> list[mx.array]:
        return [*(array for array in (*self._keys, *self._values) if array is not None), self.offset]

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in (*self._keys, *self._values) if array is not None)

    def nbytes_after_step(self) -> int:
        """Bytes that the arrays will take once every row has one more column."""
        total = 0
        for stored in (self._keys, self._values):
            for array, bucket in zip(stored, self.positions.layout.buckets, strict=True):
                if array is not None:
                    columns = array.shape[2]
                    total += int(array.nbytes) // columns * _columns(columns, bucket.width + 1)
        return total

    def empty(self) -> bool:
        return all(array is None for array in self._keys)

    def make_mask(self, columns: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return self.positions.mask(window_size, return_array)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Write the next column of every row, and what its attention looks at."""
        return self._append(self._keys, keys), self._append(self._values, values)

    def keys_and_values(self) -> tuple[Any, Any]:
        """What was looked at last, for layers that share another's."""
        return self._seen(self._keys), self._seen(self._values)

    def _seen(self, stored: list[mx.array | None]) -> Any:
        pairs = zip(stored, self.positions.layout.buckets, strict=True)
        seen = Parts(part[: len(bucket.lengths), :, : bucket.width + 1] for part, bucket in pairs if part is not None)
        return seen[0] if len(seen) == 1 else seen

    def _append(self, stored: list[mx.array | None], new: mx.array) -> Any:
        for number, (first, bucket) in enumerate(self.positions.layout.starts()):
            rows, width = len(bucket.lengths), bucket.width
            known = stored[number]
            array = _roomy(new[first : first + rows, :, :0] if known is None else known, rows, width, columns=width + 1)
            array[:rows, :, width : width + 1] = new[first : first + rows]
            stored[number] = array
        return self._seen(stored)

    def put(self, place: Place, other: Any, row: int, length: int) -> None:
        """Write a row of ``length`` tokens of a prefilled cache into a place, before the layout knows of it. Zeros come
        before them: attention multiplies what it may not see by 0, and 0 times NaN is NaN."""
        bucket = self.positions.layout.buckets[place.bucket]
        for stored, new in self._pairs(other):
            known = stored[place.bucket]
            if known is None:  # all rows of the bucket are without tokens, this one too
                continue
            array = _roomy(known, len(bucket.lengths), bucket.width, rows=place.index + 1)
            columns = array[:1, :, :0] if new is None else new[row : row + 1, :, other._idx - length : other._idx]
            padding = [(0, 0), (0, 0), (bucket.width - columns.shape[2], 0), (0, 0)]
            array[place.index : place.index + 1, :, : bucket.width] = mx.pad(columns, padding)
            stored[place.bucket] = array

    def arrange(self, parts: Sequence[list[Source]], other: Any, joining: Prefilled) -> None:
        """Copy rows into the buckets of :meth:`Layout.rearranged`, before the layout takes them on. Rows that are
        ``joining`` are in the prefilled cache ``other``, whose arrays may be taken where they are spare."""
        layout = self.positions.layout
        for stored, new in self._pairs(other):
            made = []
            for part in parts:
                number = layout.whole(part)
                if number is not None:
                    made.append(stored[number])
                elif new is not None and joining.spare and _is_all_of(part, len(layout.buckets), new, other, joining):
                    made.append(new)
                else:
                    made.append(self._copied(part, stored, new, other, joining))
            stored[:] = made

    def _pairs(self, other: Any) -> list[tuple[list[mx.array | None], mx.array | None]]:
        """Our arrays of each kind, and that of a prefilled cache."""
        if other is None:
            return [(self._keys, None), (self._values, None)]
        return [(self._keys, other.keys), (self._values, other.values)]

    def _copied(
        self,
        part: Sequence[Source],
        stored: Sequence[mx.array | None],
        new: mx.array | None,
        other: Any,
        joining: Prefilled,
    ) -> mx.array | None:
        buckets = self.positions.layout.buckets
        sample = next((array for array in (*stored, new) if array is not None), None)
        if sample is None:
            return None
        pieces: list[tuple[mx.array, int]] = []
        for number in sorted({number for number, _ in part}):
            places = [place for bucket, place in part if bucket == number]
            if number < len(buckets):
                array, width, lengths = stored[number], buckets[number].width, buckets[number].lengths
                chosen, longest = places, max(lengths[place] or 0 for place in places)
            else:
                array, width = new, 0 if new is None else other._idx
                chosen, longest = (
                    [joining.rows[place] for place in places],
                    max(joining.lengths[place] for place in places),
                )
            if array is None:
                pieces.append((mx.zeros((len(chosen), sample.shape[1], 0, sample.shape[3]), dtype=sample.dtype), 0))
                continue
            columns = array[:, :, width - longest : width]
            pieces.append((columns if chosen == list(range(len(array))) else columns[mx.array(chosen)], longest))
        width = max(own for _, own in pieces)
        padded = [mx.pad(piece, [(0, 0), (0, 0), (width - own, 0), (0, 0)]) for piece, own in pieces]
        return _roomy(mx.concatenate(padded), len(part), width, columns=width + 1)


def _is_all_of(part: Sequence[Source], joins: int, new: mx.array, other: Any, joining: Prefilled) -> bool:
    """Whether a part is all rows of a prefilled cache, in their order, and as wide."""
    chosen = [joining.rows[place] for number, place in part if number == joins]
    longest = max((joining.lengths[place] for number, place in part if number == joins), default=0)
    return len(chosen) == len(part) and chosen == list(range(len(new))) and longest == other._idx


def _columns(room: int, needed: int) -> int:
    """How many columns an array with room for some has when it has room for those that are ``needed``."""
    return room if needed <= room else -(-needed // COLUMNS) * COLUMNS


def _roomy(array: mx.array, used: int, width: int, *, rows: int = 0, columns: int = 0) -> mx.array:
    """An array with room for ``rows`` and ``columns``, itself where it has it; ``used`` rows and ``width`` columns are
    kept."""
    least_rows, _, least_columns, _ = array.shape
    if rows <= least_rows and columns <= least_columns:
        return array
    least_rows = max(rows, least_rows)
    least_columns = _columns(least_columns, columns)
    room = [(0, least_rows - used), (0, 0), (0, least_columns - width), (0, 0)]
    return mx.pad(array[:used, :, :width], room)


def in_parts(attention: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """An attention that computes buckets one after the other, given mlx-lm's own."""

    def attend(
        queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any, **options: Any
    ) -> mx.array:
        if hasattr(keys, "attend"):  # packed texts know how
            shared: mx.array = keys.attend(attention, queries, values, cache=cache, scale=scale, mask=mask, **options)
            return shared
        if not isinstance(keys, Parts):
            return attention(queries, keys, values, cache=cache, scale=scale, mask=mask, **options)
        found, first = [], 0
        masks = mask if isinstance(mask, Parts) else [mask] * len(keys)
        for part, weights, seen in zip(keys, values, masks, strict=True):
            rows = queries[first : first + len(part)]
            found.append(attention(rows, part, weights, cache=cache, scale=scale, mask=seen, **options))
            first += len(part)
        return mx.concatenate(found)

    return attend
