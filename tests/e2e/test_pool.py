"""A pool as users have it: a server, a submitter, and workers as processes, on the pocket model."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.batch import queue_name
from jobs.store.keys import worker_key
from jobs.store.store import Store
from submit import Client, FirstToken, LineFinished, PromptProgress, WorkerState
from submit.status.workers import QUIET_S
from tests import commands, waiting
from tests.mixed import audit, lines, records

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 90.0


def promptmill(url: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command on a pool's Redis to its end."""
    return commands.promptmill(*arguments, "--redis", url, check=check)


until = functools.partial(waiting.until, seconds=DEADLINE_S)


def write_lines(path: Path, jobs: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(job) + b"\n" for job in jobs))
    return path


def spoken(record: dict[str, Any]) -> list[tuple[str, str | None]]:
    """The texts and thoughts of a record, one pair per choice."""
    return [(choice["text"], choice.get("reasoning")) for choice in record.get("choices", [record])]


@pytest.fixture
def start_worker(server_url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers on the pocket model; all are gone at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"worker-{len(started)}.log").open("wb")
        command = [sys.executable, "-P", "-m", "worker", "--redis", server_url, "--model", MODEL, *flags]
        started.append(subprocess.Popen(command, stdout=log, stderr=log))
        log.close()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_submit_two_workers_and_follow(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A batch of mixed lines over two workers: each line has one record, and both workers had a part."""
    source = write_lines(tmp_path / "in.jsonl", list(lines(200)))
    batch = promptmill(server_url, "submit", str(source), "--model", MODEL, "--name", "nightly").stdout.strip()
    start_worker("--decode-concurrency", "8")
    start_worker("--decode-concurrency", "8")
    out, follow = tmp_path / "out.jsonl", tmp_path / "follow.jsonl"
    followed = promptmill(server_url, "results", batch, "--follow", "-o", str(follow), check=False)
    promptmill(server_url, "results", "nightly", "-o", str(out), check=False)
    assert followed.returncode == 1  # the lines that are too long fail
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []
    assert {record["index"] for record in records(follow)} == {record["index"] for record in records(out)}
    assert {record["error"]["code"] for record in records(tmp_path / "out.errors.jsonl")} == {"context_length_exceeded"}
    assert len({record["worker"] for record in records(out)}) == 2
    status = orjson.loads(promptmill(server_url, "status", batch, "--json").stdout)
    assert status["request_counts"] == {"total": 200, "completed": 196, "failed": 4}
    assert status["usage"]["completion_tokens"] == sum(r["usage"]["completion_tokens"] for r in records(out))


def test_seeded_lines_do_not_depend_on_company(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The same seeded lines in another order, with another concurrency and other neighbours, give the same texts."""
    jobs = [job for job in lines(120, seeded=True) if "id" in job]
    first = write_lines(tmp_path / "first.jsonl", jobs)
    others = list(lines(60, seed=99))
    for other in others:
        other.pop("id", None)
        other.pop("custom_id", None)
    second = write_lines(tmp_path / "second.jsonl", [*jobs[::-1], *others])
    texts = []
    for source, concurrency in ((first, "32"), (second, "5")):
        batch = promptmill(server_url, "submit", str(source), "--model", MODEL).stdout.strip()
        worker = start_worker("--burst", "--decode-concurrency", concurrency)
        out = tmp_path / f"{source.stem}.out.jsonl"
        promptmill(server_url, "results", batch, "--follow", "-o", str(out), check=False)
        assert worker.wait(DEADLINE_S) == 0
        wanted = {job["id"] for job in jobs}
        found = [record for record in records(out) if record["id"] in wanted]
        texts.append({record["id"]: spoken(record) for record in found})
    assert len(texts[0]) > 90
    assert texts[0] == texts[1]


def test_a_killed_workers_lines_are_finished_by_another(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """SIGKILL in the middle of a batch: the other worker takes over, and no line is lost or doubled."""
    jobs = [{"id": str(n), "prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True} for n in range(90)]
    source = write_lines(tmp_path / "in.jsonl", jobs)
    victim = start_worker("--decode-concurrency", "8")
    batch = promptmill(server_url, "submit", str(source), "--model", MODEL).stdout.strip()
    until(lambda: store.batch(batch).completed > 10, "some lines are done")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    start_worker()
    out = tmp_path / "out.jsonl"
    assert promptmill(server_url, "results", batch, "--follow", "-o", str(out)).returncode == 0
    promptmill(server_url, "results", batch, "-o", str(out))
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []
    assert {record["attempt"] for record in records(out)} == {1, 2}


def test_a_stopped_worker_hands_back_what_it_has_not_begun(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """SIGTERM: begun lines are finished, the rest is queued again at once, and the exit status is 0."""
    jobs = [{"id": str(n), "prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": True} for n in range(120)]
    source = write_lines(tmp_path / "in.jsonl", jobs)
    worker = start_worker("--decode-concurrency", "4")
    batch = promptmill(server_url, "submit", str(source), "--model", MODEL).stdout.strip()
    until(lambda: store.batch(batch).completed > 4, "some lines are done")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 0
    done = store.batch(batch).completed
    assert 4 < done < 120
    assert store.connection.keys("rq:wip:*") == []
    start_worker("--burst")
    out = tmp_path / "out.jsonl"
    promptmill(server_url, "results", batch, "--follow", "-o", str(tmp_path / "follow.jsonl"))
    promptmill(server_url, "results", batch, "-o", str(out))
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []
    assert {record["attempt"] for record in records(out)} == {1}


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_a_model_that_cannot_load_fails_its_lines_only(
    preload: str, store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The lines of a model that no worker could load for long fail with model_load_failed; the worker serves its other
    model."""
    missing = str(tmp_path / "no-such-model")
    jobs = [{"id": str(n), "prompt": "Once", "max_tokens": 3, "model": [MODEL, missing][n % 2]} for n in range(10)]
    source = write_lines(tmp_path / "in.jsonl", jobs)
    batch = promptmill(server_url, "submit", str(source)).stdout.strip()
    start_worker("--model", missing, preload, "--load-patience", "1")
    out = tmp_path / "out.jsonl"
    assert promptmill(server_url, "results", batch, "--follow", "-o", str(out), check=False).returncode == 1
    failed = records(tmp_path / "out.errors.jsonl")
    assert sorted(record["index"] for record in records(out)) == [0, 2, 4, 6, 8]
    assert sorted(record["index"] for record in failed) == [1, 3, 5, 7, 9]
    assert {record["error"]["code"] for record in failed} == {"model_load_failed"}
    assert sorted(record["id"] for record in failed) == ["1", "3", "5", "7", "9"]
    assert "does not exist" in failed[0]["error"]["message"]


def test_a_stop_does_not_wait_for_a_model_to_load(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """SIGTERM while a model is being loaded ends the worker at once, with status 0, and its shard is queued again."""
    slow = tmp_path / "slow"
    slow.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(MODEL) / name, slow)
    (slow / "model.safetensors").touch()
    os.mkfifo(slow / "generation_config.json")  # whoever opens it waits for a writer
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "Once", "model": str(slow)}])
    promptmill(server_url, "submit", str(source))
    worker = start_worker("--model", str(slow), "--no-preload")
    until(lambda: store.connection.keys("rq:wip:*"), "the shard is taken")
    state = until(lambda: store.connection.keys(worker_key("*")), "the worker shows its state")[0]
    until(lambda: b'"loading"' in (store.connection.get(state) or b""), "the model is being loaded")
    begun = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 0
    assert time.monotonic() - begun < 10
    assert store.connection.keys("rq:wip:*") == []
    assert store.take([queue_name(str(slow), "normal")]) is not None


def test_a_worker_without_a_loadable_model_says_so(server_url: str, tmp_path: Path) -> None:
    """Exit status 5 and a message, before any line is taken."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "--redis", server_url, "--model", str(tmp_path / "nothing")],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "the folder does not exist" in done.stderr


def test_rq_sees_the_pool(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """RQ's own command lists the worker and its queues."""
    start_worker("--name", "mini-2")
    until(lambda: store.connection.keys("rq:worker:mini-2.*"), "the worker is registered")
    environment = {**os.environ, "COLUMNS": "300"}
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "rq"), "info", "--url", server_url],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True, env=environment,
    )  # fmt: skip
    assert "mini-2." in shown.stdout
    assert f"promptmill:normal:{MODEL}" in shown.stdout


def test_workers_that_run_one_line_at_a_time(
    store: Store, server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A worker with a quantised KV cache and one with a draft model say why they run one line at a time, once; their
    records have the form of all others, and a draft model changes no text."""
    jobs = [job for job in lines(16, seeded=True) if "id" in job]
    source = write_lines(tmp_path / "in.jsonl", jobs)
    found = []
    for flags in ([], ["--draft-model", MODEL], ["--kv-bits", "8", "--kv-group-size", "32"]):
        batch = promptmill(server_url, "submit", str(source), "--model", MODEL).stdout.strip()
        assert start_worker("--burst", *flags).wait(DEADLINE_S) == 0
        out = tmp_path / f"out-{len(found)}.jsonl"
        promptmill(server_url, "results", batch, "-o", str(out), check=False)
        assert audit(source, out, out.with_suffix(".errors.jsonl")) == []
        found.append({record["id"]: record for record in records(out)})
    plain, drafted, quantised = found
    assert len(plain) > 8
    assert plain.keys() == drafted.keys() == quantised.keys()
    for line, record in plain.items():
        assert spoken(record) == spoken(drafted[line])
        assert record["usage"]["completion_tokens"] == drafted[line]["usage"]["completion_tokens"]
        assert record.keys() == drafted[line].keys() == quantised[line].keys()
        assert drafted[line]["stats"].keys() - record["stats"].keys() == {"accepted_draft_tokens"}
    assert sum(record["stats"]["accepted_draft_tokens"] for record in drafted.values()) > 100
    for number, reason in ((1, "--draft-model"), (2, "--kv-bits quantises its KV cache, which cannot be batched")):
        log = (tmp_path / f"worker-{number}.log").read_text().splitlines()
        (line,) = [line for line in log if "one row at a time" in line]
        assert f"{MODEL} runs one row at a time: {reason}" in line


def test_worker_whose_model_does_not_fit_its_flags(
    server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Heads that the group size does not divide: status 5, with the group size to choose."""
    assert start_worker("--burst", "--kv-bits", "8").wait(DEADLINE_S) == 5
    assert "--kv-group-size 64 does not divide: choose 32" in (tmp_path / "worker-0.log").read_text()


def test_a_batch_is_watched_while_a_worker_is_at_it(
    server_url: str, tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Each line has its prompt's end, one first token and its record, in this order; some are seen under way. The
    worker says what it has in memory, how fast it is, and what came from its prefix cache."""
    start_worker("--decode-concurrency", "24", "--memory-limit", "1GB", "--name", "mini")
    text = "Once upon a time there was a fox. " * 12
    jobs = [
        {"id": f"row-{n}", "prompt": f"{text} One day {n}", "max_tokens": 300, "ignore_eos": True} for n in range(24)
    ]
    told: list[Any] = []
    with Client(server_url) as client:
        batch = client.submit(jobs, model=MODEL)
        seen: list[WorkerState] = []

        def look(event: Any) -> None:
            told.append(event)
            seen.extend(client.workers())

        done = batch.wait(DEADLINE_S, on_prompt_progress=look, on_first_token=look, on_line=look, on_batch=told.append)
    assert told.pop() == done
    assert done.completed == 24
    for n in range(24):
        own = [event for event in told if event.index == n]
        *progress, first, line = own
        assert progress
        assert all(isinstance(event, PromptProgress) for event in progress)
        assert progress[-1].prefilled == progress[-1].prompt_tokens == line.record["usage"]["prompt_tokens"]
        assert isinstance(first, FirstToken)
        assert isinstance(line, LineFinished)
        assert {event.id for event in own} == {f"row-{n}"}
    # All rows take seconds, and what a worker publishes is looked at several times a second: one was seen.
    places = {(type(event), event.index): place for place, event in enumerate(told)}
    assert any(places[LineFinished, n] - places[FirstToken, n] > 1 for n in range(24))
    last = seen[-1]
    assert (last.models, last.memory_limit_bytes, last.version) == ((MODEL,), 2**30, version("promptmill"))
    assert last.loaded[0].name == MODEL
    assert 0 < last.loaded[0].size < (last.memory_bytes or 0)
    assert max(state.tokens_per_second or 0 for state in seen) > 0
    assert max(state.occupancy or 0 for state in seen) > 0.5
    assert (last.cached_share or 0) > 0.5
    assert max(state.lines_in_flight for state in seen) >= 4


def test_workers_are_listed_and_those_that_were_killed_fall_silent(
    store: Store, server_url: str, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """`promptmill workers`: a row for each, and a dead one is said to be silent, not gone."""
    start_worker("--name", "mini")
    victim = start_worker("--name", "studio")
    until(lambda: promptmill(server_url, "workers").stdout.count(" model 4 MiB  ") == 2, "both are ready")
    header, *rows = promptmill(server_url, "workers").stdout.splitlines()
    assert header.split()[:4] == ["worker", "state", "models", "memory"]
    assert [row.partition(".")[0] for row in rows] == ["mini", "studio"]
    assert all(row.split()[1] == "idle" for row in rows)
    victim.kill()
    victim.wait()
    # As if a while had passed: what it published goes by itself, and its last sign of life is older.
    name = f"studio.{victim.pid}"
    assert 0 < store.connection.ttl(worker_key(name)) <= 6
    store.connection.delete(worker_key(name))
    past = datetime.now(UTC) - timedelta(seconds=QUIET_S)
    store.connection.hset(f"rq:worker:{name}", "last_heartbeat", past.isoformat())

    def states() -> dict[str, str]:
        found = orjson.loads(promptmill(server_url, "workers", "--json").stdout)
        return {worker["name"].partition(".")[0]: worker["state"] for worker in found}

    until(lambda: states() == {"mini": "idle", "studio": "silent"}, "the dead one is silent")
    assert "silent for " in promptmill(server_url, "workers").stdout
