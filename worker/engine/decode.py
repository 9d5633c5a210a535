"""The rows that decode together: one forward and one sampling step for all of them, dispatched but not awaited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence as Items
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from jobs.params import Sampling
from worker.engine import caches as batch_caches, rows as row_arrays, slots as row_slots
from worker.engine.caches import Cache
from worker.engine.model import LoadedModel
from worker.engine.rows import BatchArrays
from worker.engine.sampler import Sampled, Sampler
from worker.engine.sequence import Sequence

__all__ = ["CLEAR_EVERY", "DecodeBatch", "Results", "StepResult", "Taken"]

SETTLE_EVERY = 16
"""Steps between evaluations of the whole caches: parts of them that no logits depend on (recurrent masks, offsets of
layers without positions) would otherwise grow a graph without end."""
CLEAR_EVERY = 512
"""Steps between returns of unused buffers to the system."""

MOST_IDLE = 4
"""With more than one slot in so many idle the batch is made smaller."""
MOST_WASTED = 256
"""With more columns of padding in every row the batch is made narrower."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one step computed for one row: a token, or ``covered`` false, which means that it must be done again.
    ``drafted`` says that a draft model had proposed the token."""

    row: Sequence
    token: int
    covered: bool
    logprob: float | None
    top: list[tuple[int, float]] | None
    drafted: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """One dispatched step: its rows by slot, each with the epoch it was in, what is being computed for them, and how
    many tokens a draft model proposed for it."""

    rows: dict[int, tuple[Sequence, int]]
    sampled: Sampled
    drafted: int = 0

    def read(self) -> Iterable[Taken]:
        """Wait for the step; one entry per row that has not ended or left the batch in the meantime."""
        results = Results(self.sampled)
        live = [(slot, row) for slot, (row, epoch) in self.rows.items() if not row.ended and row.epoch == epoch]
        return [results.taken(slot, row) for slot, row in live]


class Results:
    """What a step sampled, waited for and brought to the host."""

    def __init__(self, sampled: Sampled) -> None:
        self.tokens: list[int] = _listed(sampled.tokens)
        self._covered = _listed(sampled.covered)
        self._logprobs = _listed(sampled.logprobs)
        self._ids, self._values = _listed(sampled.top_ids), _listed(sampled.top_logprobs)

    def taken(self, index: int, row: Sequence) -> Taken:
        """What entry ``index`` of the step's arrays says, of which ``row`` wants all or a part."""
        wants = row.sampling
        best = wants.top_logprobs if self._ids is not None else 0
        return Taken(
            row=row,
            token=self.tokens[index],
            covered=self._covered is None or self._covered[index],
            logprob=self._logprobs[index] if wants.logprobs and self._logprobs is not None else None,
            top=list(zip(self._ids[index][:best], self._values[index][:best], strict=True)) if best else None,
        )


def _listed(array: mx.array | None) -> Any:
    return None if array is None else array.tolist()


class DecodeBatch:
    """Rows, their caches and the tokens they are about to read.

    A row that ended leaves its slot idle: it is computed along, at next to no cost, until another row takes the slot,
    or until so many are idle that the batch is made smaller.
    """

    def __init__(self, model: LoadedModel, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._rows: list[tuple[Sequence, int] | None] = []
        self._idle: list[int] = []
        self._vacant = Sequence(None, 0, (0,), Sampling(), 0, frozenset(), limit=1)
        self._caches: list[Cache] = []
        self._inputs: mx.array | None = None
        self._arrays: BatchArrays | None = None
        self._steps = 0

    def __len__(self) -> int:
        return len(self._rows) - len(self._idle)

    def join(self, rows: Items[Sequence], caches: list[Cache], inputs: Items[int]) -> None:
        """Add rows with their prefilled caches and the last token of each prompt."""
        tokens = mx.array(list(inputs), dtype=mx.int32)
        entries = [(row, row.epoch) for row in rows]
        slots = self._idle[: len(rows)]
        if self._inputs is None:
            self._caches, self._inputs, self._rows = caches, tokens, [*entries]
        elif len(slots) == len(rows) and row_slots.place(self._caches, caches, slots):
            # Not written into the inputs as they are: they are the tokens of the step in flight.
            self._inputs = mx.put_along_axis(self._inputs, mx.array(slots), tokens, axis=0)
            for slot, entry in zip(slots, entries, strict=True):
                self._rows[slot] = entry
            del self._idle[: len(rows)]
        else:
            if self._idle:
                self._compact()
            batch_caches.extend(self._caches, caches)
            self._inputs = mx.concatenate([self._inputs, tokens])
            self._rows += entries
        self._arrays = None

    def sweep(self) -> list[Sequence]:
        """Retire rows that ended, left, or need no further step; the last of these are returned."""
        spent = []
        for slot, (row, epoch) in list(self._live()):
            if not row.ended and row.epoch == epoch and not row.exhausted:
                continue
            if not row.ended and row.epoch == epoch:
                spent.append(row)
            self._rows[slot] = None
            self._idle.append(slot)
            self._arrays = None
        if not len(self):
            self.clear()
        return spent

    def clear(self) -> None:
        """Forget all rows and their caches."""
        self._rows, self._idle, self._caches = [], [], []
        self._inputs = self._arrays = None

    def dispatch(self) -> StepResult | None:
        """Start computing the next token of every row; None without rows. Call :meth:`sweep` before."""
        if self._inputs is None:
            return None
        if len(self._idle) * MOST_IDLE > len(self._rows) or self._wasted() > MOST_WASTED:
            self._compact()
        if self._arrays is None or self._arrays.steps_left < 1:
            rows = [self._vacant if entry is None else entry[0] for entry in self._rows]
            self._arrays = row_arrays.build(rows, self._inputs, self._model.vocab_size)
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
        live = dict(self._live())
        for row, _ in live.values():
            row.in_flight += 1
        return StepResult(live, sampled)

    def _live(self) -> Iterator[tuple[int, tuple[Sequence, int]]]:
        return ((slot, entry) for slot, entry in enumerate(self._rows) if entry is not None)

    def _compact(self) -> None:
        """Drop idle slots, and columns that no row uses any more, at the price of a copy."""
        stays = [slot for slot, _ in self._live()]
        batch_caches.keep(self._caches, stays)
        self._inputs = self._inputs[mx.array(stays)] if self._inputs is not None else None
        self._rows = [self._rows[slot] for slot in stays]
        self._idle.clear()
        self._arrays = None

    def _wasted(self) -> int:
        """Columns of the caches that are padding in every row."""
        longest = max(len(row.prompt) + len(row.tokens) + row.in_flight for _, (row, _) in self._live())
        return row_slots.columns(self._caches) - longest

    def _settled(self) -> list[mx.array]:
        return batch_caches.arrays(self._caches) if self._steps % SETTLE_EVERY == 0 else []
