"""New rows in the places of rows that ended, written into the batch's caches as they lie.

mlx-lm takes rows out of a batch and adds others by copying all of it, and reads array values on the way, which waits
for the step in flight. A row that takes another's place costs only its own size. Three kinds of caches are known here,
by the layout that mlx-lm 0.32 gives them; with any other the caller copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from worker.engine.caches.prompt_cache import Cache, leaves

__all__ = ["columns_in_use", "fill_slots"]

GROWING, WINDOW, STATE = "BatchKVCache", "BatchRotatingKVCache", "ArraysCache"


def fill_slots(caches: Sequence[Cache], others: Sequence[Cache], slots: Sequence[int]) -> bool:
    """Write row i of ``others`` into row ``slots[i]`` of ``caches``, all or none of them.

    Returns:
        False, with nothing changed, when a layer's cache is of another kind or the new rows are wider than the batch.
    """
    pairs = list(zip(leaves(caches), leaves(others), strict=True))
    if not all(_fits(cache, other) for cache, other in pairs):
        return False
    for cache, other in pairs:
        if _kind(cache) == STATE:
            _place_state(cache, other, slots)
        elif _kind(cache) == GROWING:
            _place_growing(cache, other, slots)
        else:
            _place_window(cache, other, slots)
    return True


def columns_in_use(caches: Sequence[Cache]) -> int:
    """How many columns the batch's growing caches have in use; rows shorter than that are padded on the left."""
    return max((int(cache._idx) for cache in leaves(caches) if _kind(cache) == GROWING), default=0)


def _kind(cache: Cache) -> str:
    return type(cache).__name__


def _fits(cache: Cache, other: Cache) -> bool:
    if _kind(cache) != _kind(other):
        return False
    if _kind(cache) == STATE:
        masked = any(item is not None for one in (cache, other) for item in (one.left_padding, one.lengths))
        return not masked and all(item is not None for item in cache.cache)
    if cache.keys is None or cache.values is None:
        return False
    if _kind(cache) == GROWING:
        return bool(other._idx <= cache._idx)
    # A window that is still wider than its size after a prefill is cut back by its first step of decoding.
    if _kind(cache) != WINDOW or cache.keys.shape[2] > cache.max_size or other.rotated:
        return False
    return bool(cache.rotated or min(other._idx, cache.max_size) <= cache._idx)


def _place_state(cache: Cache, other: Cache, slots: Sequence[int]) -> None:
    for index, (state, new) in enumerate(zip(cache.cache, other.cache, strict=True)):
        for row, slot in enumerate(slots):
            state[slot : slot + 1] = mx.zeros_like(state[:1]) if new is None else new[row : row + 1]
        cache.cache[index] = state


def _place_growing(cache: Cache, other: Cache, slots: Sequence[int]) -> None:
    width = cache._idx
    for row, slot in enumerate(slots):
        for name in ("keys", "values"):
            getattr(cache, name)[slot : slot + 1, :, :width] = _line(cache, other, name, row, width)
    _set_rows(cache, slots, other.left_padding + width - other._idx, other.offset)


def _place_window(cache: Cache, other: Cache, slots: Sequence[int]) -> None:
    """Into a ring that has gone round: in the order of time the newest token stands before the next write, so the
    row is laid out in that order and turned as far as the ring is."""
    width = cache.keys.shape[2] if cache.rotated else cache._idx
    for row, slot in enumerate(slots):
        for name in ("keys", "values"):
            line = _line(cache, other, name, row, width)
            turned = mx.roll(line, cache._idx, 2) if cache.rotated else line
            getattr(cache, name)[slot : slot + 1, :, :width] = turned
    _set_rows(cache, slots, other.left_padding + width - other._idx, other.offset)


def _line(cache: Cache, other: Cache, name: str, place: int, width: int) -> mx.array:
    """The last ``width`` columns of a row of ``other``, with zeros before them where it is shorter: nothing may stay
    of the row before. Attention multiplies what it does not see by nothing, and nothing times NaN is NaN."""
    if other.keys is None:
        return mx.zeros_like(getattr(cache, name)[:1, :, :width])
    row: mx.array = getattr(other, name)[place : place + 1, :, : other._idx]
    excess = row.shape[2] - width
    if excess >= 0:
        return row[:, :, excess:]
    return mx.pad(row, [(0, 0), (0, 0), (-excess, 0), (0, 0)])


def _set_rows(cache: Cache, slots: Sequence[int], left_padding: mx.array, offset: mx.array) -> None:
    places = mx.array(list(slots))
    # New arrays, not writes into the old: another cache may share them.
    cache.left_padding = mx.put_along_axis(cache.left_padding, places, left_padding, axis=0)
    cache.offset = mx.put_along_axis(cache.offset, places, offset, axis=0)
