"""Rows that go on from shared ones without copies of them: the choices of a question in one attention.

Rows are in groups of equal size, each behind one row of other caches. A group's queries look at the keys of that row,
which are there once, and at their own. For everything but attention they are rows like others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx


class Forked:
    """Keys or values of rows in groups: ``shared [groups, heads, columns, size]`` and ``own [groups * size of a group,
    heads, new columns, size]``. Attention that knows groups computes with them: see
    :func:`worker.engine.caches.growing.in_parts`."""

    def __init__(self, shared: mx.array, own: mx.array) -> None:
        self.shared, self.own = shared, own

    def attend(self, attention: Callable[..., mx.array], queries: mx.array, values: Forked, **options: Any) -> mx.array:
        """The attention of all rows, given mlx-lm's own for one group after the other, all in one call."""
        groups = self.shared.shape[0]
        found = attention(_grouped(queries, groups), self._joined(), values._joined(), **options)
        rows, columns = queries.shape[0], queries.shape[2]
        parted = found.reshape(groups, found.shape[1], rows // groups, columns, found.shape[3])
        return parted.transpose(0, 2, 1, 3, 4).reshape(rows, found.shape[1], columns, found.shape[3])

    def _joined(self) -> mx.array:
        return mx.concatenate([self.shared, _grouped(self.own, self.shared.shape[0])], axis=2)


def _grouped(rows: mx.array, groups: int) -> mx.array:
    """``[rows, heads, columns, size]`` as ``[groups, heads, rows of a group * columns, size]``."""
    count, heads, columns, size = rows.shape
    parted = rows.reshape(groups, count // groups, heads, columns, size).transpose(0, 2, 1, 3, 4)
    return parted.reshape(groups, heads, count // groups * columns, size)


class ForkedCache:
    """One layer of groups of ``members`` rows, each behind one of the ``rows`` of a growing cache."""

    def __init__(self, parent: Any, rows: list[int], members: int) -> None:
        chosen = mx.array(rows)
        self._keys, self._values = (array[:, :, : parent._idx][chosen] for array in (parent.keys, parent.values))
        self._padding = parent.left_padding[chosen]
        self._members = members
        self._own: tuple[mx.array, mx.array] | None = None
        self.offset = mx.repeat(parent.offset[chosen], members)

    @property
    def state(self) -> list[mx.array]:
        return [] if self._own is None else [*self._own]

    def empty(self) -> bool:
        return self._own is None

    def finalize(self) -> None:
        """Nothing moves: what is padded comes after all that is looked at."""

    def make_mask(self, columns: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """``[groups, 1, members * columns, shared columns and the own ones of all members]``."""
        if window_size is not None:
            raise ValueError("windows do not go on from shared rows")
        shared = self._keys.shape[2]
        before = 0 if self._own is None else self._own[0].shape[2]
        seen = mx.arange(shared)[None] >= self._padding[:, None]
        groups, members, own = len(self._padding), self._members, before + columns
        causal = mx.arange(own)[None] <= mx.arange(before, own)[:, None]
        blocks = mx.eye(members, dtype=mx.bool_)[:, None, :, None] & causal[None, :, None, :]
        blocks = blocks.reshape(1, 1, members * columns, members * own)
        left = mx.broadcast_to(seen[:, None, None], (groups, 1, members * columns, shared))
        right = mx.broadcast_to(blocks, (groups, 1, members * columns, members * own))
        return mx.concatenate([left, right], axis=3)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Forked, Forked]:
        """Take in the rows' next columns, and what their attention looks at."""
        if self._own is not None:
            before = zip(self._own, (keys, values), strict=True)
            keys, values = (mx.concatenate([old, new], axis=2) for old, new in before)
        self.offset = self.offset + keys.shape[2] - (0 if self._own is None else self._own[0].shape[2])
        self._own = keys, values
        return Forked(self._keys, keys), Forked(self._values, values)
