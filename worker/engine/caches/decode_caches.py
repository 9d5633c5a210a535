"""The caches of all rows that decode together: rows join, leave and are moved without a read from the device.

Layers that keep all tokens lie in buckets (:mod:`worker.engine.caches.growing`). Windows and recurrent states stay in
mlx-lm's own batch caches; a model that has such has one bucket, and its idle places are filled in all layers alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from worker.engine.caches import prompt_cache
from worker.engine.caches.buckets import Bucket, Layout, Place, Source
from worker.engine.caches.growing import GrowingCache, RowPositions
from worker.engine.caches.prompt_cache import NOBODY, Cache, Prefilled, leaves
from worker.engine.caches.slots import fill_slot, fits

CPU_COLUMNS, GPU_COLUMNS = 256, 4096
"""What one bucket more costs a step, in columns of attention of one row."""


def bucket_columns() -> int:
    """What one bucket more costs on this device: a GPU computes columns faster than it starts kernels."""
    return CPU_COLUMNS if mx.default_device() == mx.cpu else GPU_COLUMNS


class DecodeCaches:
    """Caches with a slot for each row, and for some that are idle.

    ``columns`` is what a bucket costs, see :class:`Layout`; infinity keeps all rows in one, as do layers of other
    kinds. Changes give the new order of the slots: for each the slot it was before, or that number of slots and more
    for the rows that joined.
    """

    def __init__(self, columns: float = math.inf) -> None:
        self.layout = Layout(columns)
        self.caches: list[Cache] = []
        self._positions = RowPositions(self.layout)

    def join(self, new: Prefilled) -> list[int]:
        """Add rows; the new order."""
        first = not self.caches
        if first:
            self.caches = [self._like(cache, new.rows) for cache in new.caches]
            if not all(isinstance(cache, GrowingCache) for cache in leaves(self.caches)):
                self.layout.bucket_columns = math.inf
        slots = self.layout.slots
        order = list(range(slots))
        rest: list[int] = []
        span = self.layout.span(new.lengths)
        for index, length in enumerate(new.lengths):
            place = self.layout.place(length, span)
            if place is None or not self._put(place, new, index):
                rest.append(index)
                continue
            slot = self.layout.slot(place)
            order[slot : slot + self.layout.occupied(place)] = [slots + index]
            self.layout.put(place, length)
        if rest:
            chosen = replace(new, rows=[new.rows[i] for i in rest], lengths=[new.lengths[i] for i in rest])
            known = [*order, *(slots + index for index in rest)]
            order = [known[slot] for slot in self._arrange(chosen, fresh=first)]
        self._positions.change()
        return order

    def leave(self, slot: int) -> None:
        """The row of a slot has ended; the slot is computed along until another row takes it."""
        self.layout.leave(slot)

    def tidy(self) -> list[int] | None:
        """Copy what costs more than the copy; the new order, None where there was nothing to do."""
        if not self.layout.due:
            return None
        order = self._arrange(None)
        self._positions.change()
        return order

    def compact(self) -> list[int] | None:
        """Copy whatever has idle places or columns that no row uses; the new order, None where there was nothing."""
        for bucket in self.layout.buckets:
            bucket.wasted = max(bucket.wasted, bucket.columns)
        return self.tidy()

    def grow(self) -> None:
        """All rows have taken in a token."""
        self._positions.grow()

    def nbytes(self) -> int:
        """Bytes that the caches take, the next step included."""
        own = [cache for cache in leaves(self.caches) if isinstance(cache, GrowingCache)]
        others = [cache for cache in leaves(self.caches) if not isinstance(cache, GrowingCache)]
        return sum(cache.nbytes_after_step() for cache in own) + prompt_cache.size_after_step(others)

    def arrays(self) -> list[mx.array]:
        """Every array of the caches, for an evaluation."""
        return prompt_cache.arrays(self.caches)

    def _like(self, cache: Cache, rows: list[int]) -> Cache:
        """What holds rows of a layer: an empty cache of ours if it keeps all tokens, else a copy of their cache."""
        if hasattr(cache, "caches"):
            twin = copy.copy(cache)
            twin.caches = tuple(self._like(part, rows) for part in cache.caches)
            return twin
        if type(cache).__name__ == prompt_cache.GROWING:
            return GrowingCache(self._positions)
        return prompt_cache.fork([cache], rows)[0]

    def _pairs(self, new: Prefilled | None) -> list[tuple[Cache, Cache]]:
        """The caches of all layers, and those of the same layers of ``new``."""
        own = leaves(self.caches)
        return list(zip(own, [None] * len(own) if new is None else leaves(new.caches), strict=True))

    def _put(self, place: Place, new: Prefilled, index: int) -> bool:
        """Write a row into a place in all layers; False, with nothing changed, where a layer cannot."""
        others = [pair for pair in self._pairs(new) if not isinstance(pair[0], GrowingCache)]
        if others and not (self.layout.occupied(place) and all(fits(*pair) for pair in others)):
            return False
        for own, other in self._pairs(new):
            if isinstance(own, GrowingCache):
                own.put(place, other, new.rows[index], new.lengths[index])
            else:
                fill_slot(own, other, place.index, new.rows[index])
        return True

    def _arrange(self, new: Prefilled | None, *, fresh: bool = False) -> list[int]:
        """Copy rows into the buckets where they should be; the new order. ``fresh``: only layers in buckets lack
        them."""
        joining = (new or NOBODY).lengths
        parts = self.layout.rearranged(joining)
        if parts is None:
            return list(range(self.layout.slots))
        for own, other in self._pairs(new):
            if isinstance(own, GrowingCache):
                own.arrange(parts, other, new or NOBODY)
            elif not fresh:
                self._refill(own, other, parts, new)
        firsts = [*(first for first, _ in self.layout.starts()), self.layout.slots]
        order = [firsts[number] + index for part in parts for number, index in part]
        self.layout.arrange(parts, joining)
        return order

    def _refill(self, own: Cache, other: Cache, parts: Sequence[Sequence[Source]], new: Prefilled | None) -> None:
        """Keep the rows of one layer that stay, and add those that join behind them."""
        joins = len(self.layout.buckets)
        stay = [index for part in parts for number, index in part if number < joins]
        come = [index for part in parts for number, index in part if number == joins]
        more = prompt_cache.fork([other], [new.rows[index] for index in come]) if new is not None and come else []
        if not stay:
            own.__dict__.update(more[0].__dict__)
            return
        if stay != list(range(self.layout.slots)):
            own.filter(stay)
        if more:
            prompt_cache.extend([own], more, len(stay), len(come))


class RowCaches:
    """What :class:`DecodeCaches` is for a model whose rows run one at a time: the row's caches, as they are."""

    def __init__(self) -> None:
        self.layout = Layout(math.inf)
        self.caches: list[Cache] = []

    def join(self, new: Prefilled) -> list[int]:
        """Take in the one row."""
        self.caches = new.caches
        self.layout.buckets = [Bucket(list(new.lengths))]
        return [0]

    def leave(self, slot: int) -> None:
        """The row has ended."""
        self.layout.leave(slot)

    def tidy(self) -> list[int] | None:
        """There is nothing to do."""
        return None

    def compact(self) -> list[int] | None:
        """There is nothing to do."""
        return None

    def nbytes(self) -> int:
        """Bytes that the caches take, the next step included."""
        return prompt_cache.size_after_step(self.caches)

    def grow(self) -> None:
        """The row has taken in a token."""
        self.layout.grow()

    def arrays(self) -> list[mx.array]:
        """Every array of the caches."""
        return prompt_cache.arrays(self.caches)
