"""The rows that decode together: one sampling and one forward for all of them, started but not awaited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence as Items
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from worker.engine.caches.decode_caches import DecodeCaches, RowCaches, bucket_columns
from worker.engine.caches.prompt_cache import Prefilled
from worker.engine.guided.masks import Masks, none_allowed
from worker.engine.loading.model import LoadedModel
from worker.engine.sampling import row_params
from worker.engine.sampling.row_params import BatchArrays
from worker.engine.sampling.sampler import Sampled, Sampler
from worker.engine.sampling.sizes import GrownSizes
from worker.engine.sequence import NONE_ALLOWED, SampledToken, Sequence

SETTLE_EVERY = 16
"""Steps between evaluations of the whole caches: parts of them that no logits depend on (recurrent masks, offsets of
layers without positions) would otherwise grow a graph without end."""
CLEAR_EVERY = 512
"""Steps between returns of unused buffers to the system."""


class NotFiniteError(ArithmeticError):
    """the model's logits are NaN or infinite: no token can be drawn"""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def not_drawn(drawn: SampledToken) -> Exception:
    """Why a row has no token."""
    return none_allowed(drawn.row) if drawn.token == NONE_ALLOWED else NotFiniteError()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each row, being computed: the rows by slot. ``spent`` are those that need no further step, and
    ``drafted`` is how many tokens a draft model proposed besides. ``columns`` of attention were computed, over all
    rows, of which they ``needed`` these."""

    rows: dict[int, Sequence]
    spent: list[Sequence]
    sampled: Sampled
    drafted: int = 0
    columns: int = 0
    needed: int = 0

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

    A step has three parts. :meth:`sample` starts to draw a token per row from the logits; after it rows may
    :meth:`join`. :meth:`advance` makes the graph of the model's next run on these tokens. When the tokens are read
    :meth:`launch` starts it: earlier, MLX could not write new keys and values into the arrays of the run before, which
    would be in use, and would copy all of the caches. What follows from the tokens is done while the device is busy.

    A row that ended leaves its slot idle: it is computed along until another row takes the slot, or until that has cost
    as much as making the batch smaller.
    """

    def __init__(self, model: LoadedModel, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._rows: list[Sequence | None] = []
        self._caches = self._empty()
        self._inputs: mx.array | None = None
        self._logits: mx.array | None = None
        self._arrays: BatchArrays | None = None
        self._sizes = GrownSizes() if sampler.compiled else None
        self._masks = Masks(model.vocab_size)
        self._steps = 0

    def __len__(self) -> int:
        return sum(row is not None for row in self._rows)

    def sample(self) -> StepResult | None:
        """Start to draw the next token of every row that has not ended; None without rows."""
        self._retire(lambda row: row.ended)
        if self._logits is None or not len(self):
            return None
        if self._arrays is None or self._arrays.steps_left < 1:
            if self._sizes is not None:
                self._sizes.step = self._steps
            self._arrays = row_params.build(self._rows, self._model.vocab_size, sizes=self._sizes)
        arrays = self._arrays
        params = arrays.params
        if "guided" in arrays.features:
            params = params | {"allowed": mx.array(self._masks.of(self._rows, arrays.rows))}
        sampled = self._sampler(arrays.features, self._logits, arrays.state, params)
        mx.async_eval(sampled.outputs())
        arrays.state = sampled.state
        arrays.steps_left -= 1
        self._inputs, self._logits = sampled.inputs, None
        rows = {slot: row for slot, row in enumerate(self._rows) if row is not None}
        columns, needed = self._caches.layout.columns, self._caches.layout.needed
        spent = [row for row in rows.values() if len(row.tokens) + 1 >= row.limit]
        if spent:
            self._retire(spent.__contains__)
        return StepResult(rows, spent, sampled, columns=columns, needed=needed)

    def join(self, rows: Items[Sequence], prefilled: Prefilled, inputs: Items[int]) -> None:
        """Add rows with their prefilled caches and the last token of each prompt, before :meth:`advance`."""
        tokens = mx.array(list(inputs), dtype=mx.int32)
        if self._inputs is None or not len(self):
            self.clear()
        self._inputs = tokens if self._inputs is None else mx.concatenate([self._inputs, tokens])
        self._rows += rows
        self._reorder(self._caches.join(prefilled))

    def advance(self) -> None:
        """Make the graph of the next logits, to be started by :meth:`launch`."""
        if self._inputs is None or not len(self):
            self.clear()
            return
        if (order := self._caches.tidy()) is not None:
            self._reorder(order)
        self._logits = self._model.forward(self._inputs[:, None], self._caches.caches)[:, -1]
        self._caches.grow()
        self._steps += 1

    def launch(self) -> None:
        """Start computing the next logits, once the tokens before them are read."""
        if self._logits is None:
            return
        mx.async_eval(self._logits, self._settled())
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()

    def foresee(self) -> list[Sequence]:
        """Find out which tokens may come next, while the device is busy: it takes the host a while. The rows that
        cannot go on, because it cannot be found out."""
        return self._masks.foresee(self._rows)

    def leave(self, row: Sequence) -> None:
        """Take a row out that has not ended: it will come back."""
        self._retire(lambda other: other is row)

    def held_bytes(self) -> int:
        """Bytes that the caches take, the next step included."""
        return self._caches.nbytes() if len(self) else 0

    def compact(self) -> None:
        """Give idle slots and columns that no row uses back now; before :meth:`advance`."""
        if len(self) and (order := self._caches.compact()) is not None:
            self._reorder(order)

    def clear(self) -> None:
        """Forget all rows and their caches."""
        self._rows, self._caches = [], self._empty()
        self._inputs = self._logits = self._arrays = None

    def _empty(self) -> DecodeCaches | RowCaches:
        if not self._model.batchable:
            return RowCaches()
        return DecodeCaches(bucket_columns() if self._model.bucketed else math.inf)

    def _retire(self, which: Callable[[Sequence], bool]) -> None:
        for slot, row in enumerate(self._rows):
            if row is not None and which(row):
                self._rows[slot] = None
                self._caches.leave(slot)
                self._arrays = None

    def _reorder(self, order: list[int]) -> None:
        """The slots are others now: for each the place that its row had."""
        if order != list(range(len(self._rows))):
            self._inputs = self._inputs[mx.array(order)] if self._inputs is not None else None
            self._rows = [self._rows[place] for place in order]
        self._arrays = None

    def _settled(self) -> list[mx.array]:
        return self._caches.arrays() if self._steps % SETTLE_EVERY == 0 else []
