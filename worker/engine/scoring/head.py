"""A model in two parts: the layers, which every token goes through, and the head, which turns states into logits.

mlx-lm's models run both in one call. A vocabulary is a hundred times as wide as a state, so logits of all tokens of a
prompt do not fit into memory, and most of them are not wanted. There is no list of models: the part that gives the
states is looked for among a model's modules, and tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx import nn

from worker.engine.caches import prompt_cache
from worker.engine.caches.prompt_cache import Cache
from worker.engine.loading.model import LoadedModel
from worker.engine.scoring.packed import BLOCK, Chunk, packed_caches
from worker.engine.scoring.tree import Tree

TRIAL = (3, 5, 2)
"""Tokens of the trial."""
DEEPEST = 3
"""Modules within modules that are looked through: language model in a model of more, layers in a language model."""
CLOSE = 1e-2
"""How far logits may be from those of one call, relative to their size: in half precision they are rounded."""


class SplitModel:
    """A model whose states and logits can be had apart. Without a known place to split it states are logits."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = replace(model, draft=None)  # whose proposals nobody wants here
        self._place = _found(self._model)
        self.packs = model.bucketed and model.prefixes and _packing_works(self._model)
        """Whether texts that share tokens may be one packed sequence."""

    @property
    def batchable(self) -> bool:
        return self._model.batchable

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def split(self) -> bool:
        """Whether states are less than logits."""
        return self._place is not None

    def new_cache(self) -> list[Cache]:
        """Empty caches for one row, one per layer."""
        return self._model.new_cache()

    def states(self, tokens: mx.array, caches: list[Cache]) -> mx.array:
        """States ``[rows, columns, width]`` of ``tokens [rows, columns]``, which the caches take in."""
        if self._place is None:
            return self._model.forward(tokens, caches)
        with self._place.swapped(_Recorder(self._place.module)) as recorder:
            self._model.forward(tokens, caches)  # its logits are never computed
        states: mx.array = recorder.output
        return states

    def logits(self, states: mx.array) -> mx.array:
        """Logits ``[count, vocab]`` of ``states [count, width]``."""
        if self._place is None:
            return states
        with self._place.swapped(_Stub(self._place.module, states[None])):
            logits: mx.array = self._model.model(mx.zeros((1, states.shape[0]), dtype=mx.int32))
        return logits[0]


def _packing_works(model: LoadedModel) -> bool:
    """Whether the model computes packed texts: seen with a few, in two chunks behind a shared beginning."""
    begun, rests = (3, 1, 4), [(2, 6, 5, 3, 9), (2, 6, 8, 1), (5, 9, 2)]
    texts = [tuple(token % model.vocab_size for token in (*begun, *rest)) for rest in rests]
    texts.sort()
    tree = Tree(texts, len(begun))
    parents = prompt_cache.new_batch([model.new_cache()])
    try:
        model.forward(mx.array([texts[0][: len(begun)]]), parents)
        prompt_cache.finalize(parents)
        caches = packed_caches(len(parents), parents)
        found = []
        for block in tree.cut(tree.blocks(BLOCK)[0], 3):
            chunk = Chunk(tree, [block])
            for cache in caches:
                cache.begin(chunk)
            found.append(model.forward(chunk.tokens, caches)[:, 0])
        logits = mx.concatenate(found)
        alone = [model.model(mx.array([text]))[0, len(begun) : -1] for text in texts]
        return all(_near(logits[mx.array(path)], rows) for path, rows in zip(tree.paths, alone, strict=True))
    except Exception:  # its attention is not mlx-lm's common one
        return False


def _near(found: mx.array, expected: mx.array) -> bool:
    distance = mx.linalg.norm((found - expected).astype(mx.float32))
    return bool((distance <= CLOSE * mx.linalg.norm(expected.astype(mx.float32))).item())


@dataclass(frozen=True, slots=True)
class _Place:
    """A module by its name in the module above it."""

    parent: Any
    name: str

    @property
    def module(self) -> Any:
        return self.parent[self.name]

    @contextmanager
    def swapped(self, other: Any) -> Iterator[Any]:
        """Have ``other`` called in the module's place. An attribute of the object hides the entry that it has among a
        module's parameters, which stay as they are."""
        object.__setattr__(self.parent, self.name, other)
        try:
            yield other
        finally:
            object.__delattr__(self.parent, self.name)


class _Standin:
    """In the place of a module: all but its call is the module's."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.output: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __contains__(self, name: str) -> bool:
        return name in self._module

    def __getitem__(self, name: str) -> Any:
        return self._module[name]


class _Recorder(_Standin):
    """Keeps what the module gives."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self._module(*args, **kwargs)
        return self.output


class _Stub(_Standin):
    """Gives what it is told to."""

    def __init__(self, module: Any, output: mx.array) -> None:
        super().__init__(module)
        self.output = output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def _found(model: LoadedModel) -> _Place | None:
    """Where the model's states come out, given that its logits can be had of them; None: there is no such place."""
    places = [_Place(model.model, name) for name in _modules(model.model)]
    for _ in range(DEEPEST):
        for place in places:
            if _splits(model, place):
                return place
        places = [_Place(place.module, name) for place in places for name in _modules(place.module)]
    return None


def _modules(module: Any) -> list[str]:
    return [name for name, part in module.items() if isinstance(part, nn.Module)] if isinstance(module, dict) else []


def _splits(model: LoadedModel, place: _Place) -> bool:
    tokens = mx.array([[token % model.vocab_size for token in TRIAL]])
    try:
        with place.swapped(_Recorder(place.module)) as recorder:
            expected = model.forward(tokens, model.new_cache())
        states = recorder.output
        if not isinstance(states, mx.array) or states.shape[:2] != tokens.shape or states.shape[-1] >= model.vocab_size:
            return False
        with place.swapped(_Stub(place.module, states)):
            found = model.model(mx.zeros_like(tokens))
        return _near(found, expected)
    except Exception:  # the rest of the model wants something else than states
        return False
