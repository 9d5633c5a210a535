"""Tiny models with random weights, one per kind of architecture, and short ways to run lines on them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from jobs.params import Sampling
from worker.engine.engine import Engine
from worker.engine.lm import load_model, measure
from worker.engine.model import LoadedModel
from worker.engine.sequence import Finished, PreparedLine

POCKET = Path(__file__).parents[2] / "examples" / "pocket" / "model"
COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16, "tie_word_embeddings": False, "rope_theta": 10000.0},
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 12, "sliding_window_pattern": 2},
    "qwen3_moe": {"head_dim": 16, "tie_word_embeddings": False, "rope_theta": 10000.0, **EXPERTS},
    "lfm2": {
        "num_hidden_layers": 4,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 128,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
    },
    "mamba2": {
        "num_heads": 4,
        "head_dim": 32,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": "auto",
    },
}


class LetterDetokenizer:
    """Text of the letter tokenizer, in the manner of mlx-lm's streaming detokenizers."""

    def __init__(self) -> None:
        self.text = ""

    def add_token(self, token: int) -> None:
        self.text += chr(0x100 + token)

    def finalize(self) -> None:
        pass


@dataclass
class LetterTokenizer:
    """A tokenizer of one letter per token id, for models whose weights are random anyway."""

    eos_token_ids: set[int] = field(default_factory=lambda: {0})
    has_thinking: bool = False
    think_start: str | None = None
    think_end: str | None = None
    vocab_size: int = 256

    @property
    def detokenizer(self) -> LetterDetokenizer:
        return LetterDetokenizer()

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
    """A model of ``kind`` with random float32 weights, spread wide so that the best token is clearly the best."""
    config = {**COMMON, **CONFIGS[kind], "model_type": kind, **changes}
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(11)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.eval()
    spread = [(name, value * 3 if value.ndim > 1 else value) for name, value in leaves(model)]
    model.load_weights(spread)
    mx.eval(model.parameters())
    return measure(kind, model, LetterTokenizer(), config)


def leaves(model: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(model.parameters()))


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
