"""`promptmill cancel`, `retry` and `submit --expires-in`, with workers on the pocket model."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.store.store import Store
from tests import commands, waiting
from tests.mixed import records
from tests.pool import make_batch, prompts, work

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 60.0
until = functools.partial(waiting.until, seconds=DEADLINE_S)

Promptmill = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def promptmill(tmp_path: Path) -> Promptmill:
    """Run a command to its end, with a data folder of its own; `run`, which has a worker, as a process."""
    environ = {"PROMPTMILL_DATA_DIR": str(tmp_path / "data")}

    def run(url: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = [*arguments, *([] if url is None else ["--redis", url])]
        if arguments[0] != "run":
            return commands.promptmill(*words, check=False, **environ)
        command, inherited = [sys.executable, "-P", "-m", "submit.cli", *words], {**os.environ, **environ}
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=inherited)
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def start_worker(server_url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers on the pocket model; all are gone at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "worker", "--redis", server_url, "--model", MODEL, *flags]
        with (tmp_path / "worker.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def write(path: Path, jobs: list[dict[str, Any]]) -> str:
    path.write_bytes(b"".join(orjson.dumps(job) + b"\n" for job in jobs))
    return str(path)


def some_too_long() -> list[dict[str, Any]]:
    """Lines of which each third needs more context than 64 tokens."""
    text = "Once upon a time there was a fox. "
    return [{"id": f"row-{n}", "prompt": text * (20 if n % 3 == 0 else 1), "max_tokens": 5} for n in range(60)]


def test_cancel_in_the_middle(
    store: Store, server_url: str, tmp_path: Path, promptmill: Promptmill, start_worker: Callable[..., Any]
) -> None:
    """Finished lines are kept, the others are errors, status agrees with the files, and the rest can be run later."""
    jobs = [{"id": str(n), "prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": True} for n in range(80)]
    batch = promptmill(server_url, "submit", write(tmp_path / "in.jsonl", jobs), "--model", MODEL).stdout.strip()
    worker = start_worker("--decode-concurrency", "4")
    until(lambda: store.batch(batch).completed > 4, "some lines are done")
    cancelled = promptmill(server_url, "cancel", batch, "--json")
    assert cancelled.returncode == 0
    shown = orjson.loads(cancelled.stdout)
    kept = shown["request_counts"]["completed"]
    assert (shown["status"], shown["request_counts"]) == (
        "cancelled",
        {"total": 80, "completed": kept, "failed": 80 - kept},
    )
    assert f"{kept} of 80 lines finished, {80 - kept} not run" in cancelled.stderr
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    written = promptmill(server_url, "results", batch, "-o", str(out), "--json")
    assert (written.returncode, orjson.loads(written.stdout)["failed_by_code"]) == (1, {"cancelled": 80 - kept})
    assert len(records(out)) == kept
    assert sorted(record["index"] for record in records(out) + records(errors)) == list(range(80))
    assert worker.poll() is None
    assert promptmill(server_url, "retry", batch).returncode == 0
    followed = promptmill(server_url, "results", batch, "--follow", "-o", str(tmp_path / "follow.jsonl"))
    assert (followed.returncode, len(records(tmp_path / "follow.jsonl"))) == (0, 80)
    again = promptmill(server_url, "results", batch, "-o", str(tmp_path / "all.jsonl"))
    assert (again.returncode, [record["index"] for record in records(tmp_path / "all.jsonl")]) == (0, [*range(80)])
    before = {record["index"]: record for record in records(out)}
    assert [record for record in records(tmp_path / "all.jsonl") if record["index"] in before] == list(before.values())


def test_retry_with_a_worker_that_can_do_more(
    store: Store, server_url: str, tmp_path: Path, promptmill: Promptmill, start_worker: Callable[..., Any]
) -> None:
    """Lines that were too long for one worker are run by another; the others are not run again."""
    source = write(tmp_path / "in.jsonl", some_too_long())
    batch = promptmill(server_url, "submit", source, "--model", MODEL).stdout.strip()
    assert start_worker("--max-context", "64", "--burst").wait(DEADLINE_S) == 0
    first = store.batch(batch)
    assert (first.status, first.completed, first.failed) == ("completed", 40, 20)
    retried = promptmill(server_url, "retry", batch, "--json")
    assert (retried.returncode, orjson.loads(retried.stdout)["retried"]) == (0, 20)
    assert promptmill(server_url, "retry", batch).returncode == 2
    assert start_worker("--burst").wait(DEADLINE_S) == 0
    out = tmp_path / "out.jsonl"
    assert promptmill(server_url, "results", batch, "-o", str(out)).returncode == 0
    assert [(record["index"], record["attempt"]) for record in records(out)] == [
        (index, 2 if index % 3 == 0 else 1) for index in range(60)
    ]
    nothing = promptmill(server_url, "retry", batch)
    assert (nothing.returncode, "nothing to retry" in nothing.stderr) == (0, True)


def test_retry_of_a_run_is_finished_by_the_same_run(tmp_path: Path, promptmill: Promptmill) -> None:
    """The private pool's batch waits for its run, which writes OUT anew."""
    out = tmp_path / "out.jsonl"
    run = ["run", write(tmp_path / "in.jsonl", some_too_long()), "-o", str(out), "--model", MODEL]
    assert promptmill(None, *run, "--max-context", "64").returncode == 1
    batch = records(out)[0]["batch_id"]
    assert len(records(tmp_path / "out.errors.jsonl")) == 20
    retried = promptmill(None, "retry", batch)
    assert (retried.returncode, "run the same command again to finish it" in retried.stderr) == (0, True)
    again = promptmill(None, *run)
    assert again.returncode == 0
    assert "going on with batch" in again.stderr
    assert [record["index"] for record in records(out)] == list(range(60))
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_batch_expires_without_any_worker(server_url: str, tmp_path: Path, promptmill: Promptmill) -> None:
    """Whoever waits for it hears of it, and gets a record for each line."""
    source = write(tmp_path / "in.jsonl", prompts(3))
    batch = promptmill(server_url, "submit", source, "--model", "m", "--expires-in", "0.5s").stdout.strip()
    out = tmp_path / "out.jsonl"
    followed = promptmill(server_url, "results", batch, "--follow", "-o", str(out))
    assert (followed.returncode, "3 failed (3 expired)" in followed.stderr) == (1, True)
    assert [record["error"]["code"] for record in records(tmp_path / "out.errors.jsonl")] == ["expired"] * 3
    shown = orjson.loads(promptmill(server_url, "status", batch, "--json").stdout)
    assert (shown["status"], shown["request_counts"]["failed"]) == ("expired", 3)
    assert {"expires_at", "expired_at"} <= set(shown)


