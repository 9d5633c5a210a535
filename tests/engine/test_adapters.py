"""Adapters: on the weights of their base, with mlx-lm's tokens, and at the cost of their own arrays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model as load_with_mlx_lm, quantize_model, save_config, save_model

from jobs.errors import ModelLoadError
from tests.engine.conftest import POCKET
from worker.engine.loading.mlx_models import active_memory, free_memory, load_model
from worker.engine.loading.model import LoadedModel

PROMPT = [7, 99, 300, 12, 511, 44]
COUNT = 24
LORA = {"rank": 4, "scale": 20.0, "dropout": 0.0}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def save_adapter(folder: Path, base: Path, *, seed: int, kind: str = "lora") -> Path:
    """An adapter with random weights for a model; ``kind`` as mlx-lm's ``fine_tune_type``."""
    model, _ = load_with_mlx_lm(base)
    mx.random.seed(seed)
    if kind == "full":
        trained = dict(tree_flatten(model.layers[-1].parameters()))
        found = {f"model.layers.3.{name}": value * 1.5 for name, value in trained.items() if value.ndim > 1}
    else:
        linear_to_lora_layers(model, 2, LORA, use_dora=kind == "dora")
        names = ("lora_a", "lora_b", "m")
        grown = [(name, value) for name, value in tree_flatten(model.parameters()) if name.endswith(names)]
        found = {name: value if name.endswith("m") else mx.random.normal(value.shape) * 0.3 for name, value in grown}
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), found)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": LORA}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """The pocket model in 4 bits."""
    model, config = quantize_model(*load_with_mlx_lm(POCKET), 64, 4)
    folder = tmp_path / "quantised"
    save_model(folder, model)
    save_config(config, config_path=folder / "config.json")
    for name in TOKENIZER:
        (folder / name).write_bytes((POCKET / name).read_bytes())
    return folder


def greedy(run: Any, line_of: Any, model: LoadedModel) -> list[int]:
    return list(run(model, [line_of("x", PROMPT, max_tokens=COUNT, ignore_eos=True)])["x"].sequences[0].tokens)


def mlx_lms(base: Path, adapter: Path | None) -> list[int]:
    """The greedy tokens of a model as ``mlx_lm.load`` makes it."""
    model = mlx_lm.load(str(base), adapter_path=None if adapter is None else str(adapter))[0]
    return [int(token) for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=COUNT)]


def weights_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("base_first", [True, False])
def test_an_adapter_shares_its_base(kind: str, base_first: bool, tmp_path: Path, run: Any, line_of: Any) -> None:
    """Loading the second of two costs what it has of its own, in either order; both give mlx-lm's tokens."""
    adapter = save_adapter(tmp_path / "adapter", POCKET, seed=1, kind=kind)
    own, base = weights_in(adapter), weights_in(POCKET)
    paths = [None, str(adapter)] if base_first else [str(adapter), None]
    expected = {path: mlx_lms(POCKET, path and Path(path)) for path in paths}
    assert expected[None] != expected[str(adapter)]
    free_memory()
    start = active_memory()
    first = load_model(str(POCKET), adapter_path=paths[0])
    free_memory()
    loaded = active_memory()
    second = load_model(str(POCKET), adapter_path=paths[1], share=first)
    free_memory()
    # Some kilobytes are constants of the modules, such as the frequencies of positions.
    assert loaded - start < base + own + 64_000
    assert active_memory() - loaded < own + 64_000 < base / 2
    assert active_memory() - start < base + own + 128_000
    assert {path: greedy(run, line_of, model) for path, model in zip(paths, (first, second), strict=True)} == expected


def test_a_folder_written_anew_shares_nothing(tmp_path: Path) -> None:
    """Weights that were replaced on disk since a model was loaded are read, not taken from that model."""
    folder = Path(shutil.copytree(POCKET, tmp_path / "model"))
    first = load_model(str(folder))
    name = next(iter(first.weights))
    assert load_model(str(folder), share=first).weights[name] is first.weights[name]
    (file,) = folder.glob("*.safetensors")
    os.utime(file, ns=(0, 0))
    assert load_model(str(folder), share=first).weights[name] is not first.weights[name]


def test_adapters_of_a_quantised_model(quantised: Path, tmp_path: Path, run: Any, line_of: Any) -> None:
    """Packed weights are shared as well, by two adapters; each gives mlx-lm's tokens."""
    adapters = [save_adapter(tmp_path / f"adapter-{seed}", quantised, seed=seed) for seed in (1, 2)]
    expected = [mlx_lms(quantised, path) for path in (None, *adapters)]
    free_memory()
    models = [load_model(str(quantised))]
    before = active_memory()
    models += [load_model(str(quantised), adapter_path=str(path), share=models[-1]) for path in adapters]
    free_memory()
    assert active_memory() - before < sum(map(weights_in, adapters)) + 128_000 < weights_in(quantised)
    found = [greedy(run, line_of, model) for model in models]
    assert found == expected
    assert len(set(map(tuple, found))) == 3


def test_the_last_of_them_frees_the_base(tmp_path: Path) -> None:
    """The base's arrays stay while an adapter uses them, and go with it."""
    adapter = save_adapter(tmp_path / "adapter", POCKET, seed=1)
    free_memory()
    start = active_memory()
    base = load_model(str(POCKET))
    tuned = load_model(str(POCKET), adapter_path=str(adapter), share=base)
    del base
    free_memory()
    assert active_memory() - start > weights_in(POCKET) * 0.9
    assert tuned.weight_bytes > weights_in(POCKET) * 0.9
    del tuned
    free_memory()
    assert active_memory() - start < 64_000


def test_an_adapter_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """The field at fault is the adapter's, and the message says which adapter and which of its arrays."""
    adapter = save_adapter(tmp_path / "adapter", POCKET, seed=1)
    arrays = mx.load(str(adapter / "adapters.safetensors"))
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {name: array[:3] for name, array in arrays.items()})
    with pytest.raises(ModelLoadError, match=r"adapter '.*adapter' cannot be put on model.*lora_a") as caught:
        load_model(str(POCKET), adapter_path=str(adapter))
    assert caught.value.field == "adapter_path"
    (adapter / "adapters.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="is no adapter") as caught:
        load_model(str(POCKET), adapter_path=str(adapter))
    assert caught.value.field == "adapter_path"
