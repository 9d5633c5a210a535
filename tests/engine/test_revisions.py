"""Revisions of hub models: ``NAME@REVISION`` is a model of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from jobs.errors import ModelLoadError
from tests.engine.conftest import POCKET
from worker.engine.loading import mlx_models
from worker.engine.loading.mlx_models import describe_model, load_model, weight_bytes

OLD, NEW = "1" * 40, "2" * 40
NAME = "someone/pocket"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A hub cache with two commits of a model, ``v1`` and ``main``, and no network; gives a commit's folder."""
    repository = tmp_path / "hub" / "models--someone--pocket"
    for revision, commit in (("v1", OLD), ("main", NEW)):
        shutil.copytree(POCKET, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    weights = mx.load(str(POCKET / "model.safetensors"))
    negated = {name: -array for name, array in weights.items()}
    mx.save_safetensors(str(repository / "snapshots" / OLD / "model.safetensors"), negated)

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(
            name, revision=revision, allow_patterns=allow_patterns, cache_dir=tmp_path / "hub", local_files_only=True
        )

    monkeypatch.setattr(mlx_models, "snapshot_download", download)
    return lambda commit: repository / "snapshots" / commit


@pytest.mark.parametrize(
    ("name", "revision", "commit"),
    [
        (NAME, None, NEW),
        (NAME, "v1", OLD),
        (f"{NAME}@v1", None, OLD),
        (f"{NAME}@main", "v1", NEW),
        (f"{NAME}@{OLD}", None, OLD),
    ],
)
def test_the_name_says_which_revision(name: str, revision: str | None, commit: str, hub: Callable[[str], Path]) -> None:
    """What follows the @ wins over ``--revision``, which is for names without; the commit is what is recorded."""
    model = describe_model(name, revision=revision)
    assert (model.name, model.revision) == (name, commit)
    assert weight_bytes(name, revision=revision)[0] == (hub(commit) / "model.safetensors").stat().st_size


def test_weights_are_shared_within_a_commit_only(hub: Callable[[str], Path]) -> None:
    """A name that has come to mean another commit gives that commit's weights."""
    old, new = load_model(f"{NAME}@v1"), load_model(NAME, revision="main")
    assert load_model(NAME, share=old).weights.keys() == new.weights.keys()
    name = "model.embed_tokens.weight"
    assert load_model(NAME, share=new).weights[name] is new.weights[name]
    again = load_model(NAME, share=old).weights[name]
    assert mx.array_equal(again, new.weights[name])
    assert not mx.array_equal(again, old.weights[name])


def test_a_folder_wins_even_with_an_at(tmp_path: Path) -> None:
    """A path that exists is that folder, whatever is in its name."""
    folder = tmp_path / "pocket@v1"
    shutil.copytree(POCKET, folder)
    assert describe_model(str(folder)).revision is None


@pytest.mark.parametrize("name", [f"{NAME}@", "someone/po cket@v1", "./nothing@v1"])
def test_names_that_are_none(name: str) -> None:
    """An @ with nothing after it is no revision."""
    with pytest.raises(ModelLoadError, match="the folder does not exist"):
        load_model(name)


def test_a_revision_that_is_not_there(hub: Callable[[str], Path]) -> None:
    """Model and revision are named apart."""
    with pytest.raises(ModelLoadError, match=f"revision 'v9' of model '{NAME}' is not on this machine"):
        load_model(f"{NAME}@v9")
