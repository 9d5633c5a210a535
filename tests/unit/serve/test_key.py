"""`promptmill key`: what is no key, or somebody's already."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from serve.access.keyfile import read_keys
from serve.commands.key import command


def refusal(path: Path, *words: str, key: str | None = None) -> str:
    """What ``key add`` says against it."""
    flags = () if key is None else ("--from-stdin",)
    result = CliRunner().invoke(command, ["add", *words, *flags, "--keys", str(path)], input=key)
    assert result.exception is not None
    return str(result.exception)


def test_a_key_has_one_owner(tmp_path: Path) -> None:
    """A key that is brought along twice would change who its files belong to."""
    path = tmp_path / "keys.json"
    CliRunner().invoke(command, ["add", "ann", "--from-stdin", "--keys", str(path)], input="sk-1234\n")
    assert "the key of 'ann' already" in refusal(path, "ben", key="sk-1234\n")
    assert [key.name for key in read_keys(path)] == ["ann"]


@pytest.mark.parametrize("models", ["a/b,c/d", "", " "])
def test_models_are_named_one_by_one(tmp_path: Path, models: str) -> None:
    """A name that no model can have is refused: the key could use nothing."""
    assert "give --models once for each" in refusal(tmp_path / "keys.json", "ann", "--models", models)
