"""The scheduler as a process: one is active, another takes over, outages are ridden out, and it ends when asked."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError, NoPermissionError, OutOfMemoryError

from jobs.errors import RefusedError
from jobs.redis.connect import connect
from jobs.store.keys import SCHEDULER, SCHEDULES, UPLOADING, ScheduleKeys
from jobs.store.store import Store
from submit.schedule.daemon import SchedulerDaemon
from submit.schedule.dispatch import Dispatcher
from submit.schedule.rq_jobs import LOCK_S, QUEUE, Lock
from submit.schedule.store import Schedules
from tests.night import TWO, Night, lines_in
from tests.servers import Server, private_server
from tests.waiting import until

LOCK = f"rq:scheduler-lock:{QUEUE}"


class Process:
    """A `promptmill scheduler`."""

    def __init__(self, url: str, folder: Path, name: str, *flags: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-P", "-m", "submit.cli", "scheduler", "--redis", url, "--name", name, *flags]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def said(self, text: str, *, seconds: float = 60.0) -> None:
        until(lambda: text in self.text, f"the scheduler says {text!r}", seconds=seconds)

    def active(self, *, seconds: float = 60.0) -> None:
        """Wait until it is the active one."""
        self.said(f"INFO {self.name}.{self.process.pid} is active", seconds=seconds)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def schedulers(url: str, folder: Path, *names: str, read_from: Path | None = None) -> Iterator[list[Process]]:
    """Schedulers of these names, the first of them active."""
    flags = [] if read_from is None else ["--read-from", str(read_from)]
    started: list[Process] = []
    try:
        for name in names:
            started.append(Process(url, folder, name, *flags))
            started[-1].said("stands by") if len(started) > 1 else started[-1].active()
        yield started
    finally:
        for process in started:
            process.process.kill()
            process.process.wait()


def due_soon(store: Store, name: str, seconds: float = 0.0) -> int:
    """As if the schedule's next run were due in some seconds."""
    due = int(store.server_time() + seconds)
    store.connection.hset(ScheduleKeys(name).info, "next", due)
    return due


def submitted(store: Store, name: str = "nightly") -> list[str]:
    """The batches that a schedule has on record."""
    return [run.batch_id for run in Schedules(store.connection).get(name).runs if run.batch_id is not None]


