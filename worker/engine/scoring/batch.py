"""Texts through the layers in a batch, and the log-probabilities of their tokens on the way."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from worker.engine.caches import prompt_cache
from worker.engine.caches.prompt_cache import Cache
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.scheduler import SequenceGroup
from worker.engine.scoring.head import SplitModel
from worker.engine.scoring.likelihoods import Likelihoods, likelihoods


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of a row: at ``places`` (ascending, from 0 at its first token that is computed) the log-probabilities of the
    ``targets``."""

    places: NDArray[np.int64]
    targets: NDArray[np.int64]

    @classmethod
    def of(cls, tokens: Items[int], start: int, end: int, first: int, last: Items[int]) -> Wanted:
        """Of ``tokens`` from ``start`` to ``end`` those that follow the place ``first`` and later ones, and of ``last``
        each after the last."""
        inner = np.arange(max(first, start), end - 1)
        places = np.concatenate([inner, np.full(len(last), end - 1)]) - start
        targets = np.concatenate([np.asarray(tokens[max(first, start) + 1 : end], dtype=np.int64), np.asarray(last)])
        return cls(places.astype(np.int64), targets.astype(np.int64))


class _Layers:
    """The layers of a model where a prefill expects all of it."""

    def __init__(self, model: SplitModel) -> None:
        self._model = model
        self.batchable = model.batchable
        self.new_cache = model.new_cache
        self.states: mx.array | None = None

    def forward(self, tokens: mx.array, caches: list[Cache]) -> mx.array:
        self.states = self._model.states(tokens, caches)
        return self.states


class ScoredBatch(PrefillBatch):
    """Rows whose tokens are computed, a chunk at a time, with what is ``wanted`` of each. They begin with nothing, with
    the prefix of their groups, or as copies of the rows ``origins`` of other caches. Their own are ``kept`` for those
    that go on from them."""

    def __init__(
        self,
        model: SplitModel,
        groups: list[SequenceGroup],
        wanted: Items[Wanted],
        top: int,
        logits_bytes: int,
        parents: list[Cache] | None = None,
        origins: list[int] | None = None,
        *,
        kept: bool = False,
    ) -> None:
        self._layers = _Layers(model)
        super().__init__(cast("LoadedModel", self._layers), groups)
        self._split, self._wanted, self._top = model, wanted, top
        self._logits_bytes, self._kept = logits_bytes, kept
        self._parents, self._origins = parents, origins
        self._found: list[tuple[list[tuple[int, int]], Likelihoods]] = []

    @property
    def caches(self) -> list[Cache]:
        """The caches of all rows."""
        return self._caches

    def advance(self, step_size: int) -> int:
        position = self._position
        columns = super().advance(step_size)
        if columns:
            self._look(position, columns // len(self.groups))
        return columns

    def started(self) -> list[mx.array]:
        """The arrays of the last chunk, for an evaluation."""
        found = self._found[-1][1].arrays if self._found else ()
        return [*found, *(() if self.done and not self._kept else self.arrays())]

    def results(self) -> list[tuple[NDArray[Any], ...]]:
        """Wait for the likelihoods; of each row those of its ``wanted``, in their order."""
        rows: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in self._wanted]
        for parts, found in self._found:
            arrays, at = found.read(), 0
            for row, count in parts:
                rows[row].append(tuple(array[at : at + count] for array in arrays))
                at += count
        return [tuple(map(np.concatenate, zip(*parts, strict=True))) if parts else () for parts in rows]

    def _begin(self) -> None:
        if self._parents is None or self._origins is None:
            super()._begin()
            return
        self._caches = prompt_cache.fork(self._parents, self._origins, spare=self._longest)
        self._parents = None
        if self._padded:
            prompt_cache.prepare(self._caches, self._lengths)

    def _look(self, position: int, width: int) -> None:
        """Start what is wanted of a chunk of ``width`` columns."""
        parts, chosen, targets = [], [], []
        for row, wanted in enumerate(self._wanted):
            first, last = np.searchsorted(wanted.places, [position, position + width])
            if last > first:
                parts.append((row, int(last - first)))
                chosen.append(row * width + wanted.places[first:last] - position)
                targets.append(wanted.targets[first:last])
        states, self._layers.states = self._layers.states, None
        if not parts or states is None:
            return
        flat = states.reshape(-1, states.shape[-1])[mx.array(np.concatenate(chosen))]
        found = likelihoods(self._split, flat, mx.array(np.concatenate(targets)), self._top, self._logits_bytes)
        self._found.append((parts, found))

    def hand_over(self, row: int, group: SequenceGroup) -> bool:
        """Have a group go on from a row, all but the last token of which is computed; False: another one does."""
        if self.groups[row].rows:
            return False
        self.groups[row], self._skipped = group, 0
        return True

    def prefilled(self, group: SequenceGroup) -> int:
        """All of it, as far as it is known outside of the scoring."""
        return len(group.tokens)

    def forget(self) -> None:
        """Give the caches up; what was found stays."""
        self._caches = []
