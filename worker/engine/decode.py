"""The rows that decode together: one sampling and one forward for all of them, started but not awaited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence as Items
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from worker.engine.caches import prompt_cache
from worker.engine.caches.prompt_cache import Cache
from worker.engine.caches.slots import columns_in_use, fill_slots
from worker.engine.loading.model import LoadedModel
from worker.engine.sampling import row_params
from worker.engine.sampling.row_params import BatchArrays
from worker.engine.sampling.sampler import Sampled, Sampler
from worker.engine.sequence import SampledToken, Sequence

SETTLE_EVERY = 16
"""Steps between evaluations of the whole caches: parts of them that no logits depend on (recurrent masks, offsets of
layers without positions) would otherwise grow a graph without end."""
CLEAR_EVERY = 512
"""Steps between returns of unused buffers to the system."""

MOST_IDLE = 4
"""With more than one slot in so many idle the batch is made smaller."""
MOST_WASTED = 256
"""With more columns of padding in every row the batch is made narrower."""


class NotFiniteError(ArithmeticError):
    """the model's logits are NaN or infinite: no token can be drawn"""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each row, being computed: the rows by slot. ``spent`` are those that need no further step, and
    ``drafted`` is how many tokens a draft model proposed besides."""

    rows: dict[int, Sequence]
    spent: list[Sequence]
    sampled: Sampled
    drafted: int = 0

    def read(self) -> Iterable[SampledToken]:
        """Wait for the tokens; one entry per row."""
        return read_tokens(self.sampled, self.rows.items())


def read_tokens(sampled: Sampled, rows: Iterable[tuple[int, Sequence]]) -> list[SampledToken]:
    """Wait for what a step sampled. ``rows`` has indices into its arrays, and the row that each entry is for, which
    wants all of it or a part."""
    arrays = (sampled.tokens, sampled.covered, sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
    listed: list[Any] = [None if array is None else array.tolist() for array in arrays]
    tokens, covered, logprobs, ids, values = listed
    read = []
    for index, row in rows:
        best = row.sampling.top_logprobs if ids is not None else 0
        top = list(zip(ids[index][:best], values[index][:best], strict=True)) if best else None
        logprob = logprobs[index] if row.sampling.logprobs and logprobs is not None else None
        read.append(SampledToken(row, tokens[index], covered is None or covered[index], logprob, top))
    return read


class DecodeBatch:
    """Rows, their caches and the logits of their next tokens.

    A step has two halves. :meth:`sample` draws a token per row from the logits, and :meth:`advance` runs the model on
    these tokens and starts all of it on the device. Between the two rows may :meth:`join`; after them the tokens are
    read, and what follows from them is done while the device is busy with the model.

    A row that ended leaves its slot idle: it is computed along, at next to no cost, until another row takes the slot,
    or until so many are idle that the batch is made smaller.
    """

    def __init__(self, model: LoadedModel, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._rows: list[Sequence | None] = []
        self._idle: list[int] = []
        self._caches: list[Cache] = []
        self._inputs: mx.array | None = None
        self._logits: mx.array | None = None
        self._sampled: Sampled | None = None
        self._arrays: BatchArrays | None = None
        self._steps = 0

    def __len__(self) -> int:
        return len(self._rows) - len(self._idle)

    def sample(self) -> StepResult | None:
        """Draw the next token of every row that has not ended, lazily; None without rows."""
        self._retire(lambda row: row.ended)
        if self._logits is None or not len(self):
            return None
        if self._arrays is None or self._arrays.steps_left < 1:
            self._arrays = row_params.build(self._rows, self._model.vocab_size)
        arrays = self._arrays
        self._sampled = self._sampler(arrays.features, self._logits, arrays.state, arrays.params)
        arrays.state = self._sampled.state
        arrays.steps_left -= 1
        self._inputs, self._logits = self._sampled.inputs, None
        rows = {slot: row for slot, row in enumerate(self._rows) if row is not None}
        spent = [row for row in rows.values() if len(row.tokens) + 1 >= row.limit]
        if spent:
            self._retire(spent.__contains__)
        return StepResult(rows, spent, self._sampled)

    def join(self, rows: Items[Sequence], caches: list[Cache], inputs: Items[int]) -> None:
        """Add rows with their prefilled caches and the last token of each prompt; between sampling and advancing."""
        tokens = mx.array(list(inputs), dtype=mx.int32)
        slots = self._idle[: len(rows)]
        if self._inputs is None or not len(self):
            self._caches, self._inputs, self._rows, self._idle = caches, tokens, list(rows), []
        elif len(slots) == len(rows) and fill_slots(self._caches, caches, slots):
            # Not written into the inputs as they are: they are the tokens of the step in flight.
            self._inputs = mx.put_along_axis(self._inputs, mx.array(slots), tokens, axis=0)
            for slot, row in zip(slots, rows, strict=True):
                self._rows[slot] = row
            del self._idle[: len(rows)]
        else:
            if self._idle:
                self._compact()
            prompt_cache.extend(self._caches, caches, len(self._rows), len(rows))
            self._inputs = mx.concatenate([self._inputs, tokens])
            self._rows += rows
        self._arrays = None

    def advance(self) -> None:
        """Start computing what was sampled, and the logits of the tokens after it."""
        if self._sampled is not None:
            mx.async_eval(self._sampled.outputs())
            self._sampled = None
        if self._inputs is None or not len(self):
            self.clear()
            return
        if len(self._idle) * MOST_IDLE > len(self._rows) or self._wasted() > MOST_WASTED:
            self._compact()
        self._logits = self._model.forward(self._inputs[:, None], self._caches)[:, -1]
        self._steps += 1
        mx.async_eval(self._logits, self._settled())
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()

    def leave(self, row: Sequence) -> None:
        """Take a row out that has not ended: it will come back."""
        self._retire(lambda other: other is row)

    def clear(self) -> None:
        """Forget all rows and their caches."""
        self._rows, self._idle, self._caches = [], [], []
        self._inputs = self._logits = self._sampled = self._arrays = None

    def _retire(self, which: Callable[[Sequence], bool]) -> None:
        for slot, row in enumerate(self._rows):
            if row is not None and which(row):
                self._rows[slot] = None
                self._idle.append(slot)
                self._arrays = None

    def _compact(self) -> None:
        """Drop idle slots, and columns that no row uses any more, at the price of a copy."""
        stays = [slot for slot, row in enumerate(self._rows) if row is not None]
        prompt_cache.keep(self._caches, stays)
        self._inputs = self._inputs[mx.array(stays)] if self._inputs is not None else None
        self._rows = [self._rows[slot] for slot in stays]
        self._idle.clear()
        self._arrays = None

    def _wasted(self) -> int:
        """Columns of the caches that are padding in every row."""
        longest = max(len(row.prompt) + len(row.tokens) for row in self._rows if row is not None)
        return columns_in_use(self._caches) - longest

    def _settled(self) -> list[mx.array]:
        return prompt_cache.arrays(self._caches) if self._steps % SETTLE_EVERY == 0 else []
