"""Lines that do harm: to the process, to the engine, to the memory."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.faults.auditor import Audit
from tests.e2e.faults.pool import Pool, Submitted, Worker, job_lines
from tests.e2e.faults.table import Case

LINES = 120
HARMFUL = 60
MOST_ATTEMPTS = 3


def through(pool: Pool, harm: str, count: int = 1) -> tuple[Submitted, int]:
    """Run a batch with ``count`` harmful lines in its middle, dead workers being started again; how many died."""
    lines = job_lines(LINES)
    for line in lines[HARMFUL : HARMFUL + count]:
        line["prompt"] = f"{harm} {line['id']}"
    deaths = 0
    pool.ready(pool.worker())
    batch = pool.submit(lines)

    def over() -> bool:
        nonlocal deaths
        if not pool.workers[-1].alive:
            deaths += 1
            pool.worker()
        return pool.done(batch)

    pool.until(over, f"{batch.id} is done", 60)
    pool.settled()
    return batch, deaths


def begun(pool: Pool, index: int) -> int:
    """How often a line was begun."""
    return sum(event.event == "begin" and event.index == index for event in pool.events())


def check(pool: Pool, case: Case, batch: Submitted, deaths: int, codes: dict[str, set[str]]) -> Audit:
    """The harmful lines failed, their neighbours did not, and little was generated again."""
    most = pool.rows * deaths + MOST_ATTEMPTS - 1  # what fails by itself is tried again
    return case.check(batch, most_regenerated=most, codes=codes)


@pytest.mark.parametrize(
    ("harm", "count"),
    [
        ("poison", 1),
        pytest.param("poison", 2, marks=pytest.mark.faults),
        pytest.param("sick", 1, marks=pytest.mark.faults),
    ],
)
def test_line_that_ends_its_worker(harm: str, count: int, pool: Pool, case: Case) -> None:
    """Killing the process or breaking the device: it fails with worker_crashed after three attempts, the last of them
    alone; its neighbours finish."""
    batch, deaths = through(pool, harm, count)
    codes = {f"row-{HARMFUL + number}": {"worker_crashed"} for number in range(count)}
    found = check(pool, case, batch, deaths, codes)
    what = "kills its worker" if harm == "poison" else "breaks the device"
    case.note(f"line {what}, {count} such", "mid batch", found, most=pool.rows * deaths + MOST_ATTEMPTS - 1)
    # Where the device broke with others under way, nobody was charged.
    attempts = MOST_ATTEMPTS + (harm == "sick")
    assert [begun(pool, HARMFUL + number) for number in range(count)] == [attempts] * count


def most_together(pool: Pool, worker: Worker) -> int:
    """The most lines that a worker had under way at a time."""
    most, under_way = 0, set()
    for event in pool.events():
        if event.pid == worker.pid and event.event in ("begin", "end", "cancel"):
            (under_way.add if event.event == "begin" else under_way.discard)(event.index)
            most = max(most, len(under_way))
    return most


@pytest.mark.parametrize("deaths", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_lines_of_a_dead_worker_run_together_again(pool: Pool, case: Case, deaths: int) -> None:
    """A power cut costs what was under way, and nobody crawls: the next worker's batch is as full as the last one's.
    After two of them each such line runs alone for a moment first."""
    lines = job_lines(2 * pool.rows, max_tokens=200)
    batch = None
    for _ in range(deaths):
        victim = pool.worker()
        pool.ready(victim)
        batch = batch or pool.submit(lines)
        pool.until(lambda victim=victim: most_together(pool, victim) == pool.rows, "its rows are busy")
        victim.signal(signal.SIGKILL)
        pool.ended(victim)
    heir = pool.worker()
    assert batch is not None
    pool.wait(batch)
    pool.settled()
    assert most_together(pool, heir) == pool.rows
    most = pool.rows * deaths
    found = case.check(batch, most_regenerated=most)
    case.note(f"kill, {deaths} times, long lines", "mid line", found, most=most)


@pytest.mark.faults
def test_line_that_breaks_the_engine(pool: Pool, case: Case) -> None:
    """It fails by itself; its neighbours finish."""
    batch, deaths = through(pool, "explode")
    found = check(pool, case, batch, deaths, {f"row-{HARMFUL}": {"worker_crashed", "internal_error"}})
    case.note("line fails by itself", "mid batch", found, most=pool.rows * deaths + MOST_ATTEMPTS - 1)


@pytest.mark.faults
def test_line_that_needs_all_memory(pool: Pool, case: Case) -> None:
    """It breaks what runs beside it; by itself it succeeds, and so do its neighbours."""
    batch, deaths = through(pool, "oom")
    found = check(pool, case, batch, deaths, {})
    case.note("line needs all memory", "mid batch", found, most=pool.rows * deaths + MOST_ATTEMPTS - 1)
