"""Tiny models with random weights, one per family of mlx-lm, and short ways to run lines on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache

from jobs.params import Sampling
from tests.engine import families
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import compiler_present, load_model, measure
from worker.engine.loading.model import LoadedModel
from worker.engine.sequence import Finished, PreparedLine
from worker.faults.in_flight_log import InFlightLog

POCKET = Path(__file__).parents[2] / "examples" / "pocket" / "model"


@dataclass
class LetterTokenizer:
    """A tokenizer of one letter per token id, for models whose weights are random anyway."""

    eos_token_ids: set[int] = field(default_factory=lambda: {0})
    has_thinking: bool = False
    think_start: str | None = None
    think_end: str | None = None
    vocab_size: int = 256

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(0x100 + token) for token in tokens)


class MarkovModel:
    """A model without weights: the logits after a token are that token's row of a table. It keeps no history, so what
    comes next is known by heart; ``poison`` is a token that makes any step fail that it takes part in."""

    def __init__(self, table: Any, poison: int | None = None) -> None:
        self.table = mx.array(table, dtype=mx.float32)
        self.poison = poison
        self.calls: list[tuple[int, int]] = []

    def make_cache(self) -> list[Any]:
        return [ArraysCache(1)]

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        self.calls.append(tuple(tokens.shape))
        if self.poison is not None and bool((tokens == self.poison).any().item()):
            raise RuntimeError("this token does not go down well")
        return self.table[tokens]


def successor(size: int = 256) -> mx.array:
    """The table of a model that counts: after token t comes t + 1, with a probability of nearly 1."""
    return mx.roll(mx.eye(size) * 50.0, 1, axis=1)


def build(kind: str, **changes: Any) -> LoadedModel:
    """A model of ``kind`` with random float32 weights, spread so that the best token is clearly the best."""
    model = families.new_model(kind, **changes)
    model.eval()
    model.load_weights([(name, _spread(name, value)) for name, value in tree_flatten(model.parameters())])
    mx.eval(model.parameters())
    return measure(kind, model, LetterTokenizer(), families.config_of(kind, **changes))


def _spread(name: str, weights: mx.array) -> mx.array:
    if "embed" in name:  # a model that has them for its output too would say every token again
        return weights * 0.1
    if weights.size > 1 and "norm" not in name and mx.all(weights == weights.flatten()[0]):
        # Zeros to be loaded over, of routers, convolutions, token shifts: they would switch those off.
        return weights + 0.5 * mx.random.normal(weights.shape)
    return weights * 3 if weights.ndim > 1 else weights


def compile_again() -> None:
    """Have MLX compile where it can: it is off by then for a test's sake, or because there is no compiler."""
    mx.enable_compile() if compiler_present() else mx.disable_compile()


@pytest.fixture(autouse=True, scope="session")
def _compiling() -> None:
    """As a worker does when it loads a model, of which some tests have none."""
    compile_again()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LoadedModel]:
    """``tiny(kind)``: the session's model of a kind; ``tiny(kind, key=value)``: one of its own."""
    built: dict[str, LoadedModel] = {}

    def model_of(kind: str = "qwen3", **changes: Any) -> LoadedModel:
        if changes:
            return build(kind, **changes)
        if kind not in built:
            built[kind] = build(kind)
        return built[kind]

    return model_of


@pytest.fixture
def markov() -> Callable[..., LoadedModel]:
    """``markov(table, poison=None, context=None)``: a model of known transitions; without a table it counts."""

    def make(table: Any = None, *, poison: int | None = None, context: int | None = None) -> LoadedModel:
        model = MarkovModel(successor() if table is None else table)
        config = {} if context is None else {"max_position_embeddings": context}
        loaded = measure("markov", model, LetterTokenizer(), config)
        model.poison = poison
        model.calls.clear()
        return loaded

    return make


@pytest.fixture(scope="session")
def pocket() -> LoadedModel:
    """The trained model of the examples."""
    if not (POCKET / "model.safetensors").is_file():
        pytest.skip("the pocket model is not here")
    return load_model(str(POCKET))


@pytest.fixture
def line_of() -> Callable[..., PreparedLine]:
    """``line_of(key, prompt, **sampling)``: a prepared line; greedy, and 0 is EOS, unless said otherwise."""

    def make(
        key: Any, prompt: Iterable[int], *, eos: Iterable[int] = (0,), exempt: tuple[int, ...] = (), **given: Any
    ) -> PreparedLine:
        sampling = Sampling(**{"seed": 0, "max_tokens": 12, **given})
        return PreparedLine(key, tuple(prompt), sampling, frozenset(eos), exempt)

    return make


@pytest.fixture
def run() -> Callable[..., dict[Any, Finished]]:
    """``run(model or engine, lines, **engine options)``: the finished lines by key. No step may fail on the way, for
    an engine that recovers would hide it, unless ``breaks``."""

    def drain(
        model: LoadedModel | Engine, lines: Iterable[PreparedLine], *, breaks: bool = False, **options: Any
    ) -> dict[Any, Finished]:
        engine = model if isinstance(model, Engine) else Engine(model, **options)
        for line in lines:
            engine.add(line)
        done: dict[Any, Finished] = {}
        for _ in range(20_000):
            if not engine.has_work:
                assert breaks == (engine.stats.recoveries > 0)
                return done
            done |= {finished.key: finished for finished in engine.step()}
        raise AssertionError("the engine does not come to an end")

    return drain


class NoLog(InFlightLog):
    """An in-flight log that notes nothing: every line begins when it may."""

    unsettled = 0  # type: ignore[assignment]

    def __init__(self) -> None:
        """Without a thread, and without Redis."""

    def admitted(self, engines: Any, only: frozenset[Any] | None) -> frozenset[Any] | None:
        return only

    def begun(self, keys: Any) -> frozenset[Any]:
        return frozenset()

    def begins_anew(self, key: Any) -> None:
        pass
