"""What a model's decoding can reach on this machine: measured with a copy of memory and a prompt, and read off the
weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from worker.engine.loading.config import Experts, experts_of
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.scheduler import SequenceGroup
from worker.engine.tuning.limit import Limit
from worker.engine.tuning.measure import random_tokens

COPIED, COPIED_ON_CPU = 256 * 2**20, 64 * 2**20
"""Bytes: more than the caches of such a device hold."""
COPIES = 4
PREFILL_TOKENS, TOGETHER = 512, 4
"""Prompts of as many tokens, and as many of them, keep a device busy with computing alone."""
TRIES = 4
TRY_S = 1.5
"""A measurement is not repeated once it has taken this long."""


def limit_of(
    model: LoadedModel, row_tokens: int, context: int | None, clock: Callable[[], float] = time.perf_counter
) -> Limit:
    """The limit of a model whose rows hold ``row_tokens`` tokens. It takes seconds, and the memory of two copies."""
    experts = experts_of(model.config)
    weights, expert_weights = weights_read(model, experts)
    return Limit(
        bandwidth=_bandwidth(clock),
        prefill=_prefill_rate(model, PREFILL_TOKENS if context is None else min(PREFILL_TOKENS, context - 1), clock),
        weights=weights,
        row_bytes=model.cache_cost(row_tokens),
        expert_weights=expert_weights,
        experts=experts,
    )


def weights_read(model: LoadedModel, experts: Experts | None) -> tuple[int, int]:
    """Bytes of the weights that a step reads whatever its rows, and of those that belong to one expert or another.

    Of the embeddings it reads a row per token, which counts for nothing, unless they are its output layer too.
    """
    if not isinstance(model.model, nn.Module):
        return 0, 0
    arrays = dict(tree_flatten(model.model.parameters()))
    embeddings = [module for _, module in model.model.named_modules() if hasattr(module, "as_linear")]
    looked_up = {id(array) for module in embeddings for _, array in tree_flatten(module.parameters())}
    of_experts = {
        name for name, array in arrays.items() if experts is not None and array.ndim > 2 and len(array) == experts.count
    }
    plain = {name: array for name, array in arrays.items() if name not in of_experts and id(array) not in looked_up}
    weights = sum(int(array.nbytes) for array in plain.values())
    if all(len(array) != model.vocab_size for array in plain.values() if array.ndim):
        tied = [module for module in embeddings if len(module.weight) == model.vocab_size]
        weights += min((_bytes_of(module) for module in tied), default=0)
    return weights, sum(int(arrays[name].nbytes) for name in of_experts)


def _bytes_of(module: nn.Module) -> int:
    return sum(int(array.nbytes) for _, array in tree_flatten(module.parameters()))


def _bandwidth(clock: Callable[[], float]) -> float:
    """Bytes a second that are read and written by copies."""
    size = COPIED_ON_CPU if mx.default_device() == mx.cpu else COPIED
    source = mx.ones((size // 4,), dtype=mx.float32)
    mx.eval(source)

    def copy() -> None:
        copied = source
        for _ in range(COPIES):
            copied = mx.negative(copied)
        mx.eval(copied)

    return 2 * size * COPIES / _best_of(copy, clock)


def _prefill_rate(model: LoadedModel, length: int, clock: Callable[[], float]) -> float:
    """Tokens of prompts a second: of one, and where that is quick of several together."""
    prompts = [random_tokens(length + 1, model.vocab_size, seed=row) for row in range(TOGETHER)]

    def seconds(rows: int) -> float:
        def compute() -> None:
            groups = [SequenceGroup(prompt, length, length + 1) for prompt in prompts[:rows]]
            PrefillBatch(model, groups).complete(rows * length)

        return _best_of(compute, clock)

    alone = seconds(1)
    if not model.batchable or alone * TOGETHER > TRY_S:
        return length / alone
    return max(length / alone, TOGETHER * length / seconds(TOGETHER))


def _best_of(work: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of the quickest of some tries: what is compiled or waited for once does not count."""
    mx.synchronize()
    began = clock()
    times: list[float] = []
    while len(times) < TRIES and (not times or clock() - began < TRY_S):
        started = clock()
        work()
        times.append(clock() - started)
    mx.clear_cache()
    return max(1e-9, min(times))
