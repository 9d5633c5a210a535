"""Measures how fast a loaded model decodes, by the number of rows in its batch, on the machine that it runs on.

One synthetic prompt is computed once and copied for every row; then the engine's own decode batch takes a few steps.
It takes seconds, see the limits below. Other work on the machine slows the measurement down.
"""

from __future__ import annotations

import logging
import socket
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from jobs.params import Sampling
from worker.engine.decode import DecodeBatch
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.sampling.sampler import Sampler, suited
from worker.engine.scheduler import SequenceGroup
from worker.engine.sequence import PreparedLine, Sequence
from worker.engine.tuning.policy import Curve, climb

log = logging.getLogger(__name__)

ROW_TOKENS = 1024
"""Tokens that a typical row holds at its end: no more rows are tried than memory has room for such."""
PROMPT_TOKENS = 512
"""Tokens that a typical row holds half-way, which decide what its attention costs."""
CHUNK = 2048
WARM_STEPS, TIMED_STEPS, FEWEST_TIMED = 3, 8, 3
SIZE_S = 1.5
"""A number of rows is measured with fewer steps once it has taken this long."""
TUNE_S = 15.0
"""No further number of rows is tried after this long; a 4B model on a Mac needs less."""


def most_rows(model: LoadedModel, most: int, memory: int | None) -> int:
    """How many rows are worth trying: at most ``most``, and what ``memory`` bytes (None: no limit) have room for."""
    size = model.cache_cost(ROW_TOKENS)
    return most if memory is None or size == 0 else max(1, min(most, memory // size))


def fingerprint(model: LoadedModel, wired_limit: int | None) -> dict[str, Any]:
    """All that the speed of a model's decoding depends on: a measurement holds while this stays equal."""
    folder, device = Path(model.name).expanduser(), mx.device_info()
    weights = [array for _, array in tree_flatten(model.model.parameters())] if model.model is not None else []
    return {
        "model": str(folder.resolve()) if folder.exists() else model.name,
        "revision": model.revision,
        "adapter": model.adapter_path,
        "weights": sum(int(array.nbytes) for array in weights),  # a folder can be written anew
        "host": socket.gethostname(),
        "device": device.get("device_name"),
        "architecture": device.get("architecture"),
        "memory": device.get("memory_size"),
        "wired_limit": wired_limit,
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
    }


def tune(
    model: LoadedModel,
    most: int,
    *,
    context: int | None = None,
    within_s: float = TUNE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Curve:
    """Measure a model that can be batched with up to ``most`` rows; ``context`` is the most tokens a row may hold.

    Raises:
        Exception: whatever the model raises with a single row; more rows that fail count as too many.
    """
    steps = WARM_STEPS + TIMED_STEPS + 2
    length = PROMPT_TOKENS if context is None else max(2, min(PROMPT_TOKENS, context - steps))
    tokens = [(31 * place + 7) % model.vocab_size for place in range(length)]
    mx.synchronize()  # steps of other models may be under way
    line = PreparedLine(None, tuple(tokens), Sampling(temperature=0.7, top_p=0.9, ignore_eos=True), frozenset())
    sequences = [Sequence(line, choice=seed, seed=seed, limit=steps) for seed in range(most)]
    prompt = PrefillBatch(model, [SequenceGroup(tokens, length - 1, length + steps, sequences)])
    prompt.complete(CHUNK)
    sampler = suited()

    def measure(rows: int) -> float | None:
        try:
            return rows / _step_s(model, sampler, prompt, rows, clock)
        except Exception as error:
            if rows == 1:
                raise
            log.warning("%s: %d rows together cannot run: %s", model.name, rows, error, extra={"action": "tune_failed"})
            return None
        finally:
            mx.clear_cache()

    return climb(measure, most, within_s=within_s, clock=clock)


def _step_s(model: LoadedModel, sampler: Sampler, prompt: PrefillBatch, rows: int, clock: Callable[[], float]) -> float:
    """Seconds of a decode step with ``rows`` copies of the prompt: the median of a few, taken as the
    engine takes them."""
    (group,) = prompt.groups
    sequences = group.sequences[:rows]
    for sequence in sequences:
        sequence.tokens.clear()  # of the measurement before
    batch = DecodeBatch(model, sampler)
    batch.join(sequences, prompt.take([group] * rows), group.tokens[-1:] * rows)
    began = clock()
    read_at: list[float] = []
    batch.advance()
    while len(read_at) <= WARM_STEPS + TIMED_STEPS and (result := batch.sample()) is not None:
        batch.advance()
        for drawn in result.read():
            drawn.row.tokens.append(drawn.token)
        read_at.append(clock())
        if len(read_at) > WARM_STEPS + FEWEST_TIMED and read_at[-1] - began > SIZE_S:
            break
    return max(1e-9, statistics.median(after - earlier for earlier, after in pairwise(read_at[WARM_STEPS:])))
