"""A worker that is asked to stop: within its drain limit, at once, and while Redis is away."""

from __future__ import annotations

import signal
import time

import pytest

from tests.e2e.faults.pool import Pool, Worker, job_lines
from tests.e2e.faults.table import Case

LINES = 40
STEPS = 600
"""So many tokens take a line 3 s and more."""
AT_ONCE_S = 15.0


def at_work(pool: Pool, *flags: str) -> Worker:
    """A worker in the middle of its first lines."""
    worker = pool.worker(*flags)
    pool.ready(worker)
    return worker


def begun(pool: Pool, worker: Worker) -> None:
    """Wait until all rows of a worker are busy."""
    pool.until(
        lambda: sum(event.event == "begin" and event.pid == worker.pid for event in pool.events()) >= pool.rows,
        "its rows are busy",
    )


@pytest.mark.faults
@pytest.mark.parametrize("how", ["drain limit", "second signal"])
def test_stop_in_the_middle_of_lines(how: str, pool: Pool, case: Case) -> None:
    """Lines that cannot end in time go back as well; no attempt is counted, and the exit status is 0."""
    victim = at_work(pool, "--drain", "0.5" if how == "drain limit" else "60")
    batch = pool.submit(job_lines(LINES, max_tokens=STEPS))
    begun(pool, victim)
    asked = time.monotonic()
    victim.signal(signal.SIGTERM)
    if how == "second signal":
        pool.until(lambda: "draining" in str(pool.command("status", batch.id, "--json").stdout), "it drains")
        victim.signal(signal.SIGTERM)
    assert pool.ended(victim) == 0
    assert time.monotonic() - asked < AT_ONCE_S
    at_work(pool)
    pool.wait(batch)
    pool.settled()
    case.note(f"term, {how}", "mid line", case.check(batch, most_regenerated=pool.rows), most=pool.rows)


@pytest.mark.faults
@pytest.mark.parametrize("away", ["frozen", "gone"])
def test_stop_while_redis_is_away(away: str, pool: Pool, case: Case) -> None:
    """The worker ends all the same, cleanly; its shards come back by their leases."""
    victim = at_work(pool, "--drain", "5", "--foreign")
    batch = pool.submit(job_lines(LINES, max_tokens=STEPS))
    begun(pool, victim)
    if away == "gone":
        pool.server.kill()
    else:
        pool.server.signal(signal.SIGSTOP)
    victim.signal(signal.SIGTERM)
    assert pool.ended(victim) == 0
    if away == "gone":
        pool.server.start()
    else:
        pool.server.signal(signal.SIGCONT)
    at_work(pool)
    pool.wait(batch)
    pool.settled()
    # What ended while Redis was away had nowhere to go.
    most = 2 * pool.rows
    case.note(f"term, Redis {away}", "mid line", case.check(batch, most_regenerated=most), most=most)