def test_another_takes_over_from_one_that_dies_in_the_middle(store: Store, server_url: str, tmp_path: Path) -> None:
    """kill -9 while it uploads: within some seconds after the lock the other submits the run, once and whole."""
    path = tmp_path / "large.jsonl"
    lines_in(path, *['{"prompt":"Once"}'] * 200_000)
    night = Night(store, time.time())
    night.add(file=str(path))
    with schedulers(server_url, tmp_path, "one", "two", read_from=tmp_path) as (one, two):
        due = due_soon(store, "nightly")
        until(lambda: store.connection.zcard(UPLOADING), "the upload begins")
        assert one.end(signal.SIGKILL) == -signal.SIGKILL
        killed = time.monotonic()
        assert submitted(store) == []
        assert 0 < store.connection.ttl(LOCK) <= LOCK_S
        store.connection.expire(LOCK, 2)  # as if most of its time had passed
        two.active(seconds=LOCK_S + 10)
        assert time.monotonic() - killed < LOCK_S + 5
        until(lambda: submitted(store), "the run is submitted")
        batches = [batch for batch in store.batches() if batch.schedule == "nightly"]
        assert [(batch.id, batch.total) for batch in batches] == [(submitted(store)[0], 200_000)]
        assert [run.due for run in Schedules(store.connection).get("nightly").runs] == [due]
        assert two.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_stopped_lets_the_next_take_over_at_once(
    store: Store, server_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Exit status 0, nothing of it is left in Redis, and the other is active long before the lock would have ended."""
    with schedulers(server_url, tmp_path, "one", "two") as (one, two):
        assert f"'one.{one.process.pid}' is active" in two.text
        assert one.end(number) == 0
        two.active(seconds=LOCK_S / 2)
        assert "Traceback" not in one.text
        assert two.end(number) == 0
    assert store.connection.keys("*scheduler*") == []


def test_an_outage_is_ridden_out(server: Server, tmp_path: Path) -> None:
    """The server goes and comes: said once each, and what was due meanwhile is submitted."""
    with connecting(server.url) as store:
        Night(store, time.time()).add()
        with schedulers(server.url, tmp_path, "one") as (one,):
            due_soon(store, "nightly", 5)
            server.stop()
            one.said("Redis does not answer")
            server.start()
            one.said("Redis is back")
            until(lambda: submitted(store), "the run is submitted")
            assert one.text.count("Redis does not answer") == 1
            assert one.end(signal.SIGTERM) == 0


def test_a_scheduler_that_slept_gives_way(store: Store, server_url: str, tmp_path: Path) -> None:
    """SIGSTOP for longer than the lock lasts: the other is active, and the first stands by when it wakes up."""
    with schedulers(server_url, tmp_path, "one", "two") as (one, two):
        one.process.send_signal(signal.SIGSTOP)
        store.connection.delete(LOCK)  # as if its time were up
        two.active()
        one.process.send_signal(signal.SIGCONT)
        one.said("another is active now")
        Night(store, time.time()).add()
        due_soon(store, "nightly")
        until(lambda: submitted(store), "the run is submitted")
        assert "nightly" in two.text
        assert "nightly" not in one.text


@contextmanager
def connecting(url: str) -> Iterator[Store]:
    connection = connect(url)
    try:
        yield Store(connection)
    finally:
        connection.close()


def test_without_redis_it_says_so(tmp_path: Path) -> None:
    """Exit status 3, with the remedy."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "submit.cli", "scheduler", "--redis", f"unix://{tmp_path}/none.sock"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "cannot reach Redis" in done.stderr


def test_what_is_in_the_way_is_said_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged schedule, a list that is none, upkeep that stumbles: a line each, and the rest goes on."""
    night = Night(store, time.time())
    night.add()
    night.add("bad")
    night.hash_set("zone", "Mars", "bad")
    done: list[str] = []

    def stumbles(_store: Store) -> None:
        done.append("tended")
        raise RefusedError("something else is there")

    scheduler = SchedulerDaemon(store, name="mini", upkeep=stumbles)
    with caplog.at_level(logging.INFO, "promptmill.scheduler"):
        for _ in range(3):
            scheduler.tick()
            scheduler.tend()
        store.connection.delete(SCHEDULES)
        store.connection.set(SCHEDULES, "x")
        for _ in range(3):
            scheduler.tick()
            scheduler.tend()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(done) == 6
    assert len(said) == 3
    assert ["Mars" in said[0], "something else" in said[1], "list of schedules" in said[2]] == [True] * 3


def test_what_redis_forbids_beside_the_main_thread_is_said_once(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Want of permission to take runs or to tend the pool; an outage is the main thread's to say."""
    for name in ("LEAST_BACKOFF_S", "UPKEEP_S", "IDLE_S"):
        monkeypatch.setattr(f"submit.schedule.daemon.{name}", 0.01)
    counts = {"work": 0, "tend": 0}

    def refused(what: str) -> None:
        counts[what] += 1
        raise NoPermissionError(f"no {what}") if counts[what] % 2 else ConnectionError("out")

    monkeypatch.setattr(Dispatcher, "submit_begun", lambda _: refused("work"))
    monkeypatch.setattr(SchedulerDaemon, "tend", lambda _: refused("tend"))
    scheduler = SchedulerDaemon(store, name="mini")
    scheduler.tick()
    for thread in scheduler._threads:
        thread.start()
    until(lambda: min(counts.values()) > 6, "each was refused several times")
    scheduler._end()
    assert not any(thread.is_alive() for thread in scheduler._threads)
    said = sorted(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert said == [
        "no runs can be taken: Redis refuses a command: no work",
        "no upkeep: Redis refuses a command: no tend",
    ]


def test_a_run_that_was_due_while_redis_refused_is_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler tried all the time, so it knows that nobody was away."""
    night = Night(store)
    night.add()
    wall = [0.0]
    scheduler = SchedulerDaemon(night.store, name="mini", wall=lambda: wall[0])
    night.now = TWO - 5
    scheduler.tick()

    def full() -> bool:
        raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler._lock, "refresh", full)
        for _ in range(30):
            wall[0] += 10
            with pytest.raises(OutOfMemoryError):
                scheduler.tick()
    night.now = TWO + 295
    scheduler.tick()
    scheduler._dispatcher.submit_begun()
    assert [run.state for run in night.runs()] == ["submitted"]


def test_a_scheduler_that_slept_was_not_there(store: Store) -> None:
    """Nor was one that has only just begun."""
    wall, night = [1000.0], Night(store, 5000.0)
    scheduler = SchedulerDaemon(night.store, name="mini", wall=lambda: wall[0])
    assert not scheduler.was_there(1e9)
    scheduler.tick()
    assert scheduler.was_there(5000.0)
    assert not scheduler.was_there(4999.0)
    for seconds in (59, 61):
        wall[0] += seconds
        night.now += seconds
        scheduler.tick()
        assert scheduler.was_there(5000.0) == (seconds == 59)
    assert not scheduler.was_there(5100.0)


def test_the_lock_is_short(store: Store) -> None:
    """RQ's own lasts for a minute; only who has it may let it go."""
    one, two = Lock(store.connection, "one"), Lock(store.connection, "two")
    assert (one.refresh(), two.refresh(), one.refresh()) == (True, False, True)
    assert 0 < store.connection.ttl(LOCK) <= LOCK_S
    two.release()
    assert two.refresh() is False
    one.release()
    assert two.refresh() is True
    assert set(store.connection.keys("rq:scheduler:*")) == {b"rq:scheduler:two"}


def test_rq_knows_the_scheduler(store: Store) -> None:
    """RQ's own class finds it, also after the server has lost everything."""
    from rq.scheduler import RQScheduler

    lock = Lock(store.connection, "mini.1")
    for _ in range(2):
        lock.refresh()
        found = RQScheduler.fetch("mini.1", store.connection)
        assert (found.pid, found._queue_names) == (os.getpid(), {QUEUE})
        store.connection.flushall()


def test_the_active_one_is_known(store: Store) -> None:
    """For `schedule list`, which must not read RQ's own keys; what is not a scheduler's is none."""
    schedules = Schedules(store.connection)
    assert schedules.active_scheduler() is None
    scheduler = SchedulerDaemon(store, name="mini")
    scheduler.tick()
    assert schedules.active_scheduler() == scheduler.name
    for rubbish in (b"x", b"[]", b"\xff", b"{}", b"x" * 100_000):
        store.connection.set(SCHEDULER, rubbish)
        assert schedules.active_scheduler() is None
    store.connection.delete(SCHEDULER)
    store.connection.lpush(SCHEDULER, "x")
    assert schedules.active_scheduler() is None


def test_it_never_loads_mlx() -> None:
    """The scheduler's process is light: none of the worker is in it."""
    script = (
        "import sys, submit.schedule.daemon, submit.commands.pool.scheduler\n"
        "print(sorted({'mlx', 'mlx_lm', 'transformers', 'worker'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


USERS = Path(__file__).parents[3] / "deploy" / "redis" / "users.acl"


def test_users_of_least_privilege_are_enough(tmp_path: Path) -> None:
    """The scheduler is the user `worker`, who adds schedules a `submitter`: the server denies neither anything."""
    text = USERS.read_text().replace("SUBMITTER_PASSWORD", "pw-s").replace("WORKER_PASSWORD", "pw-w")
    rules = tmp_path / "users.acl"
    rules.write_text(text + "user operator on >pw-o ~* &* +@all\n")
    with private_server("--aclfile", str(rules)) as server:

        def as_user(name: str) -> str:
            return server.url.replace("unix://", f"unix://{name}:pw-{name[0]}@")

        def schedule(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [
                sys.executable,
                "-P",
                "-m",
                "submit.cli",
                "schedule",
                *arguments,
                "--redis",
                as_user("submitter"),
            ]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        stored, read = (
            lines_in(tmp_path / "a.jsonl", '{"prompt":"a"}'),
            lines_in(tmp_path / "b.jsonl", '{"prompt":"b"}'),
        )
        with (
            Redis.from_url(as_user("operator")) as operator,
            schedulers(as_user("worker"), tmp_path, "one", read_from=tmp_path) as (one,),
        ):
            store = Store(operator)
            added = schedule("add", "stored", stored, "--cron", "0 2 * * *", "--model", "m")
            assert added.returncode == 0, added.stderr
            assert schedule("add", "read", read, "--cron", "@daily", "--read-at-fire", "--model", "m").returncode == 0
            assert schedule("add", "gone", stored, "--cron", "@daily", "--model", "m").returncode == 0
            due_soon(store, "stored")
            until(lambda: submitted(store, "stored"), "the run is submitted")
            assert schedule("run", "read").returncode == 0
            assert schedule("run", "gone").returncode == 0
            listed = schedule("list")
            assert listed.returncode == 0
            assert listed.stderr == ""
            assert schedule("remove", "gone").returncode == 0
            until(lambda: operator.zcard(f"rq:scheduled:{QUEUE}") == 2, "RQ's registry follows")
            assert one.end(signal.SIGTERM) == 0
            assert operator.acl_log() == []


def test_a_user_that_may_not_is_told(tmp_path: Path) -> None:
    """A submitter cannot be the scheduler: exit status 3, and the user is named."""
    text = USERS.read_text().replace("SUBMITTER_PASSWORD", "pw-s").replace("WORKER_PASSWORD", "pw-w")
    rules = tmp_path / "users.acl"
    rules.write_text(text)
    with private_server("--aclfile", str(rules)) as server:
        process = Process(server.url.replace("unix://", "unix://submitter:pw-s@"), tmp_path, "one")
        assert process.process.wait(60) == 3
    assert "does not allow user 'submitter'" in process.text
    assert "Traceback" not in process.text
