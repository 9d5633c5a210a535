"""Fills free slots of a batch: writes new rows into its caches in place.

mlx-lm removes and adds rows by copying the whole batch, and reads array values on the way, which waits for the step in
flight. A row written into a slot costs only its own size. Three kinds of caches are supported, in the layout that
mlx-lm 0.32 gives them; with any other the caller copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from worker.engine.caches.prompt_cache import Cache, leaves

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
        (_fill_state if _kind(cache) == STATE else _fill_columns)(cache, other, slots)
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


def _fill_state(cache: Cache, other: Cache, slots: Sequence[int]) -> None:
    for index, (state, new) in enumerate(zip(cache.cache, other.cache, strict=True)):
        for row, slot in enumerate(slots):
            state[slot : slot + 1] = mx.zeros_like(state[:1]) if new is None else new[row : row + 1]
        cache.cache[index] = state


def _fill_columns(cache: Cache, other: Cache, slots: Sequence[int]) -> None:
    """Keys and values. In a ring that has gone round the newest token stands before the next write: the columns of the
    row are laid out in the order of time and then turned as far as the ring is."""
    turned = _kind(cache) == WINDOW and cache.rotated
    width = cache.keys.shape[2] if turned else cache._idx
    for row, slot in enumerate(slots):
        for name in ("keys", "values"):
            columns = _last_columns(cache, other, name, row, width)
            getattr(cache, name)[slot : slot + 1, :, :width] = mx.roll(columns, cache._idx, 2) if turned else columns
    places = mx.array(list(slots))
    # New arrays, not writes into the old: another cache may share them.
    left_padding = other.left_padding + width - other._idx
    cache.left_padding = mx.put_along_axis(cache.left_padding, places, left_padding, axis=0)
    cache.offset = mx.put_along_axis(cache.offset, places, other.offset, axis=0)


def _last_columns(cache: Cache, other: Cache, name: str, row: int, width: int) -> mx.array:
    """The last ``width`` columns of a row of ``other``, with zeros before them where it is shorter: nothing may stay
    of the row before. Attention multiplies masked values by 0, and 0 times NaN is NaN."""
    if other.keys is None:
        return mx.zeros_like(getattr(cache, name)[:1, :, :width])
    columns: mx.array = getattr(other, name)[row : row + 1, :, : other._idx]
    excess = columns.shape[2] - width
    if excess >= 0:
        return columns[:, :, excess:]
    return mx.pad(columns, [(0, 0), (0, 0), (-excess, 0), (0, 0)])
