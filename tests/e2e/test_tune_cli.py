"""`promptmill tune` as a process: measures a model, remembers the choice, and shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 120.0
PNG = b"\x89PNG\r\n\x1a\n"
Tune = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("--max-rows", "3", "--prompt-tokens", "16")


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """Run the command to its end, with a data folder of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}

    def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "submit.cli", "tune", *map(str, arguments)],
            capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=tmp_path,
            env=kept | {"PYTHONPATH": str(ROOT), "PROMPTMILL_DATA_DIR": str(tmp_path / "data"), **environ},
        )  # fmt: skip

    return run


def test_speeds_stand_beside_their_limits_and_the_choice_is_remembered(tune: Tune, tmp_path: Path) -> None:
    """The table on stdout, progress on stderr, a picture; the second time nothing is measured, also for scripts."""
    done = tune("--model", MODEL, *QUICK, "--plot", "tune.png")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == f"loaded {MODEL}"
    assert [line.split(":")[0].strip() for line in said[1:]] == ["1 rows", "2 rows", "3 rows"]
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{MODEL} on ")
    assert "of caches per row of 16 tokens" in lines[1]
    assert lines[4].split() == ["rows", "tokens/s", "per", "row", "ms", "a", "step", "limit", "of", "it"]
    assert [line.split()[0] for line in lines[5:8]] == ["1", "2", "3"]
    assert sum(line.endswith("<- chosen") for line in lines) == 1
    assert lines[-2] == f"remembered: {tmp_path / 'data' / 'tuned.json'}"
    assert (tmp_path / "tune.png").read_bytes().startswith(PNG)

    again = tune("--max-rows", "3", "--json", PROMPTMILL_MODEL=MODEL)
    assert again.stderr == f"loaded {MODEL}\n"
    shown = orjson.loads(again.stdout)
    assert (shown["remembered"], shown["prompt_tokens"], shown["experts"]) == (True, 16, None)
    assert [size["rows"] for size in shown["sizes"]] == [1, 2, 3]
    assert shown["choice"] in (1, 2, 3)
    assert all(size["tokens_per_s"] > 0 and size["limit"] > 0 for size in shown["sizes"])


def test_a_model_that_is_not_there_exits_5(tune: Tune) -> None:
    """One message on stderr without a traceback, and one object with --json."""
    done = tune("--model", "/nowhere/model", "--json")
    assert done.returncode == 5
    assert done.stderr == "promptmill: no model at '/nowhere/model': the folder does not exist\n"
    error = {"code": "model_load_failed", "message": "no model at '/nowhere/model': the folder does not exist"}
    assert orjson.loads(done.stdout) == {"error": error}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "Missing option '--model'"),
        (("--model", MODEL, "--plot", "tune.pdf"), "--plot writes PNG: name a file such as tune.png"),
        (("--model", MODEL, "--plot", "nowhere/tune.png"), "there is no folder nowhere"),
        (("--model", MODEL, "--memory-limit", "much"), "'much' is not a size"),
        (("--model", MODEL, "--prompt-tokens", "1"), "'--prompt-tokens'"),
    ],
)
def test_wrong_flags_exit_2(tune: Tune, arguments: tuple[str, ...], named: str) -> None:
    """Before a model is loaded."""
    done = tune(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
