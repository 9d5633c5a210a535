"""Models of three sizes with random weights: qwen3 of mlx-lm in float32, the same on every machine of a kind.

    python -m bench.models NAME    saves a model where servers and workers can load it

No token ends a text, so every line has its full length on every side. A token is a word of the text, so that prompts
of random ids can be sent as text and come out as the same ids.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CACHE = Path(__file__).parent / ".cache"
WEIGHTS_SEED = 0

UNKNOWN = "<unk>"
FIRST_TOKEN = 1
"""Id 0 is the unknown word, which no prompt has."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model; embeddings are tied."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def config(self) -> dict[str, Any]:
        """As in a model's ``config.json``."""
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": 3 * self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "rms_norm_eps": 1e-6,
            "vocab_size": self.vocab,
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }


SHAPES = {
    "nano": Shape(hidden=128, layers=2, heads=4, kv_heads=2, vocab=512),
    "small": Shape(hidden=512, layers=8, heads=8, kv_heads=4, vocab=8192),
    "wide": Shape(hidden=512, layers=8, heads=8, kv_heads=4, vocab=151936),
}


def word(token: int) -> str:
    """A token in the text of a prompt."""
    return f" t{token}"


def build(name: str) -> tuple[Any, Any]:
    """A model in memory and its tokenizer, as ``mlx_lm.load`` gives them."""
    import mlx.core as mx
    from mlx_lm.models.qwen3 import Model, ModelArgs
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper

    shape = SHAPES[name]
    mx.random.seed(WEIGHTS_SEED)
    model = Model(ModelArgs.from_dict(shape.config))
    mx.eval(model.parameters())
    model.eval()
    # The streaming detokenizer that real models of this family have: the other one gets slower with each token.
    return model, TokenizerWrapper(_tokenizer(shape.vocab), BPEStreamingDetokenizer)


def saved(name: str) -> Path:
    """The folder of a saved model, made when it is not there yet."""
    folder = CACHE / name
    if not (folder / "tokenizer_config.json").is_file():
        print(f"saving the {name} model in {folder}", file=sys.stderr)
        # A process of its own: this one may start others later, and must not have used MLX then.
        subprocess.run([sys.executable, "-m", "bench.models", name], cwd=ROOT, check=True)
    return folder


def _tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Ġ is what byte-level tokenizers write for a space.
    ids = {UNKNOWN: 0} | {word(token).replace(" ", "Ġ"): token for token in range(FIRST_TOKEN, vocab)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", behavior="merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, clean_up_tokenization_spaces=False)


def _save(name: str) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = build(name)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(SHAPES[name].config, indent=2))
    tokenizer.save_pretrained(str(folder))  # last: it is what tells that all is there


if __name__ == "__main__":
    _save(sys.argv[1])
