"""`promptmill results` and `promptmill status` as users and scripts call them: files, streams, exit statuses."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.store import Store
from submit.cli import main
from tests import waiting
from tests.pool import echo, make_batch, prompts, publish, work

DEADLINE_S = 30.0


def fail_some(job: Job) -> Sequence[Choice]:
    if job.index % 2:
        raise LineError("internal_error", None, "odd")
    return echo(job)


def lines(text: str | bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in text.splitlines()]


until = functools.partial(waiting.until, seconds=DEADLINE_S)


def test_all_lines_succeeded_is_0(
    store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results in OUT, nothing on stdout, where they are on stderr; the batch is found by its name too."""
    batch_id = make_batch(store, prompts(3), name="nightly")
    work(store, batch_id)
    for name in (batch_id, "nightly"):
        assert main(["results", name, "-o", str(tmp_path / "out.jsonl"), "--redis", server_url]) == 0
    assert [record["id"] for record in lines((tmp_path / "out.jsonl").read_bytes())] == ["row-0", "row-1", "row-2"]
    said = f"3 lines written to {tmp_path / 'out.jsonl'}\n"
    assert capsys.readouterr() == ("", said * 2)


def test_some_failed_is_1_and_stderr_says_where_they_are(
    store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of errors is named, and holds what failed."""
    batch_id = make_batch(store, prompts(4))
    work(store, batch_id, answer=fail_some)
    out = tmp_path / "out.jsonl"
    assert main(["results", batch_id, "-o", str(out), "--redis", server_url]) == 1
    assert capsys.readouterr().err == (
        f"2 lines written to {out}\n2 lines failed: their records are in {tmp_path / 'out.errors.jsonl'}\n"
    )
    assert [record["index"] for record in lines((tmp_path / "out.errors.jsonl").read_bytes())] == [1, 3]


def test_an_unfinished_batch_says_what_is_missing(
    store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What there is is written, stderr says how many lines are missing, and the status is not 0."""
    batch_id = make_batch(store, prompts(4))
    work(store, batch_id, only=[2, 1])
    assert main(["results", batch_id, "-o", str(tmp_path / "out.jsonl"), "--redis", server_url]) == 1
    assert [record["index"] for record in lines((tmp_path / "out.jsonl").read_bytes())] == [1, 2]
    assert capsys.readouterr().err == (
        f"2 lines written to {tmp_path / 'out.jsonl'}\n"
        f"2 lines are missing: batch {batch_id} is in_progress; --follow waits for them\n"
    )


def test_stdout_gets_records_and_nothing_else(
    store: Store, server_url: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Without -o, and with -o -, stdout is JSONL; --follow keeps its talk on stderr."""
    batch_id = make_batch(store, prompts(2))
    work(store, batch_id)
    for flags in ([], ["-o", "-"], ["--follow"]):
        assert main(["results", batch_id, *flags, "--redis", server_url]) == 0
        assert [record["index"] for record in lines(capsysbinary.readouterr().out)] == [0, 1]


def test_timeout_is_4(store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch that is not done in time; what was finished is there."""
    batch_id = make_batch(store, prompts(2))
    work(store, batch_id, only=[0])
    out = tmp_path / "out.jsonl"
    assert main(["results", batch_id, "-o", str(out), "--follow", "--timeout", "0.3s", "--redis", server_url]) == 4
    assert "1 of 2 lines" in capsys.readouterr().err
    assert len(lines(out.read_bytes())) == 1


def test_follow_ends_with_the_batch_and_a_summary(
    store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that finish while it waits are written; stderr ends with what the batch came to."""
    batch_id = make_batch(store, prompts(4))
    out = tmp_path / "out.jsonl"
    late = threading.Thread(target=lambda: (until(out.exists, "OUT is there"), work(store, batch_id, answer=fail_some)))
    late.start()
    assert main(["results", batch_id, "-o", str(out), "--follow", "--redis", server_url]) == 1
    late.join()
    errors = tmp_path / "out.errors.jsonl"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "0 of 4 lines done; waiting: no worker serves pocket"
    assert "4 lines: 2 succeeded, 2 failed (2 internal_error)" in said
    assert "ended by: 2 eos" in said
    assert said[-2:] == [f"results: {out}", f"errors: {errors}"]
    assert len(lines(out.read_bytes())) == len(lines(errors.read_bytes())) == 2


def test_formats_are_written(store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenAI's envelopes hold the failures; training data leaves them out, and stderr says so."""
    batch_id = make_batch(store, prompts(4))
    work(store, batch_id, answer=fail_some)
    out = tmp_path / "out.jsonl"
    call = ["results", batch_id, "-o", str(out), "--redis", server_url, "--format"]
    assert main([*call, "openai"]) == 1
    assert [row["response"]["status_code"] for row in lines(out.read_bytes())] == [200, 500, 200, 500]
    capsys.readouterr()
    assert main([*call, "completions"]) == 1
    assert lines(out.read_bytes()) == [
        {"prompt": "Once upon a time", "completion": f"answer to row-{n}"} for n in (0, 2)
    ]
    assert capsys.readouterr().err.endswith("2 lines failed: they are left out\n")
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_json_is_a_summary(store: Store, server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on stdout: the batch, what was written where, and what failed."""
    batch_id = make_batch(store, prompts(4))
    work(store, batch_id, answer=fail_some)
    out = str(tmp_path / "out.jsonl")
    assert main(["results", batch_id, "-o", out, "--json", "--redis", server_url]) == 1
    shown = orjson.loads(capsys.readouterr().out)
    assert shown["id"] == batch_id
    assert shown["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert (shown["written"], shown["missing"]) == (4, 0)
    assert shown["failed_by_code"] == {"internal_error": 2}
    assert shown["results"] == out
    assert shown["errors"] == str(tmp_path / "out.errors.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["b_nothing"], "no batch 'b_nothing'"),
        (["b", "--timeout", "5s"], "--timeout goes with --follow"),
        (["b", "--follow", "--timeout", "soon"], "'soon' is not a duration"),
        (["b", "--json"], "give the results a file with -o"),
        (["b", "--format", "xml"], "'xml' is not one of"),
    ],
)
def test_wrong_usage_is_2(server_url: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    """What makes no sense is refused with what to do, and nothing on stdout."""
    assert main(["results", *flags, "--redis", server_url]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def cli(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "submit.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_reader_that_has_enough_ends_it_quietly(store: Store, server_url: str) -> None:
    """`promptmill results BATCH | head -1`: no traceback, status 0."""
    batch_id = make_batch(store, [{"prompt": "x" * 1000} for _ in range(2000)])
    work(store, batch_id, answer=lambda job: [Choice(0, "y" * 1000, "eos")])
    process = cli("results", batch_id, "--redis", server_url)
    assert process.stdout is not None
    assert process.stderr is not None
    assert orjson.loads(process.stdout.readline())["index"] == 0
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(DEADLINE_S) == 0
    process.stderr.close()


def test_ctrl_c_while_following_is_130(store: Store, server_url: str, tmp_path: Path) -> None:
    """What was written stays whole, and no temporary file is left."""
    batch_id = make_batch(store, prompts(3))
    work(store, batch_id, only=[1])
    out = tmp_path / "out.jsonl"
    process = cli("results", batch_id, "-o", str(out), "--follow", "--redis", server_url)
    until(out.exists, "OUT is there")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert f"the batch goes on; `promptmill results {batch_id} -o {out}` writes the rest".encode() in errors
    assert [record["index"] for record in lines(out.read_bytes())] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_status_lists_batches(store: Store, server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A row per batch, oldest first; --json is a list of objects."""
    first, second = make_batch(store, prompts(2), name="one"), make_batch(store, prompts(3))
    work(store, first, answer=fail_some)
    assert main(["status", "--redis", server_url]) == 0
    _header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [row[:4] for row in rows] == [[first, "one", "completed", "1/1/2"], [second, "-", "waiting", "0/0/3"]]
    assert main(["status", "--json", "--redis", server_url]) == 0
    assert [item["id"] for item in orjson.loads(capsys.readouterr().out)] == [first, second]


def test_status_of_one_batch(store: Store, server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, with its lines in flight, as text and as one object."""
    batch_id = make_batch(store, prompts(3), name="nightly")
    work(store, batch_id, only=[0])
    flight = {"batch_id": batch_id, "index": 2, "id": None, "phase": "decode", "completion_tokens": 7}
    publish(store, "mini.1", state="busy", queues=["promptmill:normal:pocket"], in_flight=[flight])
    assert main(["status", "nightly", "--redis", server_url]) == 0
    text = capsys.readouterr().out
    assert f"batch     {batch_id} (nightly)" in text
    assert "1 of 3 done" in text
    assert text.splitlines()[-1].split() == ["2", "-", "decode", "7", "generated", "mini.1"]
    assert main(["status", batch_id, "--json", "--redis", server_url]) == 0
    shown = orjson.loads(capsys.readouterr().out)
    assert shown["status"] == "in_progress"
    assert [(line["index"], line["worker"]) for line in shown["in_flight"]] == [(2, "mini.1")]


def test_watching_a_batch_ends_with_it(store: Store, server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--watch on a batch that is done shows it and ends; --json gives a line per view."""
    batch_id = make_batch(store, prompts(2))
    work(store, batch_id)
    assert main(["status", batch_id, "--watch", "--redis", server_url]) == 0
    assert "completed" in capsys.readouterr().out
    assert main(["status", batch_id, "--watch", "--json", "--redis", server_url]) == 0
    assert lines(capsys.readouterr().out)[-1]["status"] == "completed"


def test_leaving_watch_with_ctrl_c_is_0(store: Store, server_url: str) -> None:
    """Ctrl-C is how one leaves."""
    make_batch(store, prompts(2), name="nightly")
    process = cli("status", "--watch", "--redis", server_url, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    assert b"batch" in process.stdout.readline()
    assert b"nightly" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (0, b"")


def test_an_unknown_batch_is_2(server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says how to find those there are."""
    assert main(["status", "b_nothing", "--redis", server_url]) == 2
    assert "no batch 'b_nothing' here; `promptmill status` lists them" in capsys.readouterr().err
