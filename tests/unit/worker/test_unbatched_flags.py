"""Flags of the modes in which lines run one at a time: what they set, and which are refused together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker import cli
from worker.service import ServiceSettings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``settings(*flags)``: what a worker with these flags would serve with."""
    monkeypatch.setattr(cli, "set_up_logging", lambda form, **_: None)

    def read(*flags: str) -> ServiceSettings:
        seen: list[ServiceSettings] = []
        monkeypatch.setattr(cli, "serve", lambda url, settings: seen.append(settings) or 0)
        assert cli.main(["--model", "m", "--redis", "redis://nowhere", *flags]) == 0
        return seen[0]

    return read


def test_defaults_are_off(settings: Any) -> None:
    """Without flags lines run together, with caches as the model makes them."""
    engine = settings().engine
    assert (engine.max_kv_size, engine.kv_bits, engine.draft_model) == (None, None, None)
    assert (engine.kv_group_size, engine.quantized_kv_start, engine.num_draft_tokens) == (64, 0, 3)


def test_a_workers_models_have_one_name_each(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spellings of one folder are one model, as in lines; a path that leads nowhere is not looked for on a hub."""
    (tmp_path / "P").mkdir()
    monkeypatch.chdir(tmp_path)
    groups = settings("--model", "./P", "--model", "P/", "--adapter-path", "./P/", "--model", "org/name").groups
    assert [group.key for group in groups] == ["m", "m+P", "P", "P+P", "org/name", "org/name+P"]
    assert cli.main(["--model", "./org/name", "--redis", "redis://nowhere"]) == 2
    assert "there is no folder ./org/name" in capsys.readouterr().err


def test_flags_reach_the_engine(settings: Any, tmp_path: Path) -> None:
    """Each flag sets what it says, from the command line and from the settings file."""
    engine = settings("--kv-bits", "4", "--quantized-kv-start=100", "--draft-model", "d", "--num-draft-tokens=5").engine
    assert (engine.kv_bits, engine.quantized_kv_start, engine.draft_model, engine.num_draft_tokens) == (4, 100, "d", 5)
    assert settings("--max-kv-size", "512").engine.max_kv_size == 512
    file = tmp_path / "promptmill.toml"
    file.write_text("[worker]\nkv-bits = 8\nkv-group-size = 32\n")
    engine = settings("--config", str(file)).engine
    assert (engine.kv_bits, engine.kv_group_size) == (8, 32)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--max-kv-size=512", "--kv-bits=8"], "--max-kv-size and --kv-bits exclude each other"),
        (["--max-kv-size=512", "--draft-model=d"], "--max-kv-size and --draft-model exclude each other"),
        (["--kv-group-size=32"], "--kv-group-size does nothing without --kv-bits"),
        (["--quantized-kv-start=5"], "--quantized-kv-start does nothing without --kv-bits"),
        (["--num-draft-tokens=5"], "--num-draft-tokens does nothing without --draft-model"),
        (["--kv-bits=5"], "'5' is not one of '2', '3', '4', '6', '8'"),
        (["--kv-bits=8", "--kv-group-size=48"], "'48' is not one of '32', '64', '128'"),
        (["--max-kv-size=4"], "4 is not in the range x>=8"),
    ],
)
def test_refused_flags(flags: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that cannot be had together, do nothing or mean nothing end the worker with status 2 and the reason."""
    assert cli.main(["--model", "m", *flags]) == 2
    assert part in capsys.readouterr().err