def test_workers_end_batches_whose_time_is_up(
    store: Store, server_url: str, tmp_path: Path, promptmill: Promptmill, start_worker: Callable[..., Any]
) -> None:
    """Nobody else looks; what is finished stays, and the worker goes on with other batches."""
    worker = start_worker()
    line = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True}
    source = write(tmp_path / "in.jsonl", [line] * 3000)
    submitted = promptmill(server_url, "submit", source, "--model", MODEL, "--expires-in", "3s")
    batch = submitted.stdout.strip()
    until(lambda: store.batch(batch).status == "expired", "the worker ends the batch")
    ended = store.batch(batch)
    assert (ended.finished, ended.failed) == (3000, ended.unrun)
    other = promptmill(server_url, "submit", write(tmp_path / "other.jsonl", prompts(2)), "--model", MODEL)
    until(lambda: store.batch(other.stdout.strip()).status == "completed", "the other batch is done")
    assert worker.poll() is None


def test_cancel_says_what_it_did_to_each(store: Store, server_url: str, promptmill: Promptmill) -> None:
    """Several at once, by id or name: each is answered, and one that is over does not keep the others from ending."""
    first, second = make_batch(store, prompts(2), name="nightly"), make_batch(store, prompts(2))
    over = make_batch(store, prompts(2))
    work(store, over)
    done = promptmill(server_url, "cancel", "nightly", over, second, "--json")
    assert done.returncode == 2
    assert [orjson.loads(line)["id"] for line in done.stdout.splitlines()] == [first, second]
    assert f"promptmill: batch {over} is completed already" in done.stderr
    again = promptmill(server_url, "cancel", first)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == f"nightly ({first}) was cancelled already: 0 of 2 lines finished, 2 not run\n"
    assert promptmill(server_url, "cancel", first, "missing").returncode == 2
    assert promptmill(server_url, "retry", "missing").returncode == 2


def test_submit_refuses_a_lifetime_of_nothing(server_url: str, tmp_path: Path, promptmill: Promptmill) -> None:
    """And says what it wants."""
    source = write(tmp_path / "in.jsonl", prompts(1))
    for lifetime, said in (("0s", "above 0"), ("soon", "not a duration")):
        refused = promptmill(server_url, "submit", source, "--model", "m", "--expires-in", lifetime)
        assert (refused.returncode, said in refused.stderr) == (2, True)
