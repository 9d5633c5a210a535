"""A pool whose submitter is upgraded first, and models that cannot be loaded for a while: as processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.store.keys import worker_key
from jobs.store.retry import retry
from jobs.store.store import Store
from submit.results.read import ordered_records
from tests.pool import make_batch
from tests.waiting import until

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
NEW, OLD = "worker", "tests.older_worker"

StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(server_url: str, tmp_path: Path) -> Iterator[StartWorker]:
    """``start_worker(module, *flags)``: a worker process on the pocket model; all are gone at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *flags: str, model: str = MODEL) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, "--redis", server_url, "--model", model, *flags]
        with (tmp_path / f"worker-{len(started)}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def ready(store: Store, count: int) -> None:
    """Wait until so many workers are ready for work."""

    def states() -> list[Any]:
        found = (store.connection.get(key) for key in store.connection.keys(worker_key("*")))
        return [raw for raw in found if raw and orjson.loads(raw)["state"] == "idle"]

    until(lambda: len(states()) == count, f"{count} workers are ready")


def lines(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": f"row-{number}", "prompt": "Once", "max_tokens": 3, **fields} for number in range(count)]


def finished(store: Store, batch: str) -> list[dict[str, Any]]:
    """The records of a batch, once it is done."""
    until(lambda: store.batch(batch).done, "the batch is done")
    return [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]


@pytest.mark.parametrize("where", ["defaults", "lines"])
def test_a_field_that_an_older_worker_does_not_know_is_left_to_a_newer_one(
    where: str, store: Store, start_worker: StartWorker
) -> None:
    """A pool upgraded submitter first: each line once, on the worker that knows the field, and the older worker runs
    what it knows meanwhile."""
    old, new = start_worker(OLD, "--name", "old"), start_worker(NEW, "--name", "new")
    ready(store, 2)
    jobs = lines(150) if where == "defaults" else [job | {"min_p": 0.2} for job in lines(150)]
    newer = make_batch(store, jobs, defaults={"model": MODEL, **({"min_p": 0.2} if where == "defaults" else {})})
    known = make_batch(store, lines(150), defaults={"model": MODEL})
    records = finished(store, newer)
    assert [record["id"] for record in records] == [f"row-{number}" for number in range(150)]
    assert {record["sampling"]["min_p"] for record in records} == {0.2}
    assert {(record["worker"], record["attempt"]) for record in records} == {(f"new.{new.pid}", 1)}
    assert {record["worker"] for record in finished(store, known)} <= {f"new.{new.pid}", f"old.{old.pid}"}
    assert store.connection.keys("rq:job:*") == []


@pytest.mark.parametrize("where", ["defaults", "lines"])
def test_a_field_that_no_live_worker_knows_fails_its_lines_until_one_is_upgraded(
    where: str, store: Store, start_worker: StartWorker
) -> None:
    """The error records say so and keep the users' ids; lines that the worker knows are run; `retry` runs the others
    once there is a newer worker."""
    old = start_worker(OLD, "--name", "old")
    jobs, given = [{"id": "plain", "prompt": "Once", "max_tokens": 3}, *lines(9)], {"min_p": 0.2}
    if where == "lines":
        jobs = [jobs[0], *(job | given for job in jobs[1:])]
    batch = make_batch(store, jobs, defaults={"model": MODEL, **(given if where == "defaults" else {})})
    failed = [record for record in finished(store, batch) if "error" in record]
    assert [record["id"] for record in failed[-9:]] == [f"row-{number}" for number in range(9)]
    assert len(failed) == (10 if where == "defaults" else 9)
    assert {record["error"]["param"] for record in failed} == {"min_p"}
    assert f"no live worker takes it (old.{old.pid}): upgrade" in failed[0]["error"]["message"]
    assert f"`promptmill retry {batch}`" in failed[0]["error"]["message"]
    old.kill()
    old.wait()
    start_worker(NEW)
    assert retry(store, batch) == len(failed)
    records = finished(store, batch)
    assert [record["id"] for record in records if "error" not in record] == ["plain", *(f"row-{n}" for n in range(9))]


def test_a_load_that_fails_twice_and_then_works_loses_no_line(
    store: Store, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The only worker of a model that cannot be loaded for a while: its lines wait, and not one gets an error
    record."""
    model = tmp_path / "model"
    worker = start_worker(NEW, "--model", str(model), "--load-patience", "30", "--no-preload")
    batch = make_batch(store, lines(200), defaults={"model": str(model)})
    log = tmp_path / "worker-0.log"
    until(lambda: log.read_text().count("cannot be used now: no model at") >= 2, "it failed twice")
    assert store.batch(batch).finished == 0
    shutil.copytree(MODEL, model)
    records = finished(store, batch)
    assert store.batch(batch).failed == 0
    assert {record["attempt"] for record in records} == {1}
    assert worker.poll() is None


def test_a_model_that_never_loads_fails_its_lines_after_the_bound_and_retry_runs_them(
    store: Store, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Not before it was tried several times over that time; once it can be loaded, `retry` runs all of them."""
    model = tmp_path / "model"
    start_worker(NEW, "--model", str(model), "--load-patience", "2")
    batch = make_batch(store, lines(200), defaults={"model": str(model)})
    errors = [record["error"] for record in finished(store, batch)]
    assert {(error["code"], error["param"]) for error in errors} == {("model_load_failed", "model")}
    assert "the folder does not exist" in errors[0]["message"]
    assert "tried 3 times or more" in errors[0]["message"]
    shutil.copytree(MODEL, model)
    assert retry(store, batch) == 200
    assert all("error" not in record for record in finished(store, batch))


def test_a_burst_worker_stays_for_a_model_that_may_load_yet(
    store: Store, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its queue is not empty: the worker tries again until the lines have ended, and then ends with status 0."""
    worker = start_worker(NEW, "--model", str(tmp_path / "model"), "--load-patience", "1", "--burst", "--no-preload")
    batch = make_batch(store, lines(3), defaults={"model": str(tmp_path / "model")})
    assert worker.wait(60) == 0
    assert store.batch(batch).failed == 3


def test_a_worker_that_cannot_load_a_model_leaves_its_lines_to_one_that_can(
    store: Store, start_worker: StartWorker, tmp_path: Path
) -> None:
    """However often it fails: nothing is failed or charged while another live worker can load it."""
    poor = start_worker(NEW, "--name", "poor", "--memory-limit", "100K", "--no-preload", "--load-patience", "0")
    able = start_worker(NEW, "--name", "able")
    ready(store, 2)
    batch = make_batch(store, lines(300), defaults={"model": MODEL})
    records = finished(store, batch)
    assert {(record.get("worker"), record.get("attempt")) for record in records} <= {(f"able.{able.pid}", 1)}
    assert "weights, and the memory limit is" in (tmp_path / "worker-0.log").read_text()
    assert poor.poll() is None
