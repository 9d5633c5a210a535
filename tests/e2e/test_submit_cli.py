"""`promptmill submit` as a process: what it prints where, what it leaves in Redis, how it exits."""

from __future__ import annotations

import functools
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.keys import worker_key
from jobs.store.store import Store
from tests import waiting
from tests.pool import echo, work

DEADLINE_S = 60.0
GOOD = (
    '{"prompt":"a"}\n'
    "\n"
    '{"id":"x","messages":[{"role":"user","content":"hi"}]}\n'
    '{"custom_id":"q","body":{"prompt":"b"}}\n'
)
BAD = '{"prompt":"a"}\n{"prompt":"a","temprature":1}\nnope\n{"prompt":"a","id":"x"}\n{"prompt":"a","id":"x"}\n'


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "submit.cli", "submit", *map(str, arguments)]


def environment(url: str | None) -> dict[str, str]:
    """The environment without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "RQ_"))}
    return kept | ({} if url is None else {"PROMPTMILL_REDIS_URL": url})


def submit(url: str | None, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, input=stdin, timeout=DEADLINE_S, check=False, env=environment(url)
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text(BAD)
    return path


until = functools.partial(waiting.until, seconds=DEADLINE_S)


def test_id_alone_is_on_stdout(store: Store, server_url: str, good: Path) -> None:
    """For `BATCH=$(promptmill submit ...)`: everything else goes to stderr; flags reach the batch."""
    done = submit(
        server_url, good, "--model", "m", "--name", "nightly", "--priority", "high", "--temperature", "0.5",
        "--stop", "END", "--metadata", '{"k":1}',
    )  # fmt: skip
    assert done.returncode == 0
    batch = store.batch(done.stdout.decode().removesuffix("\n"))
    assert (batch.total, batch.status, batch.name, batch.priority) == (3, "in_progress", "nightly", "high")
    assert (batch.metadata, batch.source) == ({"k": 1}, str(good))
    assert batch.defaults == {"model": "m", "temperature": 0.5, "stop": ["END"]}
    assert b"3 lines of" in done.stderr


def test_json_is_one_object_on_stdout(store: Store, server_url: str, good: Path) -> None:
    """With --json: the id and what was found."""
    done = submit(server_url, good, "--model", "m", "--json")
    shown = orjson.loads(done.stdout)
    found = {
        "total": 3,
        "rejected": 0,
        "problems": [],
        "twins": 0,
        "shards": 1,
        "models": ["m"],
        "own_models": {},
        "after_answer": 0,
    }
    assert shown == {"id": shown["id"], **found}
    assert store.batch(shown["id"]).total == 3


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_and_packed_files(store: Store, server_url: str, tmp_path: Path, packed: bool) -> None:
    """`-` reads a pipe, .gz is unpacked."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode()))
    done = submit(server_url, path if packed else "-", "--model", "m", stdin=GOOD.encode())
    assert store.batch(done.stdout.decode().strip()).total == 3


def test_bad_lines_reject_the_file(store: Store, server_url: str, bad: Path) -> None:
    """Exit 2, every bad line on stderr with number, field, code and remedy, nothing on stdout, nothing enqueued."""
    done = submit(server_url, bad, "--model", "m")
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].endswith("bad.jsonl: 3 bad lines; nothing was enqueued")
    assert lines[1].startswith("  line 2, field 'temprature': ")
    assert lines[1].endswith("did you mean 'temperature'? [unknown_field]")
    assert lines[2].startswith("  line 3: not valid JSON")
    assert lines[3].startswith("  line 5, field 'id': 'x' is the id of line 4 already")
    assert store.connection.keys("*") == []


def test_alike_bad_lines_are_one_on_screen_and_all_are_listed_in_json(server_url: str, tmp_path: Path) -> None:
    """The screen shows kinds of problems with their counts, the first 20; --json lists all; the exit status is 2."""
    path = tmp_path / "bad.jsonl"
    path.write_text("nope\n" * 30 + "".join(f'{{"prompt":"a","column_{chr(97 + n)}":1}}\n' for n in range(22)))
    done = submit(server_url, path, "--model", "m", "--json")
    assert done.returncode == 2
    shown = orjson.loads(done.stdout)
    assert (shown["error"]["code"], shown["bad_lines"]) == ("invalid_input", 52)
    assert [problem["line"] for problem in shown["problems"]] == list(range(1, 53))
    assert set(shown["problems"][0]) == {"line", "code", "field", "message"}
    screen = done.stderr.decode().splitlines()
    assert len(screen) == 22
    assert screen[1].startswith("  30 lines: not valid JSON")
    assert screen[1].endswith("(lines 1, 2, 3, 4, 5, ...)")
    assert screen[-1] == "  ... and 3 kinds of problems more: `promptmill check FILE --json` lists them all"


