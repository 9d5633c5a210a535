"""What the engine does to a model's caches: one list entry per layer, each a batch cache of mlx-lm.

mlx-lm's batch caches share a protocol (``merge``, ``prepare``, ``finalize``, ``filter``, ``extend``); these functions
apply it to all layers, and add the one thing it lacks: a copy of some rows that leaves the original alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

Cache = Any
"""A cache of one layer: mlx-lm gives its caches no common typed base."""
GROWING = "BatchKVCache"
"""mlx-lm's cache of a batch whose layer keeps all tokens."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Rows whose prompts are computed: the ``rows`` of batch ``caches``, with the ``lengths`` of tokens in them. The
    caches may have other rows, and must stay as they are unless they are ``spare``."""

    caches: list[Cache]
    rows: list[int]
    lengths: list[int]
    spare: bool = False


NOBODY = Prefilled([], [], [])
"""No rows."""


def new_batch(rows: Sequence[Sequence[Cache]]) -> list[Cache]:
    """Empty batch caches, one per layer, given empty caches for each row.

    Raises:
        AttributeError, ValueError: when a layer's cache cannot be batched.
    """
    merged = [type(layer[0]).merge(list(layer)) for layer in zip(*rows, strict=True)]
    finalize(merged)
    return merged


def prepare(caches: Sequence[Cache], lengths: Sequence[int]) -> None:
    """Announce a right-padded prefill of rows of ``lengths`` tokens; :func:`finalize` must follow it."""
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    for cache in leaves(caches):
        if not _recurrent(cache):
            cache.prepare(lengths=list(lengths), right_padding=padding)


def announce(caches: Sequence[Cache], remaining: Sequence[int], width: int) -> None:
    """Set in recurrent layers how much of a chunk of ``width`` columns each row fills, given what it has left.

    mlx-lm gives them the whole length, from which they count down. Its state-space layers then read beyond a chunk
    that a row fills and goes on from, and let padding into the state of a row that ended with the chunk before. With
    a length within the chunk, and -1 for rows without a part in it, they are right.
    """
    lengths = [min(left, width) if left > 0 else -1 for left in remaining]
    for cache in leaves(caches):
        if _recurrent(cache):
            cache.prepare(lengths=lengths)


def recurrent(caches: Sequence[Cache]) -> bool:
    """Whether some layer keeps a state in place of keys and values."""
    return any(_recurrent(cache) for cache in leaves(caches))


def leaves(caches: Sequence[Cache]) -> list[Cache]:
    """All caches, those of layers with several caches one by one."""
    return [leaf for cache in caches for leaf in (leaves(cache.caches) if hasattr(cache, "caches") else [cache])]


def _recurrent(cache: Cache) -> bool:
    return hasattr(cache, "lengths")


def finalize(caches: Sequence[Cache]) -> None:
    """End a prefill: padding moves to the left, and recurrent layers drop their masks.

    New batches need it too: a recurrent cache that keeps its ``left_padding`` decrements it in each step and never
    evaluates it, until Metal runs out of buffers.
    """
    for cache in caches:
        cache.finalize()


def extend(caches: Sequence[Cache], others: Sequence[Cache], rows: int, more: int) -> None:
    """Add the ``more`` rows of ``others`` behind the ``rows`` of ``caches``; ``others`` must not be used after.

    Recurrent caches that hold nothing yet have no number of rows, so the rows are added up here.
    """
    for cache, other in zip(leaves(caches), leaves(others), strict=True):
        if _recurrent(cache) and cache.left_padding is None and other.left_padding is None:
            cache.cache = [_joined(*pair, rows, more) for pair in zip(cache.cache, other.cache, strict=True)]
        else:
            cache.extend(other)


def _joined(state: mx.array | None, other: mx.array | None, rows: int, more: int) -> mx.array | None:
    parts = [(state, rows), (other, more)]
    known = next((part for part, _ in parts if part is not None), None)
    if known is None:
        return None
    blank = [mx.zeros((count, *known.shape[1:]), dtype=known.dtype) for _, count in parts]
    return mx.concatenate([zeros if part is None else part for (part, _), zeros in zip(parts, blank, strict=True)])


def fork(caches: Sequence[Cache], rows: list[int], spare: int = 0) -> list[Cache]:
    """New caches with copies of ``rows`` (repeats allowed); ``caches`` stay as they are. Where there are ``spare``
    columns behind the used ones they are copied too, and need not be made when they are filled.

    A shallow copy suffices, because ``filter`` gathers into new arrays and never writes into the old. That of growing
    caches is left alone: it reads their padding, which waits for the step in flight.
    """
    copies = [_shallow(cache) for cache in caches]
    for cache in leaves(copies):
        if type(cache).__name__ != GROWING:
            cache.filter(rows)
            continue
        chosen = mx.array(rows)
        if cache.keys is not None:
            end = cache._idx + spare
            cache.keys, cache.values = cache.keys[:, :, :end][chosen], cache.values[:, :, :end][chosen]
        cache.offset, cache.left_padding = cache.offset[chosen], cache.left_padding[chosen]
    return copies


def repeat(caches: Sequence[Cache], rows: int) -> list[Cache]:
    """New caches with ``rows`` copies of the one row of packed ``caches``, which stay as they are.

    Growing caches are not copied here: their first update does it. mlx-lm's ``filter`` would, and would read values
    besides, which waits for the step in flight.
    """
    copies = [_shallow(cache) for cache in caches]
    for cache in leaves(copies):
        if not _growing(cache):
            cache.filter([0] * rows)
            continue
        cache.keys = mx.broadcast_to(cache.keys, (rows, *cache.keys.shape[1:]))
        cache.values = mx.broadcast_to(cache.values, (rows, *cache.values.shape[1:]))
        cache.offset, cache.left_padding = mx.repeat(cache.offset, rows), mx.repeat(cache.left_padding, rows)
    return copies


def pack(caches: Sequence[Cache]) -> list[Cache]:
    """The caches of a batch of one row without spare columns, and without those that left a window: what to keep."""
    packed = [_shallow(cache) for cache in caches]
    for cache in leaves(packed):
        if _growing(cache):  # a single row has no padding
            cache.keys = mx.contiguous(cache.keys[:, :, : cache._idx])
            cache.values = mx.contiguous(cache.values[:, :, : cache._idx])
        elif not _recurrent(cache) and not cache.empty():
            single = cache.extract(0)
            cache.state = type(single).merge([single]).state
    return packed


def shorten(caches: Sequence[Cache], tokens: int) -> list[Cache] | None:
    """Packed caches of the first ``tokens`` tokens of such caches; None where a layer keeps no earlier state, as
    windows and recurrent layers."""
    if not all(_growing(cache) for cache in leaves(caches)):
        return None
    shorter = [_shallow(cache) for cache in caches]
    for cache in leaves(shorter):
        excess = cache._idx - tokens
        cache.keys = mx.contiguous(cache.keys[:, :, :tokens])
        cache.values = mx.contiguous(cache.values[:, :, :tokens])
        cache.offset = cache.offset - excess
        cache._idx = tokens
    return shorter


def size(caches: Sequence[Cache]) -> int:
    """Bytes of the arrays of ``caches``."""
    return sum(int(cache.nbytes) for cache in leaves(caches))


def size_after_step(caches: Sequence[Cache]) -> int:
    """Bytes of the arrays of ``caches`` once each row has one more column: full ones grow by several at a time."""
    total = 0
    for cache in leaves(caches):
        total += int(cache.nbytes)
        keys, used = getattr(cache, "keys", None), getattr(cache, "_idx", getattr(cache, "offset", None))
        if isinstance(keys, mx.array) and isinstance(used, int) and 0 < (width := keys.shape[2]) <= used:
            more = min(cache.step, getattr(cache, "max_size", width + cache.step) - width)
            total += int(cache.nbytes) // width * max(0, more)
    return total


def trimmable(caches: Sequence[Cache]) -> bool:
    """Whether caches can forget their last tokens at any length. Windows can only until they are full."""
    bounded = ("max_size", "chunk_size")
    return all(cache.is_trimmable() and not any(hasattr(cache, name) for name in bounded) for cache in leaves(caches))


def trim(caches: Sequence[Cache], tokens: int) -> None:
    """Forget the last ``tokens`` tokens of :func:`trimmable` caches."""
    for cache in caches:
        cache.trim(tokens)


def _growing(cache: Cache) -> bool:
    return type(cache).__name__ == GROWING and not cache.empty()


def _shallow(cache: Cache) -> Cache:
    twin = copy.copy(cache)
    if hasattr(twin, "caches"):
        twin.caches = tuple(_shallow(part) for part in twin.caches)
    return twin


def arrays(caches: Sequence[Cache]) -> list[mx.array]:
    """Every array the caches hold, for an evaluation."""
    states = [cache.state for cache in leaves(caches) if not cache.empty()]
    return [array for _, array in tree_flatten(states) if isinstance(array, mx.array)]


def duplicate(caches: Sequence[Cache]) -> list[Cache]:
    """A deep copy, for caches of one row that cannot be batched."""
    return [copy.deepcopy(cache) for cache in caches]
