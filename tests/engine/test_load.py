"""Loading: what is measured, and what is said when a model cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from jobs.errors import ModelLoadError
from worker.engine.caches.prompt_cache import new_batch
from worker.engine.loading import mlx_models
from worker.engine.loading.mlx_models import compiler_present, load_model
from worker.engine.loading.model import LoadedModel
from worker.engine.text.markup import markup_of


def test_what_is_known_of_a_model(pocket: LoadedModel) -> None:
    """Vocabulary, context, EOS and thinking come from the model's files, the cost of a token from its caches."""
    config = pocket.config
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4
    assert pocket.vocab_size == config["vocab_size"]
    assert pocket.context_length == config["max_position_embeddings"]
    assert pocket.eos == {config["eos_token_id"]}
    assert pocket.cache_cost(100) == 100 * per_token
    thinking = markup_of(pocket.tokenizer).thinking
    assert thinking is not None
    assert (thinking.start, thinking.end) == ("<think>", "</think>")
    assert pocket.batchable
    assert pocket.padded_prefill
    assert pocket.revision is None


def test_cost_of_windows_and_states(tiny: Any) -> None:
    """A sliding window costs no more than its size, a recurrent state the same at any length."""
    sliding, recurrent = tiny("gemma3_text").cache_cost, tiny("mamba2").cache_cost
    per_token = 2 * 2 * 16 * 4
    assert sliding(10) == 4 * 10 * per_token
    assert sliding(1000) == 2 * 1000 * per_token + 2 * 12 * per_token
    assert recurrent(1) == recurrent(10_000) > 0


def test_padding_is_kept_out_of_recurrent_states(tiny: Any) -> None:
    """Layers that mask padding right when they are told right are found to; and no mask stays behind that nothing
    would ever evaluate."""
    model = tiny("mamba2")
    assert model.batchable
    assert model.padded_prefill
    assert all(cache.left_padding is None and cache.lengths is None for cache in new_batch([model.new_cache()] * 3))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("/no/such/folder", "the folder does not exist"),
        ("./nothing", "the folder does not exist"),
        ("a/b/c", "the folder does not exist"),
    ],
)
def test_missing_folder(name: str, part: str) -> None:
    """What looks like a path is not sought on the hub."""
    with pytest.raises(ModelLoadError, match=part):
        load_model(name)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not here and cannot be fetched says both, and what to do."""

    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(mlx_models, "snapshot_download", unreachable)
    with pytest.raises(ModelLoadError, match=r"not on this machine.*cannot be reached.*check the network"):
        load_model("someone/some-model")


def test_broken_folders(pocket: LoadedModel, tmp_path: Path) -> None:
    """Each file that a model needs is missed by name."""
    folder = tmp_path / "model"
    shutil.copytree(pocket.name, folder)
    moved = tmp_path / "moved"
    for names, part in (
        (["config.json"], "no config.json"),
        (["model.safetensors"], "no model\\*.safetensors"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer"),
    ):
        for name in names:
            shutil.move(folder / name, moved.with_suffix("." + name))
        with pytest.raises(ModelLoadError, match=part):
            load_model(str(folder))
        for name in names:
            shutil.move(moved.with_suffix("." + name), folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "novel"}))
    with pytest.raises(ModelLoadError, match=r"architecture.*novel.*upgrade mlx-lm"):
        load_model(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_model(str(folder))


def test_missing_adapter(pocket: LoadedModel, tmp_path: Path) -> None:
    """An adapter without its files is refused before the model is loaded."""
    with pytest.raises(ModelLoadError, match=r"no adapter: it has no adapter_config.json"):
        load_model(pocket.name, adapter_path=str(tmp_path))


def test_machine_without_compiler() -> None:
    """The CPU build on Linux needs g++ to compile; its absence is noticed."""
    if mx.default_device() != mx.cpu:
        pytest.skip("a GPU needs no compiler")
    assert compiler_present(which=lambda name: "/usr/bin/g++")
    assert compiler_present(which=lambda name: None) == (mlx_models.sys.platform == "darwin")
