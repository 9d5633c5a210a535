"""The rows that decode together: one forward and one sampling step for all of them, dispatched but not awaited."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from worker.engine import caches as batch_caches, rows as row_arrays
from worker.engine.caches import Cache
from worker.engine.model import LoadedModel
from worker.engine.rows import BatchArrays
from worker.engine.sampler import Sampled, Sampler
from worker.engine.sequence import Sequence

__all__ = ["DecodeBatch", "StepResult", "Taken"]

SETTLE_EVERY = 16
"""Steps between evaluations of the whole caches: parts of them that no logits depend on (recurrent masks, offsets of
layers without positions) would otherwise grow a graph without end."""
CLEAR_EVERY = 512
"""Steps between returns of unused buffers to the system."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one step computed for one row: a token, or ``covered`` false, which means that it must be done again."""

    row: Sequence
    token: int
    covered: bool
    logprob: float | None
    top: list[tuple[int, float]] | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """One dispatched step: its rows, each with the epoch it was in, and what is being computed for them."""

    rows: list[tuple[Sequence, int]]
    sampled: Sampled

    def read(self) -> list[Taken]:
        """Wait for the step; one entry per row that has not ended or left the batch in the meantime."""
        sampled = self.sampled
        tokens = _listed(sampled.tokens)
        covered = _listed(sampled.covered)
        logprobs = _listed(sampled.logprobs)
        ids, values = _listed(sampled.top_ids), _listed(sampled.top_logprobs)
        taken = []
        for index, (row, epoch) in enumerate(self.rows):
            if row.ended or row.epoch != epoch:
                continue
            wants = row.sampling
            best = wants.top_logprobs if ids is not None else 0
            taken.append(
                Taken(
                    row=row,
                    token=tokens[index],
                    covered=covered is None or covered[index],
                    logprob=logprobs[index] if wants.logprobs and logprobs is not None else None,
                    top=list(zip(ids[index][:best], values[index][:best], strict=True)) if best else None,
                )
            )
        return taken


def _listed(array: mx.array | None) -> Any:
    return None if array is None else array.tolist()


class DecodeBatch:
    """Rows, their caches and the tokens they are about to read."""

    def __init__(self, model: LoadedModel, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._rows: list[tuple[Sequence, int]] = []
        self._caches: list[Cache] = []
        self._inputs: mx.array | None = None
        self._arrays: BatchArrays | None = None
        self._steps = 0

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, rows: Items[Sequence], caches: list[Cache], inputs: Items[int]) -> None:
        """Add rows with their prefilled caches and the last token of each prompt."""
        tokens = mx.array(list(inputs), dtype=mx.int32)
        if self._inputs is None:
            self._caches, self._inputs = caches, tokens
        else:
            batch_caches.extend(self._caches, caches)
            self._inputs = mx.concatenate([self._inputs, tokens])
        self._rows += [(row, row.epoch) for row in rows]
        self._arrays = None

    def sweep(self) -> list[Sequence]:
        """Take out rows that ended, left, or need no further step; the last of these are returned."""
        stays = [index for index, (row, epoch) in enumerate(self._rows) if _goes_on(row, epoch)]
        if len(stays) == len(self._rows):
            return []
        spent = [row for row, epoch in self._rows if row.exhausted and not row.ended and row.epoch == epoch]
        if not stays:
            self.clear()
            return spent
        batch_caches.keep(self._caches, stays)
        self._inputs = self._inputs[mx.array(stays)] if self._inputs is not None else None
        self._rows = [self._rows[index] for index in stays]
        self._arrays = None
        return spent

    def clear(self) -> None:
        """Forget all rows and their caches."""
        self._rows, self._caches, self._inputs, self._arrays = [], [], None, None

    def dispatch(self) -> StepResult | None:
        """Start computing the next token of every row; None without rows. Call :meth:`sweep` before."""
        if self._inputs is None:
            return None
        if self._arrays is None or self._arrays.steps_left < 1:
            self._arrays = row_arrays.build([row for row, _ in self._rows], self._inputs, self._model.vocab_size)
        arrays = self._arrays
        logits = self._model.forward(self._inputs[:, None], self._caches)[:, -1]
        sampled = self._sampler(arrays.features, logits, arrays.state, arrays.params)
        arrays.state = sampled.state
        arrays.steps_left -= 1
        self._inputs = sampled.tokens
        self._steps += 1
        mx.async_eval(sampled.outputs(), self._settled())
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()
        for row, _ in self._rows:
            row.in_flight += 1
        return StepResult(list(self._rows), sampled)

    def _settled(self) -> list[mx.array]:
        return batch_caches.arrays(self._caches) if self._steps % SETTLE_EVERY == 0 else []


def _goes_on(row: Sequence, epoch: int) -> bool:
    return not row.ended and row.epoch == epoch and not row.exhausted
