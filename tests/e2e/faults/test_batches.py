"""A batch is cancelled, expires, or is retried by a command that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from jobs.batch import queue_name
from jobs.store.keys import BatchKeys
from tests.e2e.faults.pool import MODEL, Pool, Submitted, job_lines
from tests.e2e.faults.table import Case

LINES = 300
STOPPED_WITHIN_S = 10.0


def some_done(pool: Pool, batch: Submitted) -> None:
    pool.until(lambda: pool.store.batch(batch.id).finished > 20, "some lines are done")


@pytest.mark.parametrize("how", ["cancelled", pytest.param("expired", marks=pytest.mark.faults)])
def test_batch_ends_before_its_time(how: str, pool: Pool, case: Case) -> None:
    """Finished lines are kept, each of the others has an error record, and the workers stop at once; retried, the lines
    that were not run are."""
    workers = pool.worker(), pool.worker()
    pool.ready(*workers)
    batch = pool.submit(job_lines(LINES, max_tokens=60), *(["--expires-in", "3s"] if how == "expired" else []))
    some_done(pool, batch)
    if how == "cancelled":
        pool.command("cancel", batch.id)
    pool.wait(batch)
    over = time.monotonic()
    for worker in workers:
        pool.idle(worker)
    assert time.monotonic() - over < STOPPED_WITHIN_S
    found = case.check(batch, end_status=how, any_may=how)
    assert 0 < found.failed < LINES
    case.note(f"batch {how}", "mid batch", found)
    pool.command("retry", batch.id)
    pool.wait(batch)
    pool.settled()
    case.note(f"batch {how}, then retried", "mid batch", case.check(batch))


@pytest.mark.faults
def test_retry_is_killed(pool: Pool, case: Case) -> None:
    """Killed at whatever step, it can be run again: no line is lost or doubled."""
    batch = pool.submit(job_lines(20 * LINES, max_tokens=2))
    pool.command("cancel", batch.id)
    command = [sys.executable, "-P", "-m", "submit.cli", "retry", batch.id, "--redis", pool.server.url]
    pending = BatchKeys(batch.id).pending(queue_name(MODEL, "normal"))
    for shards in (5, 30, 60):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            pool.until(
                lambda most=shards: pool.store.connection.zcard(pending) >= most, f"{shards} shards are reopened"
            )
            process.send_signal(signal.SIGKILL)
    pool.command("retry", batch.id)
    pool.ready(pool.worker("--decode-concurrency", "256"))
    pool.wait(batch)
    pool.settled()
    case.note("kill -9 of retry", "between two steps", case.check(batch, most_regenerated=0), most=0)
