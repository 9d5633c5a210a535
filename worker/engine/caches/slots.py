"""Writes a row that joins into an idle slot of a layer's windows or recurrent states, in place.

mlx-lm removes and adds rows by copying the whole batch. A row written into a slot costs only its own size. Two kinds
of caches are supported, in the layout that mlx-lm 0.32 gives them; with any other the caller copies.
"""

from __future__ import annotations

import mlx.core as mx

from worker.engine.caches.prompt_cache import Cache

WINDOW, STATE = "BatchRotatingKVCache", "ArraysCache"


def fits(cache: Cache, other: Cache) -> bool:
    """Whether rows of ``other`` can be written into slots of ``cache``."""
    if _kind(cache) != _kind(other):
        return False
    if _kind(cache) == STATE:
        masked = any(item is not None for one in (cache, other) for item in (one.left_padding, one.lengths))
        return not masked and all(item is not None for item in cache.cache)
    # A window that is still wider than its size after a prefill is cut back by its first step of decoding.
    if _kind(cache) != WINDOW or cache.keys is None or cache.keys.shape[2] > cache.max_size or other.rotated:
        return False
    return bool(cache.rotated or min(other._idx, cache.max_size) <= cache._idx)


def fill_slot(cache: Cache, other: Cache, slot: int, row: int) -> None:
    """Write a row of ``other``, which :func:`fits`, into a slot of ``cache``."""
    (_fill_state if _kind(cache) == STATE else _fill_window)(cache, other, slot, row)


def _kind(cache: Cache) -> str:
    return type(cache).__name__


def _fill_state(cache: Cache, other: Cache, slot: int, row: int) -> None:
    for index, (state, new) in enumerate(zip(cache.cache, other.cache, strict=True)):
        state[slot : slot + 1] = mx.zeros_like(state[:1]) if new is None else new[row : row + 1]
        cache.cache[index] = state


def _fill_window(cache: Cache, other: Cache, slot: int, row: int) -> None:
    """Keys and values. In a ring that has gone round the newest token stands before the next write: the columns of the
    row are laid out in the order of time and then turned as far as the ring is."""
    width = cache.keys.shape[2] if cache.rotated else cache._idx
    for name in ("keys", "values"):
        columns = _last_columns(cache, other, name, row, width)
        turned = mx.roll(columns, cache._idx, 2) if cache.rotated else columns
        getattr(cache, name)[slot : slot + 1, :, :width] = turned
    place = mx.array([slot])
    # New arrays, not writes into the old: another cache may share them.
    left_padding = other.left_padding[row : row + 1] + width - other._idx
    cache.left_padding = mx.put_along_axis(cache.left_padding, place, left_padding, axis=0)
    cache.offset = mx.put_along_axis(cache.offset, place, other.offset[row : row + 1], axis=0)


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
