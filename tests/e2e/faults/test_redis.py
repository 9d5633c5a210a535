"""Redis is restarted, cut off, full, emptied, or away; its clients' clocks are wrong."""

from __future__ import annotations

import signal
import time

import pytest

from tests.e2e.faults.auditor import begun_since, recovery_s
from tests.e2e.faults.pool import UNSAVED_S, Pool, Submitted, Worker, job_lines
from tests.e2e.faults.table import Case
from tests.proxy import Proxy

LINES = 300
SHORT_OUTAGE_S, LONG_OUTAGE_S = 5.0, 60.0


def two_at_work(pool: Pool, *flags: str) -> tuple[Worker, Worker, Submitted]:
    """Two workers in the middle of a batch; ``flags`` are the second's."""
    first, second = pool.worker(), pool.worker(*flags)
    pool.ready(first, second)
    batch = pool.submit(job_lines(LINES, max_tokens=20))
    some_done(pool, batch, 20)
    return first, second, batch


def some_done(pool: Pool, batch: Submitted, lines: int) -> None:
    """Wait until so many lines of a batch have records."""
    pool.until(lambda: pool.store.batch(batch.id).finished >= lines, f"{lines} lines are done")


def pass_time(seconds: float) -> None:
    """The length of a fault: nothing can be polled for while it lasts."""
    time.sleep(seconds)


def finish(pool: Pool, case: Case, batch: Submitted, fault: str, *, most: int = 0) -> None:
    """Nobody died, so nothing may be generated again; both workers are alive."""
    pool.wait(batch, 180)
    pool.settled()
    found = case.check(batch, most_regenerated=most)
    case.note(fault, "mid batch", found, most=most)
    assert all(worker.alive for worker in pool.workers)


def test_server_killed_and_restarted(pool: Pool, case: Case) -> None:
    """What was stored is in the AOF: both workers reconnect, nothing is lost, and next to nothing generated again."""
    _, _, batch = two_at_work(pool)
    pool.server.kill()
    killed = time.monotonic()
    pass_time(1.0)
    pool.server.start()
    pool.wait(batch)
    most = begun_since(pool.events(), killed - UNSAVED_S, killed)
    finish(pool, case, batch, "Redis: kill -9, restart", most=most)


@pytest.mark.faults
def test_server_forgets_an_attempt(pool: Pool, case: Case) -> None:
    """After a power cut Redis may know nothing of a shard that was taken: it is taken again, and of the two workers
    that have it, only the later may write."""
    batch = pool.submit(job_lines(LINES, max_tokens=20))
    pass_time(UNSAVED_S)
    pool.server.keep(kept := pool.folder / "kept")
    victim = pool.worker("--fault", "begun=stop")
    harm = pool.fault(victim)
    pool.server.kill()
    pool.server.restore(kept)
    pool.server.start()
    pool.worker()
    pool.until(lambda: recovery_s(pool.events(), victim.pid, harm.at), "its shard is taken again")
    victim.signal(signal.SIGCONT)
    finish(pool, case, batch, "Redis: power cut, an attempt forgotten", most=2 * pool.rows)


@pytest.mark.faults
@pytest.mark.parametrize("how", ["frozen", "gone"])
def test_outage(how: str, pool: Pool, case: Case) -> None:
    """The server is away for longer than any lease: those that live renew theirs before anybody takes them over."""
    away = LONG_OUTAGE_S if pool.lease > SHORT_OUTAGE_S else SHORT_OUTAGE_S
    _, _, batch = two_at_work(pool)
    if how == "frozen":
        pool.server.signal(signal.SIGSTOP)
        pass_time(away)
        pool.server.signal(signal.SIGCONT)
    else:
        pool.server.kill()
        pass_time(away)
        pool.server.start()
    finish(pool, case, batch, f"Redis: {how} for {away:.0f} s")


@pytest.mark.faults
def test_connections_are_closed(pool: Pool, case: Case) -> None:
    """CLIENT KILL, again and again."""
    _, _, batch = two_at_work(pool)
    for lines in range(40, 240, 40):
        some_done(pool, batch, lines)
        with pool.server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    finish(pool, case, batch, "Redis: CLIENT KILL, 5 times")


@pytest.mark.faults
def test_replies_are_lost(pool: Pool, case: Case) -> None:
    """Connections break between a command and its reply: it was carried out, and is sent again."""
    proxy = Proxy(pool.server.url)
    try:
        worker = pool.worker(url=proxy.url)
        pool.ready(worker)
        batch = pool.submit(job_lines(LINES))
        for lines in range(10, 290, 10):
            some_done(pool, batch, lines)
            proxy.lose_next_reply()
        finish(pool, case, batch, f"Redis: {proxy.lost} replies lost")
        assert proxy.lost > 10
    finally:
        proxy.close()


@pytest.mark.faults
def test_out_of_memory(pool: Pool, case: Case) -> None:
    """A full server refuses writes: records wait until there is room again."""
    _, _, batch = two_at_work(pool)
    with pool.server.client() as client:
        client.config_set("maxmemory", "1mb")
        pass_time(3.0)
        client.config_set("maxmemory", "0")
    finish(pool, case, batch, "Redis: out of memory for 3 s")


def test_flushed(pool: Pool, case: Case) -> None:
    """FLUSHALL takes the batch away, which is said; the workers live and serve the next one."""
    _, _, batch = two_at_work(pool)
    with pool.server.client() as client:
        client.flushall()
    gone = pool.command("status", batch.id, check=False)
    assert gone.returncode != 0
    assert "no batch" in gone.stderr
    again = pool.submit(job_lines(LINES, prompt="again"))
    finish(pool, case, again, "Redis: FLUSHALL, next batch")


@pytest.mark.faults
@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("dies", [False, True], ids=["both-live", "one-dies"])
def test_clock_is_wrong(hours: int, dies: bool, pool: Pool, case: Case) -> None:
    """A worker whose clock is an hour off takes nothing from those that live, and loses nothing when it dies."""
    kill = ["--fault", "mid_shard=kill"] if dies else []
    first, second = pool.worker(), pool.worker("--foreign", "--skew", str(hours * 3600), *kill)
    pool.ready(first, second)
    batch = pool.submit(job_lines(LINES, max_tokens=20))
    pool.wait(batch)
    pool.settled()
    most = pool.rows if dies else 0
    found = case.check(batch, most_regenerated=2 * most)
    case.note(f"clock {hours:+d} h" + (", kill" if dies else ""), "mid batch", found, most=2 * most)
    assert first.alive
    assert second.alive is not dies
