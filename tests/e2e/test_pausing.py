"""A pool that is paused, resumed and re-ordered while it works, on the pocket model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.batch import queue_name
from jobs.store.store import Store
from submit.status.workers import Workers
from tests.e2e.test_pool import MODEL, promptmill, start_worker, until, write_lines

__all__ = ["start_worker"]

LINES = 100
"""Two shards: one is under way when the other is looked for in its queue."""

Worker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def submit(server_url: str, tmp_path: Path) -> Callable[..., str]:
    """Submit so many lines of so many tokens; the batch's id."""

    def submit(count: int, tokens: int, *flags: str) -> str:
        jobs: list[dict[str, Any]] = [
            {"id": f"row-{number}", "prompt": f"{number}: Once upon a time", "max_tokens": tokens, "ignore_eos": True}
            for number in range(count)
        ]
        source = write_lines(tmp_path / "in.jsonl", jobs)
        return promptmill(server_url, "submit", str(source), "--model", MODEL, *flags).stdout.strip()

    return submit


@pytest.fixture
def in_flight(store: Store) -> Callable[[], dict[str, int]]:
    """How many lines of each batch the workers have under way, as they say."""
    workers = Workers(store.connection)

    def counts() -> dict[str, int]:
        lines = [line.batch_id for state in workers.read() for line in state.in_flight]
        return {batch: lines.count(batch) for batch in lines}

    return counts


def attempts(url: str, batch: str, out: Path) -> list[int]:
    promptmill(url, "results", batch, "-o", str(out))
    return [orjson.loads(line)["attempt"] for line in out.read_bytes().splitlines()]


def test_a_batch_is_paused_and_goes_on(
    store: Store, server_url: str, tmp_path: Path, start_worker: Worker, submit: Callable[..., str],
    in_flight: Callable[[], dict[str, int]],
) -> None:  # fmt: skip
    """Lines under way are finished, nothing else of it begins, others run; resumed, each line is tried once."""
    start_worker("--decode-concurrency", "4")
    held = submit(LINES, 40)
    until(lambda: store.batch(held).completed > 4, "it is under way")
    said = promptmill(server_url, "pause", held)
    assert (said.stdout, said.stderr) == ("", f"batch {held} is paused\n")
    other = submit(4, 5, "--priority", "low")
    until(lambda: store.batch(other).done, "the other batch is done")
    until(lambda: not in_flight(), "nothing is under way")
    stopped = store.batch(held)
    assert stopped.paused
    assert stopped.finished < LINES
    status = promptmill(server_url, "status", held).stdout
    assert f"in_progress, paused: `promptmill resume {held}` lets it go on" in status
    assert store.batch(held).finished == stopped.finished
    promptmill(server_url, "resume", held)
    until(lambda: store.batch(held).done, "it is done")
    assert attempts(server_url, held, tmp_path / "out.jsonl") == [1] * LINES


@pytest.mark.parametrize("what", ["worker", "pool", "rq"])
def test_a_worker_and_the_pool_are_paused(
    store: Store, server_url: str, tmp_path: Path, start_worker: Worker, submit: Callable[..., str],
    in_flight: Callable[[], dict[str, int]], what: str,
) -> None:  # fmt: skip
    """A paused worker finishes what it has begun and hands back the rest; RQ's own command does the same."""
    start_worker("--decode-concurrency", "4", "--name", "mini")
    batch = submit(LINES, 40)
    until(lambda: store.batch(batch).completed > 4, "it is under way")
    flags = ("--worker", "mini") if what == "worker" else ()
    if what == "rq":
        run_rq("suspend", server_url)
    else:
        promptmill(server_url, "pause", *flags)
    until(lambda: not in_flight(), "nothing is under way")
    # No shard is held any more: nothing can be generated.
    until(lambda: not any(store.connection.zcard(key) for key in store.connection.scan_iter("rq:wip:*")), "all is back")
    stopped = store.batch(batch)
    assert stopped.finished < LINES
    assert store.connection.llen(f"rq:queue:{queue_name(MODEL, 'normal')}") > 0
    if what == "rq":
        run_rq("resume", server_url)
    else:
        said = promptmill(server_url, "resume", *flags).stderr
        assert said == ("worker mini goes on\n" if what == "worker" else "the pool goes on\n")
    until(lambda: store.batch(batch).done, "it is done")
    assert attempts(server_url, batch, tmp_path / "out.jsonl") == [1] * LINES


def run_rq(command: str, url: str) -> None:
    subprocess.run([Path(sys.executable).with_name("rq"), command, "--url", url], check=True, capture_output=True)


def test_a_high_batch_begins_on_a_busy_worker(
    store: Store, server_url: str, start_worker: Worker, submit: Callable[..., str]
) -> None:
    """It is done while the one before it has hardly moved; a running batch made high overtakes as well."""
    start_worker("--decode-concurrency", "2")
    busy = submit(150, 40)
    until(lambda: store.batch(busy).completed > 2, "it is under way")
    before = store.batch(busy).completed
    urgent = submit(4, 10, "--priority", "high")
    until(lambda: store.batch(urgent).done, "the high batch is done")
    assert store.batch(busy).completed - before < 50
    waiting = submit(4, 10, "--priority", "low")
    said = promptmill(server_url, "priority", waiting, "high").stderr
    assert said == f"batch {waiting} has priority high now, it was low\n"
    until(lambda: store.batch(waiting).done, "the one made high is done")
    assert not store.batch(busy).done


def test_submit_at_and_in(store: Store, server_url: str, start_worker: Worker, submit: Callable[..., str]) -> None:
    """The worker itself begins them; until then `status` says when."""
    start_worker()
    soon = submit(2, 4, "--in", "2s")
    later = submit(2, 4, "--at", (datetime.now() + timedelta(hours=3)).strftime("%H:%M"))
    shown = promptmill(server_url, "status", later).stdout
    assert "in_progress, waiting for its time" in shown
    assert "(in 2h" in shown
    until(lambda: store.batch(soon).done, "its time has come, and it is done")
    batch = store.batch(soon)
    assert batch.times["started"] - batch.times["created"] >= 2
    assert store.batch(later).finished == 0
    refused = promptmill(server_url, "submit", "-", "--model", MODEL, "--at", "2020-01-01 02:00", check=False)
    assert (refused.returncode, refused.stderr) == (2, "promptmill: --at: '2020-01-01 02:00' has passed already\n")


def test_purge_and_keep(store: Store, server_url: str, start_worker: Worker, submit: Callable[..., str]) -> None:
    """By name, by age, by itself; a batch that runs is refused with the remedy."""
    first, second, short = submit(2, 4, "--name", "one"), submit(2, 4), submit(2, 4, "--keep", "1s")
    refused = promptmill(server_url, "purge", "one", check=False)
    assert refused.returncode == 2
    assert f"`promptmill cancel {first}`" in refused.stderr
    start_worker()
    until(lambda: store.batch(first).done and store.batch(second).done, "they are done")
    assert "in Redis" in promptmill(server_url, "status", "one").stdout
    said = promptmill(server_url, "purge", "one", "--json")
    assert said.stdout == f'{{"id":"{first}","purged":true}}\n'
    assert said.stderr.startswith(f"one ({first}) is removed: 2 lines, ")
    until(lambda: short not in [batch.id for batch in store.batches()], "it is removed by itself")
    begun = time.time()
    promptmill(server_url, "purge", "--older-than", "0")
    assert [batch.id for batch in store.batches() if (batch.ended_at or begun) < begun] == []
