"""What the engine does to a model's caches: one list entry per layer, each a batch cache of mlx-lm.

mlx-lm's batch caches share a protocol (``merge``, ``prepare``, ``finalize``, ``filter``, ``extend``); these functions
apply it to all layers, and add the one thing it lacks: a copy of some rows that leaves the original alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

__all__ = ["Cache", "CacheSource", "arrays", "duplicate", "extend", "finalize", "fork", "keep", "new_batch", "prepare"]

Cache = Any
"""A cache of one layer: mlx-lm gives its caches no common typed base."""


class CacheSource(Protocol):
    """What makes empty caches for one row: a loaded model."""

    def new_cache(self) -> list[Cache]: ...


def new_batch(source: CacheSource, rows: int) -> list[Cache]:
    """Empty batch caches for ``rows`` rows, one per layer.

    Raises:
        AttributeError, ValueError: when a layer's cache cannot be batched.
    """
    singles = [source.new_cache() for _ in range(rows)]
    return [type(layer[0]).merge(list(layer)) for layer in zip(*singles, strict=True)]


def prepare(caches: Sequence[Cache], lengths: Sequence[int]) -> None:
    """Announce a right-padded prefill of rows of ``lengths`` tokens; :func:`finalize` must follow it."""
    longest = max(lengths)
    if longest == min(lengths):
        return
    padding = [longest - length for length in lengths]
    for cache in caches:
        cache.prepare(lengths=list(lengths), right_padding=padding)


def finalize(caches: Sequence[Cache]) -> None:
    """End a prefill: padding moves to the left, and recurrent layers drop their masks.

    Called after every prefill, padded or not: a recurrent cache that keeps its ``left_padding`` decrements it
    in each step and never evaluates it, until Metal runs out of buffers.
    """
    for cache in caches:
        cache.finalize()


def extend(caches: Sequence[Cache], others: Sequence[Cache]) -> None:
    """Add the rows of ``others`` behind those of ``caches``; ``others`` must not be used after."""
    for cache, other in zip(caches, others, strict=True):
        cache.extend(other)


def keep(caches: Sequence[Cache], rows: list[int]) -> None:
    """Keep only ``rows``, in that order."""
    for cache in caches:
        cache.filter(rows)


def fork(caches: Sequence[Cache], rows: list[int]) -> list[Cache]:
    """New caches with copies of ``rows`` (repeats allowed); ``caches`` stay as they are.

    A shallow copy suffices, because ``filter`` gathers into new arrays and never writes into the old.
    """
    copies = [_shallow(cache) for cache in caches]
    keep(copies, rows)
    return copies


def _shallow(cache: Cache) -> Cache:
    twin = copy.copy(cache)
    if hasattr(twin, "caches"):
        twin.caches = tuple(_shallow(part) for part in twin.caches)
    return twin


def arrays(caches: Sequence[Cache]) -> list[mx.array]:
    """Every array the caches hold, for an evaluation."""
    leaves = tree_flatten([_parts(cache) for cache in caches])
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


def _parts(cache: Cache) -> Any:
    if hasattr(cache, "caches"):
        return [_parts(part) for part in cache.caches]
    return [cache.state] if not cache.empty() else []


def duplicate(caches: Sequence[Cache]) -> list[Cache]:
    """A deep copy, for caches of one row that cannot be batched."""
    return [copy.deepcopy(cache) for cache in caches]