def test_a_model_that_gave_way_is_said_and_can_be_overridden(store: Store, server_url: str, tmp_path: Path) -> None:
    """Lines that name their own model are counted aloud: nobody waits for a model that no worker has."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"a","model":"gpt-4o-mini"}\n' * 2 + '{"prompt":"a"}\n')
    done = submit(server_url, path, "--model", "./m/")
    said = done.stderr.decode()
    assert (
        "2 lines name their own model 'gpt-4o-mini': --model m is only for lines without one; --override-model" in said
    )
    assert "no worker serves gpt-4o-mini now" in said
    done = submit(server_url, path, "--model", "m", "--override-model")
    assert "own model" not in done.stderr.decode()
    assert store.batch(done.stdout.decode().strip()).models == ("m",)
    done = submit(server_url, path, "--override-model")
    assert done.returncode == 2
    assert b"--override-model needs the model" in done.stderr


def test_bad_lines_can_be_skipped(store: Store, server_url: str, bad: Path) -> None:
    """Exit 0; the rest runs, the bad lines are named on stderr."""
    done = submit(server_url, bad, "--model", "m", "--on-bad-line", "skip")
    assert done.returncode == 0
    batch = store.batch(done.stdout.decode().strip())
    assert (batch.total, batch.rejected, batch.failed) == (5, 3, 3)
    assert b"3 bad lines, skipped" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.jsonl", "--model", "m"], "missing.jsonl: cannot be read"),
        (["GOOD"], "good.jsonl: no line names a model, and no --model is given; nothing was enqueued"),
        (["GOOD", "--model", "m", "--top-p", "7"], "--top-p must be"),
        (["GOOD", "--model", "m", "--metadata", "[1]"], "--metadata must be a JSON object"),
        (["GOOD", "--model", "m", "--metadata", "{"], "--metadata must be a JSON object"),
        (["GOOD", "--model", "m", "--wait"], "-o"),
        (["GOOD", "--model", "m", "-o", "out.jsonl"], "--wait"),
        (["GOOD", "--model", "m", "--wait", "-o", "GOOD"], "is the input"),
        (["GOOD", "--model", "m", "--wait", "-o", "x", "--timeout", "soon"], "is not a duration"),
        (["GOOD", "--model", "m", "--keep", "0"], "'--keep': must be above 0 and below ten years, not 0"),
        (["GOOD", "--model", "m", "--keep", "9999d"], "write 90s, 2h or 14d, or `forever`"),
        (["GOOD", "--model", "m", "--at", "noon"], "--at: 'noon' is no moment"),
        (["GOOD", "--model", "m", "--name", "a\nb"], "printable"),
        (["GOOD", "--priority", "urgent"], "--priority"),
        (["GOOD", "--temprature", "1"], "--temprature"),
    ],
)
def test_mistakes_exit_2_with_the_remedy(
    store: Store, server_url: str, good: Path, arguments: list[str], named: str
) -> None:
    """Never a traceback, nothing on stdout, nothing in Redis."""
    done = submit(server_url, *(str(good) if word == "GOOD" else word for word in arguments))
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert store.connection.keys("*") == []


def test_unreachable_redis_exits_3_without_the_password(good: Path) -> None:
    """The address and the remedy are named, the secret is not; with --json the error is an object too."""
    done = submit("redis://user:s3cret@127.0.0.1:1/0", good, "--model", "m", "--json")
    assert done.returncode == 3
    assert orjson.loads(done.stdout)["error"]["code"] == "redis_unavailable"
    assert b"127.0.0.1:1" in done.stderr
    assert b"--redis" in done.stderr
    assert b"s3cret" not in done.stderr + done.stdout


def test_nothing_is_asked_of_redis_before_the_input_is_there(tmp_path: Path) -> None:
    """A wrong path is a wrong path, whether Redis is there or not."""
    done = submit("redis://127.0.0.1:1", tmp_path / "missing.jsonl", "--model", "m")
    assert done.returncode == 2


def failing(job: Job) -> list[Choice]:
    """An answer to each line but x, which fails."""
    if job.id == "x":
        raise LineError("context_length_exceeded", "prompt", "too long")
    return echo(job)


@pytest.mark.parametrize(
    ("answer", "status", "head"),
    [
        (echo, 0, "3 lines: 3 succeeded"),
        (failing, 1, "3 lines: 2 succeeded, 1 failed (1 context_length_exceeded)"),
    ],
)
def test_wait_writes_results_and_exits_as_the_lines_did(
    store: Store, server_url: str, good: Path, tmp_path: Path, answer: Any, status: int, head: str
) -> None:
    """--wait -o: the id at once, then all results, and the summary that `run` ends with; exit 1 when a line failed,
    which is in the errors file."""
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        command(good, "--model", "m", "--wait", "-o", out), env=environment(server_url), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        batch_id = process.stdout.readline().decode().strip()
        worker = threading.Thread(target=work, args=(store, batch_id), kwargs={"answer": answer})
        worker.start()
        printed, told = process.communicate(timeout=DEADLINE_S)
        worker.join()
    assert (process.returncode, printed) == (status, b"")
    results = [orjson.loads(line)["id"] for line in out.read_bytes().splitlines()]
    assert sorted(results) == sorted({"line-1", "x", "q"} - ({"x"} if status else set()))
    errors = tmp_path / "out.errors.jsonl"
    assert errors.exists() == bool(status)
    lines = told.decode().splitlines()
    assert head in lines
    summary = lines[lines.index(head) + 1 :]
    assert summary[0] == f"ended by: {3 - status} eos"
    assert summary[1].startswith(f"tokens: {10 * (3 - status)} prompt (")
    assert summary[2:] == [f"results: {out}", *([f"errors: {errors}"] if status else [])]


def test_wait_gives_up_after_its_timeout(store: Store, server_url: str, good: Path, tmp_path: Path) -> None:
    """Exit 4; the batch goes on, and its id was printed."""
    done = submit(server_url, good, "--model", "m", "--wait", "-o", tmp_path / "out", "--timeout", "0.1", "--json")
    assert done.returncode == 4
    assert store.batch(orjson.loads(done.stdout)["id"]).status == "in_progress"


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_upload_never_runs(store: Store, server_url: str, sent: signal.Signals, status: int) -> None:
    """Ctrl-C takes the upload back at once; after kill -9 it stays validating, and is swept by the next submission."""
    process = subprocess.Popen(
        command("-", "--model", "m"), env=environment(server_url), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"prompt":"x"}\n' * 10_000)
        process.stdin.flush()
        until(lambda: store.connection.keys("promptmill:b:*:s:*"))
        process.send_signal(sent)
        assert process.wait(DEADLINE_S) == status
        assert process.stdout.read() == b""
    assert store.batches() == []
    assert store.connection.keys("rq:queue:*") == []
    Store(store.connection, server_time=lambda: time.time() + 1000).sweep()
    assert store.connection.keys("*") == []


def said(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines on stderr of a command that went well."""
    assert done.returncode == 0, done.stderr
    return done.stderr.decode().splitlines()


