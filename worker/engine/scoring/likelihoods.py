"""Log-probabilities of tokens, from states: the vocabulary's logits are there for a few positions at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from worker.engine.sampling.filters import best
from worker.engine.sampling.sampler import normalised_as_mlx_lm
from worker.engine.scoring.head import SplitModel

LOGITS_BYTES = 256 << 20
"""Bytes of one chunk's logits in float32; passing over them takes about as much again, twice."""


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of some positions ``[count]``: the log-probability and rank of a token there, whether greedy decoding takes it,
    and the best tokens ``[count, top]`` with their log-probabilities. ``arrays`` are lazy."""

    arrays: tuple[mx.array, ...]

    def read(self) -> tuple[NDArray[Any], ...]:
        """Wait for them."""
        return tuple(np.array(array) for array in self.arrays)


def likelihoods(model: SplitModel, states: mx.array, targets: mx.array, top: int, budget: int) -> Likelihoods:
    """Of the tokens ``targets [count]`` after ``states [count, width]``, with the ``top`` best; within ``budget`` bytes
    for logits. What is there before the last chunk is computed."""
    count, chunks = states.shape[0], []
    for first, last in parts_within(budget, count, model.vocab_size):
        chunk = _chunk(model.logits(states[first:last]), targets[first:last], top)
        if last < count:
            mx.eval(chunk)  # else the logits of several would be there at once
        chunks.append(chunk)
    joined = [parts[0] if len(parts) == 1 else mx.concatenate(list(parts)) for parts in zip(*chunks, strict=True)]
    return Likelihoods(tuple(joined))


def parts_within(budget: int, count: int, vocab: int) -> list[tuple[int, int]]:
    """Even parts of ``count`` positions, the logits of each within ``budget`` bytes."""
    most = max(1, budget // (4 * vocab))
    parts = -(-count // most)
    size = -(-count // parts)
    return [(first, min(count, first + size)) for first in range(0, count, size)]


def _chunk(logits: mx.array, targets: mx.array, top: int) -> tuple[mx.array, ...]:
    greedy = mx.argmax(normalised_as_mlx_lm(logits), axis=-1) == targets
    wide = logits.astype(mx.float32)
    norm = mx.logsumexp(wide, axis=-1, keepdims=True)
    norm = mx.where(norm < mx.inf, norm, mx.nan)  # infinite logits are no better than NaN
    own = mx.take_along_axis(wide, targets[:, None], axis=-1)
    rank = 1 + (wide > own).sum(axis=-1)
    found = (own - norm)[:, 0], rank.astype(mx.int32), greedy
    if not top:
        return found
    ids, values = best(wide, top)
    return *found, ids.astype(mx.int32), values - norm
