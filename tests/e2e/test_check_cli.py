"""`promptmill check` as a process: says what is in a file, without Redis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 120.0

GOOD = (
    '{"prompt":"Once upon a time","model":"a"}\n'
    '{"messages":[{"role":"user","content":"What is 2 plus 3?"}]}\n'
    '{"custom_id":"q","body":{"prompt":"b","model":"a"}}\n'
)


def check(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end; no Redis is where the environment says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "RQ_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "submit.cli", "check", *map(str, arguments)],
        capture_output=True, text=True, input=stdin, timeout=DEADLINE_S, check=False,
        env=kept | {"PROMPTMILL_REDIS_URL": "redis://127.0.0.1:1"},
    )  # fmt: skip


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text(GOOD)
    return path


def test_good_file_is_summed_up(good: Path) -> None:
    """Lines, formats and models on stdout; exit 0 without Redis and without any model."""
    done = check(good)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{good}: 3 lines, all good",
        "  formats  native 2, openai 1",
        "  model    a (2 lines)",
        "  model    none named: `submit` will need --model (1 line)",
    ]


def test_json_is_one_object(good: Path) -> None:
    """The same for scripts; standard input works too."""
    expected = {
        "lines": 3,
        "bad_lines": 0,
        "formats": {"native": 2, "openai": 1},
        "models": {"a": 2},
        "without_model": 1,
        "own_models": {},
        "after_answer": 0,
        "unchecked_constraints": 0,
        "problems": [],
    }
    assert orjson.loads(check(good, "--json").stdout) == {"source": str(good), **expected}
    assert orjson.loads(check("-", "--json", stdin=GOOD).stdout) == {"source": "standard input", **expected}


def test_bad_lines_are_listed_as_submit_lists_them(tmp_path: Path) -> None:
    """Exit 2, the problems on stderr, and in the one object with --json."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt":"a"}\n{"prompt":"a","temperature":101}\n{"id":"line-1","prompt":"a"}\n')
    done = check(path, "--json")
    assert done.returncode == 2
    shown = orjson.loads(done.stdout)
    assert (shown["lines"], shown["bad_lines"]) == (3, 2)
    assert [(problem["line"], problem["code"]) for problem in shown["problems"]] == [
        (2, "out_of_range"),
        (3, "duplicate_custom_id"),
    ]
    screen = done.stderr.splitlines()
    assert screen[1] == "  line 2, field 'temperature': must be float 0..100, not 101 [out_of_range]"
    assert check(path).stdout.splitlines()[0] == f"{path}: 3 lines, 2 bad"


def test_a_model_that_lines_override_is_said(good: Path) -> None:
    """With the flag that ends it; stdout is as it was, and --json counts them."""
    done = check(good, "--model", MODEL, "--json")
    assert done.stderr.startswith(f"2 lines name their own model 'a': --model {MODEL} is only for lines without one")
    assert orjson.loads(done.stdout)["own_models"] == {"a": 2}
    done = check(good, "--model", MODEL + "/", "--override-model")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  model    {MODEL} (3 lines)" in done.stdout


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "a.jsonl: there are no prompts in it\n"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b'[\n{"prompt":"a"},\n{"prompt":"b"}\n]\n', "is a JSON array, not one object a line; make lines of it: jq"),
        (None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_checked_exit_2(tmp_path: Path, content: bytes | None, named: str) -> None:
    """Empty, foreign, missing: one message, and one object with --json."""
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = check(path, "--json")
    assert done.returncode == 2
    assert named in done.stderr
    assert "enqueued" not in done.stderr
    assert orjson.loads(done.stdout)["error"]["message"]


def test_wrong_flags_exit_2(good: Path) -> None:
    """The parameters are checked as submit checks them."""
    done = check(good, "--temperature", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--temperature must be float 0..100" in done.stderr


def test_with_a_model_prompts_are_rendered_and_counted(good: Path) -> None:
    """The prompts that are this model's, through its chat template, as text and in tokens."""
    done = check(good, "--model", MODEL)
    assert done.returncode == 0, done.stderr
    assert f"  model    {MODEL} (1 line)" in done.stdout
    assert " in 1 prompt, the longest " in done.stdout
    assert "--- line 2, as the model sees it ---\n<|im_start|>user\nWhat is 2 plus 3?<|im_end|>" in done.stdout


def test_with_a_model_lines_it_cannot_take_are_bad(tmp_path: Path) -> None:
    """What only the tokenizer knows is listed among the rest, in the order of the file; good lines are counted."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        f'{{"prompt":"{"word " * 3000}"}}\nnope\n{{"prompt":"a","extra_eos_tokens":"abc def"}}\n{{"prompt":"a b c"}}\n'
    )
    done = check(path, "--model", MODEL, "--json")
    assert done.returncode == 2
    shown = orjson.loads(done.stdout)
    assert [(problem["line"], problem["code"]) for problem in shown["problems"]] == [
        (1, "context_length_exceeded"),
        (2, "invalid_json_line"),
        (3, "unsupported"),
    ]
    assert (shown["tokens"]["lines"], shown["tokens"]["context_length"]) == (1, 1024)
    assert shown["tokens"]["prompt_tokens"] == shown["tokens"]["longest"] >= 3
    assert {"line": 4, "prompt": "a b c"} in shown["previews"]


def test_model_that_cannot_be_loaded_exits_5(good: Path, tmp_path: Path) -> None:
    """As a worker would say it."""
    done = check(good, "--model", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (5, "")
    assert "Traceback" not in done.stderr


def test_a_schema_that_cannot_be_enforced_is_named_with_its_place(tmp_path: Path) -> None:
    """Line, field, JSON pointer, keyword and remedy, in words and in JSON; also where the batch gives it."""
    schema = '{"type":"object","properties":{"tags":{"type":"array","uniqueItems":true}}}'
    path = tmp_path / "guided.jsonl"
    path.write_text(GOOD + f'{{"prompt":"a","guided_json":{schema}}}\n{{"prompt":"a","guided_regex":"(?=a)b"}}\n')
    done = check(path)
    assert done.returncode == 2
    assert "line 4, field 'guided_json': at \"/properties/tags/uniqueItems\": 'uniqueItems' cannot be" in done.stderr
    assert "drop repeated items" in done.stderr
    assert "line 5, field 'guided_regex': look-around" in done.stderr
    problems = orjson.loads(check(path, "--json").stdout)["problems"]
    assert [(problem["line"], problem["code"]) for problem in problems] == [
        (4, "invalid_schema"),
        (5, "invalid_schema"),
    ]
    path.write_text(GOOD)
    done = check(path, "--guided-json", schema)
    assert done.returncode == 2
    assert "'guided_json': at \"/properties/tags/uniqueItems\"" in done.stderr
    done = check(path, "--tools", '[{"type":"function","function":{"name":"a b"}}]')
    assert done.returncode == 2
    assert "--tools[0].function.name" in done.stderr
    assert check(path, "--guided-choice", "yes", "--guided-choice", "no").returncode == 0
