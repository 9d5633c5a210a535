"""A worker is killed, asked to stop or frozen at each phase of a shard's way."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.faults.auditor import in_flight, recovery_s
from tests.e2e.faults.pool import Pool, job_lines
from tests.e2e.faults.stub import PHASES
from tests.e2e.faults.table import Case

RECOVERED_WITHIN_S = 60.0
SAME_HOST_S = 15.0
LINES = 300
REPRESENTATIVE = {("kill", "dequeued"), ("kill", "mid_shard"), ("term", "begun"), ("stop", "written")}


def cases() -> Iterator[object]:
    """Each fault at each phase; those that are in no quick run are marked."""
    for fault in ("kill", "term", "stop"):
        for phase in PHASES:
            marks = [] if (fault, phase) in REPRESENTATIVE else [pytest.mark.faults]
            yield pytest.param(fault, phase, marks=marks)


@pytest.mark.parametrize(("fault", "phase"), list(cases()))
def test_worker_fault(fault: str, phase: str, pool: Pool, case: Case) -> None:
    """The other worker takes over: each line has one record, no stale one among them, and at most what was in flight is
    generated again. One that is asked to stop ends with status 0 and nothing is generated again; one that wakes up
    after its leases were taken over goes on as if it were new."""
    victim = pool.worker("--foreign", "--fault", f"{phase}={fault}")
    heir = pool.worker()
    pool.ready(victim, heir)
    batch = pool.submit(job_lines(LINES))
    harm = pool.fault(victim)
    if fault == "kill":
        assert pool.ended(victim) == -signal.SIGKILL
    elif fault == "term":
        assert pool.ended(victim) == 0
    else:
        pool.until(lambda: recovery_s(pool.events(), victim.pid, harm.at), "the shards were taken over")
        victim.signal(signal.SIGCONT)
    pool.wait(batch)
    if fault == "stop":
        pool.idle(victim)
    pool.settled()
    seen = pool.events()
    most = 0 if fault == "term" else in_flight(seen, victim.pid, harm.at)
    found = case.check(batch, most_regenerated=most)
    recovery = recovery_s(seen, victim.pid, harm.at)
    case.note(fault, phase, found, most=most, recovery=recovery)
    if fault != "term":
        assert recovery is not None
        assert recovery < RECOVERED_WITHIN_S


@pytest.mark.faults
def test_killed_worker_of_the_same_host(pool: Pool, case: Case) -> None:
    """Nobody waits for the lease of a process that is seen to be gone."""
    victim, heir = pool.worker("--fault", "mid_shard=kill"), pool.worker()
    pool.ready(victim, heir)
    batch = pool.submit(job_lines(LINES))
    harm = pool.fault(victim)
    assert pool.ended(victim) == -signal.SIGKILL
    pool.wait(batch)
    pool.settled()
    seen = pool.events()
    most, recovery = in_flight(seen, victim.pid, harm.at), recovery_s(seen, victim.pid, harm.at)
    case.note("kill, same host", "mid_shard", case.check(batch, most_regenerated=most), most=most, recovery=recovery)
    assert recovery is not None
    assert recovery < SAME_HOST_S
