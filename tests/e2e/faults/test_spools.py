"""Redis is lost, or away while a worker dies: what was finished is on the workers' own disks."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.faults.auditor import ON_THE_WAY_S, Audit, in_flight
from tests.e2e.faults.engine import answer
from tests.e2e.faults.pool import Pool, Submitted, Worker, job_lines
from tests.e2e.faults.table import Case
from tests.mixed import records

LINES = 300


def at_work(pool: Pool, *flags: str, lines: int = LINES) -> tuple[Worker, Submitted]:
    """A worker in the middle of a batch."""
    worker = pool.worker(*flags)
    pool.ready(worker)
    batch = pool.submit(job_lines(lines, max_tokens=20))
    pool.until(lambda: len(ended(pool, batch)) > 30, "some lines are done")
    return worker, batch


def ended(pool: Pool, batch: Submitted) -> set[int]:
    """The lines that were generated to their end, but for those that were a moment ago."""
    seen = pool.events()
    last = max((event.at for event in seen), default=0.0)
    over = (event for event in seen if event.event == "end" and event.at < last - ON_THE_WAY_S)
    return {event.index for event in over if event.batch == batch.id}


def collected(pool: Pool, batch: Submitted, wanted: set[int]) -> Audit:
    """What ``results --from-spool`` gives: each finished line once, with its own text."""
    out = pool.folder / "collected.jsonl"
    done = pool.command("results", batch.id, "--from-spool", str(pool.spool()), "-o", str(out), check=False)
    assert "Traceback" not in done.stderr, done.stderr
    found = records(out)
    indices = [record["index"] for record in found]
    assert indices == sorted(set(indices))
    assert wanted <= set(indices), f"{len(wanted - set(indices))} finished lines are not in the spool"
    for record in found:
        line = batch.lines[record["index"]]
        assert (record["id"], record["text"]) == (line["id"], answer(line["prompt"], line["max_tokens"]))
    return Audit(lines=len(wanted), records=len(wanted & set(indices)))


@pytest.mark.parametrize("how", ["FLUSHALL", "gone for good"])
def test_redis_is_lost(how: str, pool: Pool, case: Case) -> None:
    """Every finished record is collected from the spool; the worker ends cleanly when it is asked to."""
    worker, batch = at_work(pool)
    if how == "FLUSHALL":
        with pool.server.client() as client:
            client.flushall()
        pool.idle(worker)
    else:
        pool.server.kill()
    worker.signal(signal.SIGTERM)
    assert pool.ended(worker) == 0
    case.note(f"Redis: {how}, from the spool", "mid batch", collected(pool, batch, ended(pool, batch)))


@pytest.mark.faults
def test_torn_spool(pool: Pool, case: Case) -> None:
    """A spool that ends in the middle of a line gives all lines before it, and says that one is damaged."""
    worker, batch = at_work(pool)
    worker.signal(signal.SIGKILL)
    pool.ended(worker)
    (file,) = pool.spool().glob(f"{batch.id}/*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rstrip(b"\n").rfind(b"\n") + 20])
    out = pool.folder / "torn.jsonl"
    done = pool.command("results", batch.id, "--from-spool", str(pool.spool()), "-o", str(out), check=False)
    assert "damaged" in done.stderr
    assert len(records(out)) == len(whole.splitlines()) - 2  # the header and the torn one
    case.note("torn line in the spool", "kill -9", Audit(lines=len(records(out)), records=len(records(out))))


@pytest.mark.faults
def test_spool_disk_is_full(pool: Pool, case: Case) -> None:
    """The worker says so once and goes on without: Redis has the records."""
    worker, batch = at_work(pool, "--file-limit", str(150 * 1024))
    pool.wait(batch)
    pool.settled()
    assert worker.said.read_text().count("goes on without") == 1
    case.note("disk full", "while the spool is written", case.check(batch, most_regenerated=0), most=0)
    assert worker.alive


@pytest.mark.faults
def test_worker_dies_in_an_outage(pool: Pool, case: Case) -> None:
    """What it finished while Redis was away is delivered by the next worker of its host: only what was in flight is
    generated again."""
    worker, batch = at_work(pool)
    pool.server.kill()
    before = len(ended(pool, batch))
    pool.until(lambda: len(ended(pool, batch)) > before + pool.rows, "lines end in the outage")
    worker.signal(signal.SIGKILL)
    pool.ended(worker)
    seen = pool.events()
    most = in_flight(seen, worker.pid, max(event.at for event in seen))
    pool.server.start()
    pool.ready(pool.worker())
    pool.wait(batch)
    pool.settled()
    case.note("Redis away, then kill -9", "mid batch", case.check(batch, most_regenerated=most), most=most)
