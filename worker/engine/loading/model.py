"""A model in memory, and its properties that the engine depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from worker.engine.caches.prompt_cache import Cache


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Bytes that the caches of one row take: ``growing`` per token without end, ``windows`` as (bytes per token,
    most tokens) for sliding windows, ``fixed`` for recurrent state."""

    growing: int = 0
    windows: tuple[tuple[int, int], ...] = ()
    fixed: int = 0

    def __call__(self, tokens: int) -> int:
        """Bytes of a row that holds ``tokens`` tokens."""
        windows = sum(size * min(tokens, most) for size, most in self.windows)
        return self.growing * tokens + windows + self.fixed

    def prompt(self, tokens: int, chunk: int) -> int:
        """Bytes of a row of ``tokens`` tokens while they are computed, ``chunk`` at a time: until a window's first step
        of decoding it keeps what the last chunk needed."""
        windows = sum(size * min(tokens, most + chunk) for size, most in self.windows)
        return self.growing * tokens + windows + self.fixed

    def __add__(self, other: CacheCost) -> CacheCost:
        """What a row costs that has both caches."""
        return CacheCost(self.growing + other.growing, self.windows + other.windows, self.fixed + other.fixed)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in memory, its tokenizer, and its measured properties.

    ``vocab_size`` is the width of the logits; ``context_length`` the most tokens a row may hold, None where the config
    does not say. ``make_cache`` gives a model's caches for one row. ``unbatchable`` is why rows must run one at a
    time, None where they need not. ``padded_prefill`` says that prompts of different lengths may be prefilled
    together, ``bucketed`` that its attention computes rows of unlike lengths in parts, ``prefixes`` that several may
    go on from copies of one prompt's caches. ``weights`` are the arrays by name that it has from its ``files`` (name,
    bytes, time) and not from an adapter: what others of the same files can share. ``quantise`` puts caches that have
    taken in tokens into fewer bits, in place. ``draft`` is a model that proposes ``num_draft_tokens`` tokens at a
    time: its caches are part of a row's, behind the model's own."""

    name: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    vocab_size: int
    eos: frozenset[int]
    context_length: int | None
    make_cache: Callable[[Any], list[Cache]]
    cache_cost: CacheCost = CacheCost()
    unbatchable: str | None = None
    padded_prefill: bool = True
    bucketed: bool = False
    prefixes: bool = True
    revision: str | None = None
    adapter_path: str | None = None
    quantise: Callable[[list[Cache]], None] | None = field(default=None, repr=False)
    draft: LoadedModel | None = None
    num_draft_tokens: int = 0
    weights: Mapping[str, mx.array] = field(default_factory=dict, repr=False)
    files: tuple[tuple[str, int, int], ...] = field(default=(), repr=False)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that can be shared."""
        return sum(int(array.nbytes) for array in self.weights.values())

    def new_cache(self) -> list[Cache]:
        """Empty caches for one row, one per layer."""
        caches = list(self.make_cache(self.model))
        return caches if self.draft is None else [*caches, *self.draft.new_cache()]

    def split(self, caches: list[Cache]) -> tuple[list[Cache], list[Cache]]:
        """The caches of a row in two: the model's own and the draft model's."""
        own = len(caches) - (0 if self.draft is None else len(self.draft.new_cache()))
        return caches[:own], caches[own:]

    def forward(self, tokens: mx.array, caches: list[Cache]) -> mx.array:
        """Logits ``[rows, columns, vocab_size]`` of ``tokens`` ``[rows, columns]``; the caches, those of a draft model
        too, take the tokens in."""
        own, others = self.split(caches)
        if self.draft is not None:
            self.draft.forward(tokens, others)
        logits: mx.array = self.model(tokens, cache=own)
        if self.quantise is not None:
            self.quantise(own)
        caches[:] = [*own, *others]
        return logits

    @property
    def batchable(self) -> bool:
        return self.unbatchable is None