def test_a_missing_model_is_said_once_where_all_lines_lack_it(server_url: str, good: Path, tmp_path: Path) -> None:
    """And line by line where some have one."""
    assert len(submit(server_url, good).stderr.splitlines()) == 1
    some = tmp_path / "some.jsonl"
    some.write_text('{"prompt":"a"}\n{"prompt":"a","model":"m"}\n')
    assert b"line 1, field 'model': no model: give the line a 'model'" in submit(server_url, some).stderr


def test_the_times_of_a_batch_are_said(server_url: str, good: Path) -> None:
    """When it begins by the clock of who reads it, and what else was said of its times; else nothing."""
    zone = {**environment(server_url), "TZ": "Europe/Berlin"}
    flags = ["--model", "m", "--at", "2031-07-01 02:00", "--expires-in", "2h", "--keep", "30d"]
    done = subprocess.run(command(good, *flags), capture_output=True, timeout=DEADLINE_S, check=False, env=zone)
    times = said(done)[1]
    assert times.startswith("begins 2031-07-01 02:00 CEST (in ")
    assert "; expires 2031-07-01 04:00 CEST (in " in times
    assert times.endswith("; kept for 30d00h after its end")
    later = said(submit(server_url, good, "--model", "m", "--in", "90m", "--keep", "forever"))[1]
    assert later.endswith(" (in 1h30m); kept until `promptmill purge` removes it")
    assert len(said(submit(server_url, good, "--model", "m"))) == 2


def test_a_model_that_no_worker_serves_is_said(store: Store, server_url: str, good: Path) -> None:
    """The batch is enqueued all the same; once a worker serves the model, or an adapter on it, nothing is said."""
    note = "no worker serves m now; it waits for one"
    assert note in said(submit(server_url, good, "--model", "m"))
    for queue, noted in (("promptmill:normal:mm", True), ("promptmill:high:m+/adapter", False)):
        state = {"name": "w", "state": "idle", "queues": [queue]}
        store.connection.set(worker_key("w"), orjson.dumps(state))
        assert (note in said(submit(server_url, good, "--model", "m"))) is noted


def test_who_stops_waiting_is_told_how_to_come_by_the_rest(server_url: str, good: Path, tmp_path: Path) -> None:
    """Ctrl-C in `--wait`: 130, and the command that writes the rest."""
    out = tmp_path / "the results.jsonl"
    process = subprocess.Popen(
        command(good, "--model", "m", "--wait", "-o", out),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(server_url),
    )  # fmt: skip
    waiting.until(out.exists, "the batch is followed")
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=DEADLINE_S)
    batch_id = printed.decode().strip()
    assert process.returncode == 130
    assert f"the batch goes on; `promptmill results {batch_id} -o '{out}'` writes the rest" in errors.decode()
