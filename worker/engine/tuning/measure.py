"""Measures how fast a loaded model decodes, by the number of rows in its batch, on the machine that it runs on.

The beginning of a prompt is computed once. Each row goes on from there with random tokens of its own, so that rows are
as long as real ones and yet go through unlike experts; then the engine's own decode batch takes a few steps. It takes
seconds, see the limits below. Other work on the machine slows the measurement down.
"""

from __future__ import annotations

import logging
import random
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
from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import Prefix
from worker.engine.decode import DecodeBatch
from worker.engine.loading.config import experts_of
from worker.engine.loading.mlx_models import compiler_present
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.sampling.sampler import suited
from worker.engine.scheduler import SequenceGroup
from worker.engine.sequence import PreparedLine, Sequence
from worker.engine.tuning.policy import Curve, climb, kernel_sizes

log = logging.getLogger(__name__)

PROMPT_TOKENS = 512
"""Tokens that a typical row holds half-way, which decide what its attention costs. At its end it holds twice as many:
no more rows are tried than memory has room for such."""
OWN_TOKENS = 8
"""The last tokens of a row are its own; those before them are computed once for all rows."""
CHUNK = 2048
SAMPLING = Sampling(temperature=0.7, top_p=0.9, ignore_eos=True)
WARM_STEPS, TIMED_STEPS, FEWEST_TIMED = 3, 8, 3
STEPS = WARM_STEPS + TIMED_STEPS + 2
SIZE_S = 1.5
"""A number of rows is measured with fewer steps once it has taken this long."""
TUNE_S = 20.0
"""No further number of rows is tried after this long, but those that :func:`climb` always tries."""


def most_rows(model: LoadedModel, most: int, memory: int | None, prompt_tokens: int = PROMPT_TOKENS) -> int:
    """How many rows are worth trying: at most ``most``, and what ``memory`` bytes (None: no limit) have room for."""
    size = model.cache_cost(2 * prompt_tokens)
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
    prompt_tokens: int = PROMPT_TOKENS,
    context: int | None = None,
    within_s: float = TUNE_S,
    on_speed: Callable[[int, float], None] = lambda rows, rate: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Curve:
    """Measure a model with up to ``most`` rows of ``prompt_tokens`` tokens; ``context`` is the most tokens a row may
    hold. ``on_speed`` gets each number of rows with its tokens per second.

    Raises:
        Exception: whatever the model raises with a single row; more rows that fail count as too many.
    """
    mx.synchronize()  # steps of other models may be under way
    trial = _Trial(model, row_tokens(prompt_tokens, context) - STEPS, clock)

    def measure(rows: int) -> float | None:
        try:
            rate = rows / trial.step_s(rows)
        except Exception as error:
            if rows == 1:
                raise
            log.warning("%s: %d rows together cannot run: %s", model.name, rows, error, extra={"action": "tune_failed"})
            return None
        finally:
            mx.clear_cache()
        on_speed(rows, rate)
        return rate

    return climb(measure, most, within_s=within_s, always=kernel_sizes(experts_of(model.config)), clock=clock)


def row_tokens(prompt_tokens: int, context: int | None) -> int:
    """What a row of a measurement holds at its end: the prompt and the steps, as far as the context lets it."""
    least = STEPS + 2
    return max(least, prompt_tokens + STEPS) if context is None else max(least, min(prompt_tokens + STEPS, context))


def random_tokens(count: int, vocabulary: int, *, seed: int) -> list[int]:
    """So many tokens of a vocabulary; other seeds give others."""
    drawn = random.Random(seed)
    return [drawn.randrange(vocabulary) for _ in range(count)]


class _Trial:
    """Rows of ``length`` tokens, as many as are asked for."""

    def __init__(self, model: LoadedModel, length: int, clock: Callable[[], float]) -> None:
        self._model, self._clock = model, clock
        self._sampler = suited(vocab_size=model.vocab_size, compiler=compiler_present())
        self._own = min(OWN_TOKENS, length - 1)
        self._start = self._computed(length - self._own) if model.prefixes and length > self._own + 1 else None

    def step_s(self, rows: int) -> float:
        """Seconds of a decode step with so many rows: the median of a few, taken as the engine takes them."""
        batch, clock = self._batch(rows), self._clock
        began = clock()
        read_at: list[float] = []
        batch.advance()
        while len(read_at) <= WARM_STEPS + TIMED_STEPS and (result := batch.sample()) is not None:
            batch.advance()
            drawn = result.read()
            batch.launch()
            for token in drawn:
                token.row.tokens.append(token.token)
            read_at.append(clock())
            if len(read_at) > WARM_STEPS + FEWEST_TIMED and read_at[-1] - began > SIZE_S:
                break
        return max(1e-9, statistics.median(after - earlier for earlier, after in pairwise(read_at[WARM_STEPS:])))

    def _batch(self, rows: int) -> DecodeBatch:
        start = self._start
        shared = start.tokens if start is not None else ()
        size = self._model.vocab_size
        prompts = [(*shared, *random_tokens(self._own + 1, size, seed=row + 1)) for row in range(rows)]
        groups = [SequenceGroup(list(prompt), self._own, len(prompt) + STEPS, prefix=start) for prompt in prompts]
        prefill = PrefillBatch(self._model, groups)
        prefill.complete(CHUNK)
        lines = [PreparedLine(None, prompt, SAMPLING, frozenset()) for prompt in prompts]
        sequences = [Sequence(line, choice=row, seed=row, limit=STEPS) for row, line in enumerate(lines)]
        batch = DecodeBatch(self._model, self._sampler)
        batch.join(sequences, prefill.take(groups), [prompt[-1] for prompt in prompts])
        return batch

    def _computed(self, length: int) -> Prefix:
        """The beginning that all prompts have in common."""
        prefix = Prefix(tuple(random_tokens(length, self._model.vocab_size, seed=0)))
        prefill = PrefillBatch.of_prefix(self._model, prefix)
        prefill.complete(CHUNK)
        prefix.caches = prompt_cache.pack(prefill.take(prefill.groups).caches)
        return prefix
