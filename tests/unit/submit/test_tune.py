"""What `promptmill tune` shows of a measurement, and how it listens to the process that measures."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import ModelLoadError, PromptmillError, RefusedError
from submit.tune.measurement import Measurement, measure
from submit.tune.plot import check_plot, plot
from submit.tune.report import report

RESULT: dict[str, Any] = {
    "model": "org/moe-4bit",
    "revision": None,
    "adapter_path": None,
    "device": "Apple M4 Max",
    "mlx": "0.32.4",
    "choice": 128,
    "remembered": False,
    "measured_on": "2026-11-27",
    "prompt_tokens": 512,
    "weights": 2 * 2**30,
    "expert_weights": 14 * 2**30,
    "experts": 128,
    "experts_per_token": 8,
    "row_bytes": 48 * 2**20,
    "bandwidth": 500e9,
    "prefill_tokens_per_s": 1400.0,
    "file": "/data/tuned.json",
    "one_at_a_time": None,
    "sizes": [
        {"rows": 1, "tokens_per_s": 80.0, "limit": 160.0},
        {"rows": 32, "tokens_per_s": 300.0, "limit": 900.0},
        {"rows": 128, "tokens_per_s": 1120.0, "limit": 1400.0},
    ],
}
FOUND = Measurement.of(RESULT)


def process(script: str) -> tuple[str, ...]:
    """A process that stands in for the one of the worker package."""
    return (sys.executable, "-c", f"import json, sys\nasked = json.loads(sys.stdin.read())\n{script}")


def test_the_table_shows_what_bounds_each_size() -> None:
    """Above it what the limit is made of, below it what to do with the choice."""
    assert report(FOUND) == [
        "org/moe-4bit on Apple M4 Max, measured on 2026-11-27",
        "  a step reads 2.0 GiB of weights, what it needs of 14.0 GiB of experts (8 of 128 chosen per token) and "
        "48.0 MiB of caches per row of 512 tokens",
        "  memory is copied at 500.0 GB/s, prompts are computed at 1,400 tokens/s",
        "",
        "rows  tokens/s  per row  ms a step  limit  of it",
        "   1      80.0     80.0       12.5    160   0.50",
        "  32       300      9.4        107    900   0.33",
        " 128     1,120      8.8        114  1,400   0.80  <- chosen",
        "",
        "remembered: /data/tuned.json",
        "workers with --autotune take it; without, give them --decode-concurrency 128",
    ]


def test_the_report_says_where_it_is_from() -> None:
    """An earlier measurement, one that could not be written down, a model whose rows run alone."""
    assert report(replace(FOUND, remembered=True))[-2].startswith("remembered from an earlier measurement, --again")
    assert report(replace(FOUND, file=None))[-1] == "give workers --decode-concurrency 128"
    alone = report(replace(FOUND, one_at_a_time="its caches cannot be batched", sizes=FOUND.sizes[:1], choice=1))
    assert "  its rows run one at a time: its caches cannot be batched" in alone
    assert alone[-1] == ""


def test_a_narrow_terminal_leaves_columns_out() -> None:
    """The speeds stay."""
    assert report(FOUND, 40)[4] == "rows  tokens/s  limit  of it"


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    """Of one size too."""
    for found in (FOUND, replace(FOUND, sizes=FOUND.sizes[:1], choice=1, device=None)):
        plot(found, tmp_path / "tune.png")
        assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """With the file's name."""
    (tmp_path / "tune.png").mkdir()
    with pytest.raises(RefusedError, match=r"tune.png cannot be written: "):
        plot(FOUND, tmp_path / "tune.png")


def test_without_matplotlib_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured."""
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "matplotlib":
            raise ImportError
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RefusedError, match=r"pip install 'promptmill\[plot\]'"):
        check_plot(tmp_path / "tune.png")


def test_what_the_process_says_is_told_and_returned() -> None:
    """Each speed as it comes, the result at the end."""
    said: list[str] = []
    speak = f"""
for word in ({{"loaded": asked["model"]}}, {{"rows": 8, "tokens_per_s": 1234.56}}, {{"result": {RESULT!r}}}):
    print(json.dumps(word))
"""
    assert measure({"model": "m"}, said.append, command=process(speak)) == FOUND
    assert said == ["loaded m", "    8 rows: 1,234.6 tokens/s"]
    assert orjson.loads(orjson.dumps(FOUND.raw)) == RESULT


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("print(json.dumps({'error': 'no model at m'})); sys.exit(5)", ModelLoadError, "no model at m"),
        ("print(json.dumps({'error': 'it cannot run'})); sys.exit(1)", PromptmillError, "it cannot run"),
        ("sys.exit(3)", PromptmillError, "the measurement ended with status 3"),
    ],
)
def test_why_there_is_no_result_is_said(script: str, kind: type[PromptmillError], message: str) -> None:
    """Its error, of the kind that its exit status says, or that it ended without a word."""
    with pytest.raises(PromptmillError, match=message) as raised:
        measure({}, lambda text: None, command=process(script))
    assert type(raised.value) is kind
