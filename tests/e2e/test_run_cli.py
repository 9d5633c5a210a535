"""`promptmill run` with the real worker and the pocket model: to the end, interrupted, killed, and run again."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests import waiting
from tests.mixed import audit, lines, records
from tests.processes import processes

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 60.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `promptmill run` with a data folder of its own; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []
    environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(tmp_path / "data")}
    for name in ("PROMPTMILL_REDIS_URL", "RQ_REDIS_URL", "PROMPTMILL_CONFIG"):
        environ.pop(name, None)

    def go(*arguments: str, model: str = MODEL, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "submit.cli", "run", *arguments, "--model", model]
        started.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environ,
                start_new_session=True,
                **options,
            )
        )
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finished(process: subprocess.Popen[str], stdin: str | None = None) -> tuple[int, str]:
    """Wait for the end: the exit status, and what was said on stderr. Nothing is ever on stdout."""
    output, said = process.communicate(stdin, timeout=DEADLINE_S)
    assert output == ""
    assert "Traceback" not in said
    return process.returncode, said


until = functools.partial(waiting.until, seconds=DEADLINE_S)


def write(path: Path, jobs: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(job) + b"\n" for job in jobs))
    return path


def slow(count: int) -> list[dict[str, Any]]:
    """Lines that take a while."""
    return [
        {"id": f"row-{n}", "prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": True, "temperature": 0.7}
        for n in range(count)
    ]


def some_lines(out: Path, count: int) -> Callable[[], bool]:
    return lambda: out.exists() and out.read_bytes().count(b"\n") >= count


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process id of a run's worker."""
    return next(one.pid for one in processes() if one.parent == process.pid and "-m worker" in one.command)


def test_a_mixed_file_from_beginning_to_end(start: Start, tmp_path: Path) -> None:
    """Every line has one record at its place; run again nothing is generated; changed defaults are refused."""
    source, out = write(tmp_path / "in.jsonl", list(lines(60))), tmp_path / "out.jsonl"
    status, said = finished(start(str(source), "-o", str(out)))
    assert status == 1
    assert "60 lines: 59 succeeded, 1 failed (1 context_length_exceeded)" in said
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []
    assert [record["index"] for record in records(out)] == [index for index in range(60) if index != 49]
    before = out.read_bytes()
    status, said = finished(start(str(source), "-o", str(out)))
    assert status == 1
    assert "is complete already" in said
    assert out.read_bytes() == before
    status, said = finished(start(str(source), "-o", str(out), "--top-k", "7"))
    assert status == 2
    assert "have changed: top_k (was not given, is 7)" in said
    assert out.read_bytes() == before


def test_ctrl_c_keeps_what_is_done_and_the_next_run_finishes(start: Start, tmp_path: Path) -> None:
    """Status 130 and what to do; run again every line has one record, and those that were there are unchanged."""
    source, out = write(tmp_path / "in.jsonl", slow(60)), tmp_path / "out.jsonl"
    first = start(str(source), "-o", str(out), "--decode-concurrency", "4")
    until(some_lines(out, 4), "some lines are done")
    first.send_signal(signal.SIGINT)
    status, said = finished(first)
    kept = out.read_bytes().splitlines()
    assert status == 130
    assert f"interrupted: {len(kept)} of 60 lines done; run the same command again to finish" in said
    assert 4 <= len(kept) < 60
    status, said = finished(start(str(source), "-o", str(out)))
    assert status == 0
    assert f"{len(kept)} of 60 lines" in said
    assert set(kept) <= set(out.read_bytes().splitlines())
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []


def test_after_kill_9_of_everything_the_next_run_finishes(start: Start, tmp_path: Path) -> None:
    """The run and its worker are gone without a word: lines that were done stay, the others are run, at once."""
    source, out = write(tmp_path / "in.jsonl", slow(60)), tmp_path / "out.jsonl"
    first = start(str(source), "-o", str(out), "--decode-concurrency", "4")
    until(some_lines(out, 4), "some lines are done")
    worker = worker_of(first)
    os.kill(first.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    first.communicate()
    kept = out.read_bytes().splitlines(keepends=True)
    status, _ = finished(start(str(source), "-o", str(out)))
    assert status == 0
    (log,) = (tmp_path / "data" / "runs").glob("*.log")
    assert "is gone; taking back" in log.read_text()  # leases of the dead are not waited for
    assert {line for line in kept if line.endswith(b"\n")} <= set(out.read_bytes().splitlines(keepends=True))
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []


def test_standard_input_and_training_data(start: Start, tmp_path: Path) -> None:
    """Prompts from a pipe, results as training data, a batch flag for all lines."""
    out = tmp_path / "train.jsonl"
    prompts = "".join(f'{{"messages":[{{"role":"user","content":"What is {n} plus 1?"}}]}}\n' for n in range(8))
    process = start(
        "-", "-o", str(out), "--format", "chat", "--max-tokens", "8", "--system-prompt", "Be brief.",
        "--chat-template-config", '{"enable_thinking": false}', "--keep-cut",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    status, _ = finished(process, prompts)
    examples = records(out)
    assert status == 0
    assert [[message["role"] for message in example["messages"]] for example in examples] == [
        ["system", "user", "assistant"]
    ] * 8
    assert [example["messages"][1]["content"] for example in examples] == [f"What is {n} plus 1?" for n in range(8)]


def test_thoughts_without_an_answer_are_counted_and_no_training_data(start: Start, tmp_path: Path) -> None:
    """Where thinking takes all of max_tokens there is no answer to learn from: stderr says how many and what to do."""
    asked = [{"messages": [{"role": "user", "content": f"What is {n} plus 5?"}]} for n in range(3)]
    source, out = write(tmp_path / "in.jsonl", asked), tmp_path / "train.jsonl"
    status, said = finished(start(str(source), "-o", str(out), "--format", "chat", "--max-tokens", "4"))
    assert status == 0
    assert "3 lines thought and gave no answer: raise max_tokens" in said
    assert "left out of the training data: 3 empty" in said
    assert out.read_bytes() == b""


def test_a_missing_model_is_5_and_says_so(start: Start, tmp_path: Path) -> None:
    """The worker's reason is on stderr."""
    source, out = write(tmp_path / "in.jsonl", slow(2)), tmp_path / "out.jsonl"
    status, said = finished(start(str(source), "-o", str(out), model=str(tmp_path / "nothing")))
    assert status == 5
    assert "the folder does not exist" in said
