"""The tokens that follow prompts, drawn from the states of their last tokens as a step of decoding draws them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import mlx.core as mx

from worker.engine.decode import read_tokens
from worker.engine.sampling import row_params
from worker.engine.sampling.sampler import Sampled, Sampler
from worker.engine.scoring.head import SplitModel
from worker.engine.scoring.likelihoods import parts_within
from worker.engine.sequence import SampledToken, Sequence


@dataclass(frozen=True, slots=True)
class NextTokens:
    """One token for each of some rows, in parts that are being computed."""

    parts: list[tuple[Items[Sequence], Sampled]]

    @property
    def arrays(self) -> list[mx.array]:
        return [array for _, sampled in self.parts for array in sampled.outputs()]

    def read(self) -> list[SampledToken]:
        """Wait for them."""
        return [drawn for rows, sampled in self.parts for drawn in read_tokens(sampled, enumerate(rows))]


def next_tokens(model: SplitModel, states: mx.array, rows: Items[Sequence], budget: int) -> NextTokens:
    """Draw after ``states [rows, width]``, within ``budget`` bytes for logits. What is there before the last part is
    computed."""
    sampler, parts = Sampler(compile=None), list[tuple[Items[Sequence], Sampled]]()
    for first, last in parts_within(budget, len(rows), model.vocab_size):
        some = rows[first:last]
        arrays = row_params.build(some, model.vocab_size)
        sampled = sampler(arrays.features, model.logits(states[first:last]), arrays.state, arrays.params)
        if last < len(rows):
            mx.eval(sampled.outputs())  # else the logits of several would be there at once
        parts.append((some, sampled))
    return NextTokens(parts)
