"""A trial of a freshly loaded model: what its caches cost, and whether its rows may share a batch.

mlx-lm's models differ in how well they mask padding. Some have caches that cannot be merged, some let padding into
recurrent state. There is no list of models: the engine's own prefill and decode are tried with a few tokens.
"""

from __future__ import annotations

import mlx.core as mx

from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import Prefix
from worker.engine.caches.prompt_cache import Cache
from worker.engine.loading.model import CacheCost, LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.scheduler import SequenceGroup

LENGTHS = (9, 4, 6, 0)
"""Tokens to prefill of the trial's rows: more than a chunk, exactly one, something in between, and none. Beside rows
with a state, some recurrent layers mistake the zeros of a row without one."""
CHUNK = 4
SHARED, TAILS = 7, (6, 3)
"""Tokens of a prefix, and of what follows it in two prompts."""
EXACT, ROUNDED = 1e-3, 0.2
"""How far logits may be from those a row has alone, relative to their size: in float32, and in half precision, where
kernels for different batch sizes round differently."""


def cache_cost(caches: list[Cache], *, tokens: int) -> CacheCost:
    """What the caches of one row take, given such caches with ``tokens`` tokens in them."""
    growing, windows, fixed = 0, [], 0
    for cache in prompt_cache.leaves(caches):
        if not hasattr(cache, "keys"):
            fixed += int(cache.nbytes)
            continue
        stored = cache.keys[0] if isinstance(cache.keys, (tuple, list)) else cache.keys  # parts of quantised keys
        width = stored.shape[2] if isinstance(stored, mx.array) and stored.ndim > 2 else tokens
        per_token = -(-int(cache.nbytes) // width)
        most = getattr(cache, "max_size", None)
        if most is None:
            growing += per_token
        else:
            windows.append((per_token, int(most)))
    return CacheCost(growing, tuple(windows), fixed)


def try_batching(model: LoadedModel) -> tuple[str | None, bool]:
    """Why rows of this model cannot share a batch (None: they can), and whether padding leaves them alone."""
    size = model.vocab_size
    prompts = [[(31 * row + 7 * i + 1) % size for i in range(length + 1)] for row, length in enumerate(LENGTHS)]
    expected = [_alone(model, prompt) for prompt in prompts]
    try:
        if _distance(expected, _together(model, [prompts[:-1], prompts[-1:]])) < _tolerance(expected):
            return None, True
        distance = _distance(expected, _together(model, [[prompt] for prompt in prompts]))
    except Exception as error:
        return f"its caches cannot be batched ({type(error).__name__}: {error})", False
    if distance < _tolerance(expected):
        return None, False
    return f"in a batch its logits are off by {distance:.2g}", False


def try_prefixes(model: LoadedModel) -> bool:
    """Whether rows of this model, which can be batched, may go on from copies of what they have in common."""
    shared = tuple((5 * i + 2) % model.vocab_size for i in range(SHARED))
    tails = [[(31 * row + 7 * i + 1) % model.vocab_size for i in range(length)] for row, length in enumerate(TAILS)]
    prompts = [[*shared, *tail] for tail in tails]
    expected = [_alone(model, prompt) for prompt in prompts]
    prefix = Prefix(shared)
    batch = PrefillBatch.of_prefix(model, prefix)
    batch.complete(CHUNK)
    prefix.caches = prompt_cache.pack(batch.take(batch.groups))
    batches = [prompts] if model.padded_prefill else [[prompt] for prompt in prompts]
    return _distance(expected, _together(model, batches, prefix)) < _tolerance(expected)


def try_trimming(model: LoadedModel) -> bool:
    """Whether this model, whose caches can forget tokens, goes on from there as if it had never read them."""
    parts = [[(7 * i + start) % model.vocab_size for i in range(CHUNK)] for start in (1, 2, 3)]
    expected, trimmed = model.new_cache(), model.new_cache()
    for caches, part in ((expected, 0), (trimmed, 0), (trimmed, 1)):
        model.forward(mx.array([parts[part]]), caches)
    prompt_cache.trim(trimmed, CHUNK)
    logits = model.forward(mx.array([parts[2]]), expected)[0, -1]
    return _distance([logits], model.forward(mx.array([parts[2]]), trimmed)[:, -1]) < _tolerance([logits])


def _alone(model: LoadedModel, prompt: list[int]) -> mx.array:
    caches = model.new_cache()
    if len(prompt) > 1:
        model.forward(mx.array([prompt[:-1]]), caches)
        mx.eval(prompt_cache.arrays(caches))
    return model.forward(mx.array([prompt[-1:]]), caches)[0, -1]


def _together(model: LoadedModel, batches: list[list[list[int]]], prefix: Prefix | None = None) -> mx.array:
    """Logits ``[rows, vocab]`` after all prompts, each batch prefilled together, all decoded in one batch."""
    caches: list[Cache] = []
    rows = 0
    skipped = len(prefix or ())
    for prompts in batches:
        groups = [SequenceGroup(prompt, len(prompt) - 1 - skipped, len(prompt), prefix=prefix) for prompt in prompts]
        batch = PrefillBatch(model, groups)
        batch.complete(CHUNK * len(groups))
        more = batch.take(groups)
        if caches:
            prompt_cache.extend(caches, more, rows, len(prompts))
        else:
            caches = more
        rows += len(prompts)
    last = [prompt[-1:] for prompts in batches for prompt in prompts]
    return model.forward(mx.array(last), caches)[:, -1]


def _distance(expected: list[mx.array], found: mx.array) -> float:
    pairs = [(one.astype(mx.float32), other.astype(mx.float32)) for one, other in zip(expected, found, strict=True)]
    return max(float(mx.linalg.norm(one - other) / mx.linalg.norm(one)) for one, other in pairs)


def _tolerance(logits: list[mx.array]) -> float:
    return EXACT if logits[0].dtype == mx.float32 else ROUNDED
