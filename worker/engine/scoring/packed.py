"""Attention of texts that share tokens, each of which is there once: a packed sequence in place of padded rows.

The model sees a batch of as many rows as there are tokens, of one column each: but for attention a token is a token.
Attention computes two parts, and joins them by the mass that each has: what all texts begin with, which every token
looks at, in one product; and the tokens of the texts, in blocks of neighbours with what is ahead of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence as Items
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from worker.engine.caches.prompt_cache import Cache
from worker.engine.scoring.tree import Block, Tree

BLOCK = 96
"""Most tokens of a block: a question with its choices. Within one, tokens are compared that do not see each other."""
WIDER = 1.25
"""Blocks are computed together if one looks at so many times the tokens of the other at most."""
SCORES = 1 << 24
"""Most scores of tokens for each other that are there at once."""
MASKED = -1e30
LEAST = -126.0
"""Least power of two, which is nothing beside the largest, 1: below it CPUs are slow."""
LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class _Group:
    """Blocks alike: places ``queries [blocks, columns]`` in a chunk, places ``keys [blocks, seen]`` in the sequence,
    and what is added to their scores ``[blocks, 1, 1, columns, seen]``."""

    queries: mx.array
    keys: mx.array
    mask: mx.array


class Chunk:
    """Some neighbouring blocks of a tree, as arrays that all layers share."""

    def __init__(self, tree: Tree, blocks: Items[Block]) -> None:
        self.start, self.end = blocks[0].start, blocks[-1].end
        self.tokens = mx.array(tree.tokens[self.start : self.end])[:, None]
        self.offset = mx.array(tree.depths[self.start : self.end].astype(np.int32))
        self.groups: list[_Group] = []
        slots = np.zeros(self.end - self.start, dtype=np.int32)
        first = 0
        for alike in _alike(blocks):
            columns = max(block.end - block.start for block in alike)
            self.groups.append(_group(tree, alike, columns, self.start))
            for number, block in enumerate(alike):
                place = first + number * columns
                slots[block.start - self.start : block.end - self.start] = np.arange(
                    place, place + block.end - block.start
                )
            first += len(alike) * columns
        self.slots = mx.array(slots)
        """Where each token is among all queries of the groups."""


def _alike(blocks: Items[Block]) -> Iterator[list[Block]]:
    """Blocks that look at about as many tokens."""
    alike: list[Block] = []
    for block in sorted(blocks, key=lambda block: block.seen):
        if alike and (block.seen > WIDER * alike[0].seen or len(alike) * BLOCK * block.seen * 4 > SCORES):
            yield alike
            alike = []
        alike.append(block)
    yield alike


def _group(tree: Tree, blocks: Items[Block], columns: int, start: int) -> _Group:
    seen = max(block.seen for block in blocks)
    queries = np.zeros((len(blocks), columns), dtype=np.int32)
    keys = np.zeros((len(blocks), seen), dtype=np.int32)
    mask = np.full((len(blocks), columns, seen), MASKED, dtype=np.float32)
    for row, block in enumerate(blocks):
        own = np.arange(block.start, block.end)
        looked_at = np.concatenate([block.before, own])
        queries[row, : len(own)] = own - start
        keys[row, : len(looked_at)] = looked_at
        mask[row, : len(own), : len(looked_at)][tree.follows(own, looked_at)] = 0
    return _Group(mx.array(queries), mx.array(keys), mx.array(mask)[:, None, None])


class PackedCache:
    """One layer of a packed sequence: keys and values of its tokens so far, behind those of the one row that a
    ``parent`` holds; None: behind nothing."""

    def __init__(self, parent: Any = None) -> None:
        self._shared = None
        if parent is not None:
            self._shared = parent.keys[0, :, : parent._idx], parent.values[0, :, : parent._idx]
        self._own: tuple[mx.array, mx.array] | None = None
        self._chunk: Chunk | None = None
        self.offset = mx.array(0)

    @property
    def state(self) -> list[mx.array]:
        return [] if self._own is None else [*self._own]

    def begin(self, chunk: Chunk) -> None:
        """Expect the tokens of a chunk."""
        self._chunk, self.offset = chunk, chunk.offset

    def empty(self) -> bool:
        return self._own is None

    def make_mask(self, columns: int, return_array: bool = False, window_size: int | None = None) -> None:
        """None: what a token sees is known to the attention.

        Raises:
            ValueError: for windows, which are not.
        """
        if window_size is not None:
            raise ValueError("packed texts have no windows")

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Packed, Packed]:
        """Take in a chunk's ``[tokens, heads, 1, size]``, and what its attention looks at."""
        new = keys[:, :, 0], values[:, :, 0]
        if self._own is not None:
            new = mx.concatenate([self._own[0], new[0]]), mx.concatenate([self._own[1], new[1]])
        self._own = new
        assert self._chunk is not None
        shared = self._shared or (None, None)
        return Packed(self._chunk, shared[0], new[0]), Packed(self._chunk, shared[1], new[1])


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a part of what is looked at, in float32: ``sums [tokens, heads, size]`` of values, each times 2 to the power
    of its score less the ``most``, and the ``mass`` of these factors; the last two are ``[tokens, heads, 1]``."""

    sums: mx.array
    mass: mx.array
    most: mx.array


class Packed:
    """Keys or values: ``shared [heads, columns, size]`` by all tokens of a chunk, and ``own [places, heads, size]``."""

    def __init__(self, chunk: Chunk, shared: mx.array | None, own: mx.array) -> None:
        self.chunk, self.shared, self.own = chunk, shared, own

    def attend(
        self,
        attention: Callable[..., mx.array],
        queries: mx.array,
        values: Packed,
        *,
        scale: float,
        mask: Any = None,
        cache: Any = None,
        **options: Any,
    ) -> mx.array:
        """``[tokens, heads, 1, size]`` for queries of that shape.

        Raises:
            ValueError: the model wants more of its attention than is known here.
        """
        if mask is not None or any(option is not None for option in options.values()):
            raise ValueError("packed texts have no masks and no options")
        rows = queries[:, :, 0].astype(mx.float32) * (scale * LOG2_E)
        found = self._among_own(rows, values)
        if self.shared is not None and values.shared is not None:
            found = _joined(found, _behind_all(rows, self.shared, values.shared))
        return (found.sums / found.mass)[:, :, None].astype(queries.dtype)

    def _among_own(self, rows: mx.array, values: Packed) -> _Part:
        parts = [_in_blocks(rows, self.own, values.own, group) for group in self.chunk.groups]
        columns = parts[0] if len(parts) == 1 else [mx.concatenate(list(part)) for part in zip(*parts, strict=True)]
        sums, mass, most = (array[self.chunk.slots] for array in columns)
        return _Part(sums, mass, most)


def _in_blocks(rows: mx.array, keys: mx.array, values: mx.array, group: _Group) -> tuple[mx.array, ...]:
    """The parts of all queries of a group, ``[blocks * columns, ...]``."""
    blocks, columns = group.queries.shape
    heads, kinds = rows.shape[1], keys.shape[1]
    chosen = rows[group.queries].reshape(blocks, columns, kinds, heads // kinds, -1).transpose(0, 2, 3, 1, 4)
    seen, weighed = (array.astype(mx.float32)[group.keys].transpose(0, 2, 1, 3)[:, :, None] for array in (keys, values))
    step = max(1, SCORES // (group.mask.size * (heads // kinds)))
    parts = []
    for first in range(0, kinds, step):
        some, among, own = (array[:, first : first + step] for array in (chosen, seen, weighed))
        parts.append(_weighed(some @ among.swapaxes(-1, -2) + group.mask, own))
    whole = parts[0] if len(parts) == 1 else [mx.concatenate(list(part), axis=1) for part in zip(*parts, strict=True)]
    return tuple(array.transpose(0, 3, 1, 2, 4).reshape(blocks * columns, heads, -1) for array in whole)


def _behind_all(rows: mx.array, keys: mx.array, values: mx.array) -> _Part:
    """The part of what all tokens look at."""
    count, heads, size = rows.shape
    kinds, columns, _ = keys.shape
    keys, values = (array.astype(mx.float32) for array in (keys, values))
    step = max(1, SCORES // (heads * columns))
    parts = []
    for first in range(0, count, step):
        some = rows[first : first + step]
        chosen = some.reshape(-1, kinds, heads // kinds, size).transpose(1, 2, 0, 3).reshape(kinds, -1, size)
        arrays = _weighed(chosen @ keys.swapaxes(-1, -2), values)
        shaped = (array.reshape(kinds, heads // kinds, len(some), -1).transpose(2, 0, 1, 3) for array in arrays)
        parts.append([array.reshape(len(some), heads, -1) for array in shaped])
    sums, mass, most = (part[0] if len(part) == 1 else mx.concatenate(list(part)) for part in zip(*parts, strict=True))
    return _Part(sums, mass, most)


def _weighed(scores: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Sums, mass and most of ``scores [..., queries, keys]``, which are logarithms to the base 2, and ``values``. MLX's
    power takes a third of the time of its exp on a CPU."""
    most = scores.max(axis=-1, keepdims=True)
    factors = mx.power(2.0, mx.maximum(scores - most, LEAST))
    return factors @ values, factors.sum(axis=-1, keepdims=True), most


def _joined(one: _Part, other: _Part) -> _Part:
    most = mx.maximum(one.most, other.most)
    weights = [mx.power(2.0, mx.maximum(part.most - most, LEAST)) for part in (one, other)]
    sums, mass = (
        left * weights[0] + right * weights[1] for left, right in ((one.sums, other.sums), (one.mass, other.mass))
    )
    return _Part(sums, mass, most)


def packed_caches(layers: int, prefix: Items[Cache] | None) -> list[Cache]:
    """Caches of a packed sequence of so many layers, behind those of a computed prefix."""
    return [PackedCache(None if prefix is None else prefix[layer]) for layer in range(layers)]
