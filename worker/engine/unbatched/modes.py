"""Modes in which rows run one at a time: caches in rings, caches in fewer bits, and a draft model.

A model is made ready for them at load, and tried with a few tokens: what it cannot do is said then, and not by a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from jobs.errors import ModelLoadError
from worker.engine.caches import prompt_cache
from worker.engine.caches.prompt_cache import Cache
from worker.engine.loading.model import LoadedModel
from worker.engine.loading.probe import cache_cost, try_trimming

RING = 8
"""Tokens of the rings that a model is tried with, and CHUNKS the forwards that fill them and go round."""
CHUNKS = (6, 4, 1, 1)
GROUP_SIZES = (32, 64, 128)
"""What MLX can quantise together."""


@dataclass(frozen=True, slots=True)
class UnbatchedModes:
    """What is wanted, under mlx-lm's names; None is off.

    ``max_kv_size`` is the most tokens that layers keep that would keep everything: the first four and the latest.
    Caches are quantised to ``kv_bits`` in groups of ``kv_group_size`` values when they hold ``quantized_kv_start``
    tokens. ``num_draft_tokens`` is how many tokens a draft model proposes at a time.
    """

    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    num_draft_tokens: int = 3

    def __post_init__(self) -> None:
        if self.max_kv_size is not None and self.kv_bits is not None:
            raise ValueError("max_kv_size and kv_bits exclude each other: mlx-lm cannot quantise rings")


BATCHED = UnbatchedModes()
"""None of the modes."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Puts caches of the layers that keep everything into fewer bits, as soon as they hold ``start`` tokens. Windows
    and recurrent states stay as they are."""

    bits: int
    group_size: int
    start: int = 0

    def __call__(self, caches: list[Cache]) -> None:
        for place, cache in enumerate(caches):
            if quantisable(cache) and cache.offset >= self.start:
                caches[place] = cache.to_quantized(group_size=self.group_size, bits=self.bits)


def quantisable(cache: Cache) -> bool:
    """Whether a cache has keys and values to quantise; those with a ``max_size`` say so and cannot."""
    return hasattr(cache, "to_quantized") and not hasattr(cache, "max_size") and not cache.empty()


def fitted(
    model: LoadedModel, modes: UnbatchedModes, draft: LoadedModel | None, ring: Callable[[int], Cache]
) -> LoadedModel:
    """``model`` for these modes and this draft model; as it was where none of them makes a difference.

    ``ring`` makes a cache of a number of tokens.

    Raises:
        ModelLoadError: when the model cannot do what is wanted, with the flag to change.
    """
    reasons = []
    if modes.max_kv_size is not None and _ringed(model, RING, ring) is not None:
        model = _with_rings(model, modes.max_kv_size, ring)
        reasons.append("--max-kv-size keeps its caches in rings, which cannot be batched")
    if modes.kv_bits is not None:
        model = _quantised(model, Quantisation(modes.kv_bits, modes.kv_group_size, modes.quantized_kv_start))
        reasons.append("--kv-bits quantises its KV cache, which cannot be batched")
    if draft is not None:
        model = _with_draft(model, draft, modes.num_draft_tokens)
        reasons.append(f"--draft-model {draft.name} proposes the tokens of one row only")
    if not reasons:
        return model
    return replace(model, unbatchable="; ".join(reasons), padded_prefill=False, prefixes=False)


def _with_rings(model: LoadedModel, size: int, ring: Callable[[int], Cache]) -> LoadedModel:
    try:
        _tried(replace(model, make_cache=lambda _: _ringed(model, RING, ring)))
        made = replace(model, make_cache=lambda _: _ringed(model, size, ring))
        return replace(made, cache_cost=cache_cost(_tried(made, CHUNKS[:1]), tokens=CHUNKS[0]))
    except Exception as error:
        raise _unable(model, "--max-kv-size", error) from error


def _ringed(model: LoadedModel, size: int, ring: Callable[[int], Cache]) -> Any:
    """New caches for a row with rings for the layers that keep everything; None where there are none such."""
    caches = model.new_cache()
    ringed = [_replaced(cache, size, ring) for cache in caches]
    changed = any(type(leaf).__name__ == "KVCache" for leaf in prompt_cache.leaves(caches))
    return ringed if changed else None


def _replaced(cache: Cache, size: int, ring: Callable[[int], Cache]) -> Cache:
    if hasattr(cache, "caches"):
        cache.caches = tuple(_replaced(part, size, ring) for part in cache.caches)
    return ring(size) if type(cache).__name__ == "KVCache" else cache


def _quantised(model: LoadedModel, quantise: Quantisation) -> LoadedModel:
    flag = f"--kv-bits {quantise.bits}"
    filled = _tried(model, CHUNKS[:1])
    heads = {int(part.shape[-1]) for cache in filled if quantisable(cache) for part in (cache.keys, cache.values)}
    if not heads:
        raise ModelLoadError(f"model '{model.name}' has no KV cache that could be quantised: leave out {flag}")
    if any(size % quantise.group_size for size in heads):
        fitting = [str(size) for size in GROUP_SIZES if not any(head % size for head in heads)]
        remedy = f"choose {' or '.join(fitting)}" if fitting else f"leave out {flag}"
        raise ModelLoadError(
            f"model '{model.name}' has heads of {' and '.join(map(str, sorted(heads)))} values, "
            f"which --kv-group-size {quantise.group_size} does not divide: {remedy}"
        )
    try:
        caches = _tried(replace(model, quantise=replace(quantise, start=0)))
    except Exception as error:
        raise _unable(model, flag, error) from error
    quantised, full = cache_cost(caches, tokens=sum(CHUNKS)), cache_cost(filled, tokens=CHUNKS[0])
    # Up to the start a row takes what it takes without; this much of the difference stays charged.
    late = ((full.growing - quantised.growing, quantise.start),) if quantise.start else ()
    return replace(model, quantise=quantise, cache_cost=replace(quantised, windows=quantised.windows + late))


def _with_draft(model: LoadedModel, draft: LoadedModel, count: int) -> LoadedModel:
    sizes = model.tokenizer.vocab_size, draft.tokenizer.vocab_size
    if sizes[0] != sizes[1]:
        raise ModelLoadError(
            f"--draft-model '{draft.name}' has a vocabulary of {sizes[1]} tokens and model '{model.name}' one of "
            f"{sizes[0]}: choose a draft model of the same family"
        )
    for one, role in ((model, "model"), (draft, "--draft-model")):
        # Tried only where all caches say yes: others may raise, or keep what they should forget.
        if not prompt_cache.trimmable(one.new_cache()) or not try_trimming(one):
            raise ModelLoadError(
                f"{role} '{one.name}' cannot take back tokens that were proposed and refused (it has sliding windows "
                "or recurrent layers): leave out --draft-model, or choose another"
            )
    if draft.vocab_size != model.vocab_size:
        widened = Widened(draft, model.vocab_size)
        draft = replace(draft, model=widened, vocab_size=model.vocab_size, make_cache=widened.make_cache)
    return replace(model, draft=draft, num_draft_tokens=count, cache_cost=model.cache_cost + draft.cache_cost)


class Widened:
    """A draft model whose logits are as wide as those of the model it works for: families pad their vocabulary
    differently. What only one of them has is never proposed."""

    def __init__(self, draft: LoadedModel, width: int) -> None:
        self._draft = draft
        self._width = width

    def make_cache(self, _: Any = None) -> list[Cache]:
        return self._draft.new_cache()

    def __call__(self, tokens: mx.array, cache: list[Cache]) -> mx.array:
        own = self._draft.vocab_size
        logits = self._draft.forward(mx.minimum(tokens, own - 1), cache)
        if own >= self._width:
            return logits[..., : self._width]
        pad = [(0, 0)] * (logits.ndim - 1) + [(0, self._width - own)]
        return mx.pad(logits, pad, constant_values=mx.array(-mx.inf, dtype=logits.dtype))


def _tried(model: LoadedModel, chunks: tuple[int, ...] = CHUNKS) -> list[Cache]:
    """The caches of a row that has read some tokens, in ``chunks``."""
    caches = model.new_cache()
    for width in chunks:
        logits = model.forward(mx.zeros((1, width), dtype=mx.int32), caches)
        mx.eval(logits, prompt_cache.arrays(caches))
    return caches


def _unable(model: LoadedModel, flag: str, error: Exception) -> ModelLoadError:
    lines = str(error).splitlines() or [""]
    return ModelLoadError(
        f"model '{model.name}' cannot run with {flag} ({type(error).__name__}: {lines[0][:300]}): leave it out"
    )
