"""Shards that are in no queue: RQ's own tools and lost keys take them out, upkeep puts them back, each once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.registry import CanceledJobRegistry, FailedJobRegistry
from rq.serializers import JSONSerializer

from jobs.attempt import Attempt
from jobs.batch import queue_name
from jobs.store.keys import ORPHANS_LOOK, BatchKeys
from jobs.store.maintenance import upkeep
from jobs.store.orphans import CONFIRM_S, LOOK_S, PUT_BACK_S, Orphans, find_orphans, restore, tend_orphans
from jobs.store.pause import pause, prioritise, resume_batch
from jobs.store.store import Store
from jobs.tasks import REFUSED_ID
from submit.cli import main
from submit.results.read import ordered_records
from tests.pool import MODEL, make_batch, prompts, publish, work
from tests.processes import processes
from tests.waiting import until
from worker.rq.worker import MAINTENANCE_S, ShardWorker

QUEUE = queue_name(MODEL, "normal")
SHARDS, LINES = 3, 50  # submit makes shards of so many lines


def live_batch(store: Store, **order: object) -> str:
    """A batch of three shards."""
    return make_batch(store, prompts(SHARDS * LINES), **order)


def rq(store: Store, *words: str) -> str:
    """Run RQ's own command on the test's server; what it says."""
    url = "unix://" + store.connection.connection_pool.connection_kwargs["path"]
    command = [str(Path(sys.executable).with_name("rq")), words[0], "--url", url, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def queued(store: Store) -> Counter[str]:
    """How often each job is anywhere in RQ's queues and registries of what is at work."""
    found = Counter[str]()
    for key in store.connection.scan_iter("rq:queue:*"):
        found.update(item.decode() for item in store.connection.lrange(key, 0, -1))
    for key in store.connection.scan_iter("rq:wip:*"):
        found.update(item.decode().partition(":")[0] for item in store.connection.zrange(key, 0, -1))
    return found


def each_once(batch_id: str, shards: int = SHARDS) -> Counter[str]:
    return Counter(f"{batch_id}-{number}" for number in range(shards))


def put_back(store: Store) -> int:
    """Two looks, as far apart as it takes; how many shards the second puts back."""
    now = time.time()
    assert restore(Store(store.connection, server_time=lambda: now)) == 0
    return restore(Store(store.connection, server_time=lambda: now + CONFIRM_S))


def finish(store: Store, batch_id: str) -> None:
    """Work off the queues with a worker of promptmill's own books, and see that each line has its record."""
    worker = ShardWorker(store, [QUEUE], "mini.1")
    while shard := worker.take([QUEUE]):
        lease = worker.begin(shard)
        assert lease is not None
        work(store, batch_id)
        worker.acknowledge(lease, 0.0)
    assert store.batch(batch_id).status == "completed"
    assert [orjson.loads(record.raw)["index"] for record in ordered_records(store.connection, batch_id)] == list(
        range(SHARDS * LINES)
    )


def test_rq_empty_loses_no_shard(store: Store) -> None:
    """`rq empty` deletes queue and jobs; the shards come back, each once, and the batch is finished."""
    batch_id = live_batch(store)
    assert "3 jobs removed" in rq(store, "empty", QUEUE)
    assert find_orphans(store, batch_id) == Orphans(SHARDS, SHARDS * LINES)
    assert put_back(store) == SHARDS
    assert queued(store) == each_once(batch_id)
    assert find_orphans(store, batch_id) is None
    finish(store, batch_id)


def test_a_shard_under_way_is_not_put_back_beside_it(store: Store) -> None:
    """`rq empty` while a worker holds a shard and another was just taken: only what is in no place comes back."""
    batch_id = live_batch(store)
    worker = ShardWorker(store, [QUEUE], "mini.1")
    held = worker.take([QUEUE])
    assert held is not None
    worker.begin(held)
    assert worker.take([QUEUE]) is not None
    rq(store, "empty", QUEUE)
    assert find_orphans(store, batch_id) == Orphans(1, LINES)
    assert put_back(store) == 1
    assert queued(store) == each_once(batch_id)


def test_rq_requeue_and_upkeep_queue_a_failed_shard_once(store: Store) -> None:
    """Whichever comes first, the other finds nothing to do; RQ's books of failures are clean afterwards."""
    batch_id = live_batch(store)
    for job_id in each_once(batch_id):
        failed(store, job_id)
    assert queued(store) == Counter()
    rq(store, "requeue", "--all", "--queue", QUEUE, "--serializer", "rq.serializers.JSONSerializer")
    assert queued(store) == each_once(batch_id)
    assert put_back(store) == 0
    for job_id in each_once(batch_id):
        failed(store, job_id)
    assert put_back(store) == SHARDS
    assert queued(store) == each_once(batch_id)
    assert store.connection.zcard(f"rq:failed:{QUEUE}") == 0
    assert all(store.connection.ttl(f"rq:job:{job_id}") == -1 for job_id in each_once(batch_id))
    finish(store, batch_id)


def failed(store: Store, job_id: str) -> None:
    """A job has failed in a plain RQ worker."""
    job = Job.fetch(job_id, connection=store.connection, serializer=JSONSerializer)
    store.connection.lrem(f"rq:queue:{QUEUE}", 0, job_id)
    FailedJobRegistry(QUEUE, connection=store.connection, serializer=JSONSerializer).add(job, exc_string="no")


def test_a_job_cancelled_with_rq_comes_back(store: Store) -> None:
    """A batch's lines are given up with `promptmill cancel`, not by cancelling its jobs one by one."""
    batch_id = live_batch(store)
    job = Job.fetch(f"{batch_id}-1", connection=store.connection, serializer=JSONSerializer)
    job.cancel()
    assert put_back(store) == 1
    assert queued(store) == each_once(batch_id)
    assert CanceledJobRegistry(QUEUE, connection=store.connection).get_job_ids(cleanup=False) == []
    finish(store, batch_id)


def test_a_suspended_pool_is_mended_and_takes_nothing(store: Store) -> None:
    """`rq suspend` stops the taking of shards, not the upkeep of queues; `rq resume` lets the batch go on."""
    batch_id = live_batch(store)
    rq(store, "suspend")
    rq(store, "empty", QUEUE)
    assert put_back(store) == SHARDS
    rq(store, "resume")
    finish(store, batch_id)


def test_what_is_nowhere_for_a_moment_only_is_left_alone(store: Store) -> None:
    """RQ's tools move a job in several steps: a shard that is back at the second look is not queued twice."""
    batch_id, now = live_batch(store), time.time()
    job_id = f"{batch_id}-0"
    store.connection.lrem(f"rq:queue:{QUEUE}", 0, job_id)
    assert restore(Store(store.connection, server_time=lambda: now)) == 0
    assert restore(Store(store.connection, server_time=lambda: now + CONFIRM_S / 2)) == 0
    store.connection.rpush(f"rq:queue:{QUEUE}", job_id)
    assert restore(Store(store.connection, server_time=lambda: now + CONFIRM_S)) == 0
    assert queued(store) == each_once(batch_id)
    assert store.connection.exists(BatchKeys(batch_id).orphans) == 0


def test_a_batch_that_is_held_back_has_no_orphans(store: Store) -> None:
    """Paused, or with its time to come: its jobs pend. What is lost meanwhile comes back once it goes on."""
    paused, later = live_batch(store), live_batch(store, start_in=3600.0)
    pause(store, paused)
    assert find_orphans(store, paused) is find_orphans(store, later) is None
    store.connection.delete(BatchKeys(paused).pending(QUEUE))
    assert put_back(store) == 0
    resume_batch(store, paused)
    assert put_back(store) == SHARDS
    assert queued(store) == each_once(paused)


def test_jobs_that_pend_in_a_batch_that_runs_are_queued(store: Store) -> None:
    """Somebody had put something else where the queue belongs when the batch was committed."""
    store.connection.set(f"rq:queue:{QUEUE}", "mine")
    batch_id = live_batch(store)
    assert put_back(store) == 0
    store.connection.delete(f"rq:queue:{QUEUE}")
    assert put_back(store) == SHARDS
    assert queued(store) == each_once(batch_id)
    assert store.connection.exists(BatchKeys(batch_id).pending(QUEUE)) == 0


def test_a_shard_comes_back_to_the_queue_of_its_priority(store: Store) -> None:
    """The batch was moved to another one since."""
    batch_id = live_batch(store)
    rq(store, "empty", QUEUE)
    prioritise(store, batch_id, "high")
    assert put_back(store) == SHARDS
    assert store.connection.llen(f"rq:queue:{queue_name(MODEL, 'high')}") == SHARDS


def test_shards_of_several_models_come_back_each_to_its_own(store: Store) -> None:
    """The queue of a shard is that of its lines' model, also where the batch's list of queues is lost."""
    lines = [{"prompt": "a", "model": ("pocket", "other")[number % 2]} for number in range(2 * LINES)]
    batch_id = make_batch(store, lines)
    queues = [queue_name(model, "normal") for model in ("pocket", "other")]
    store.connection.delete(BatchKeys(batch_id).queues)
    assert find_orphans(store, batch_id) is None
    for queue in queues:
        rq(store, "empty", queue)
    assert put_back(store) == 2
    assert [store.connection.llen(f"rq:queue:{queue}") for queue in queues] == [1, 1]
    assert store.connection.smembers(BatchKeys(batch_id).queues) == {queue.encode() for queue in queues}


def test_a_lost_job_is_made_again_when_its_turn_comes(store: Store) -> None:
    """The id is in the queue, the hash that RQ keeps of it is gone: a worker takes the shard all the same."""
    batch_id = live_batch(store)
    store.connection.delete(*(f"rq:job:{job_id}" for job_id in each_once(batch_id)))
    finish(store, batch_id)
    assert list(store.connection.scan_iter("rq:job:*")) == []


def test_a_lost_job_of_a_shard_that_is_done_stays_lost(store: Store) -> None:
    """A leftover entry of a queue stands for nothing once its shard, or its batch, is done."""
    batch_id = live_batch(store)
    work(store, batch_id)
    store.connection.delete(*(f"rq:job:{job_id}" for job_id in each_once(batch_id)))
    assert ShardWorker(store, [QUEUE], "mini.1").take([QUEUE]) is None
    assert list(store.connection.scan_iter("rq:job:*")) == []


def test_lost_fences_and_leases_only_cost_an_attempt(store: Store) -> None:
    """Who holds the shard finds its attempt stale; the shard comes back, and is claimed anew."""
    batch_id = live_batch(store)
    worker = ShardWorker(store, [QUEUE], "mini.1")
    shard = worker.take([QUEUE])
    assert shard is not None
    worker.begin(shard)
    attempt = store.claim(batch_id, 0)
    assert isinstance(attempt, Attempt)
    store.connection.delete(BatchKeys(batch_id).fences, f"rq:wip:{QUEUE}")
    assert not store.unfinished(attempt)
    assert put_back(store) == 1
    finish(store, batch_id)


def test_a_shard_whose_records_are_lost_is_not_counted_twice(store: Store) -> None:
    """It is done, and its lines are counted: run again, the batch would end before the others of its lines."""
    batch_id = live_batch(store)
    work(store, batch_id, only=range(LINES))
    store.connection.lrem(f"rq:queue:{QUEUE}", 0, f"{batch_id}-0")
    store.connection.delete(BatchKeys(batch_id).compacted(0))
    rq(store, "empty", QUEUE)
    assert put_back(store) == SHARDS - 1
    assert queued(store) == Counter([f"{batch_id}-1", f"{batch_id}-2"])


def test_somebody_elses_data_stops_nobodys_shards(store: Store) -> None:
    """A batch whose table or queues are something else is passed over, the next one is mended."""
    broken, batch_id = live_batch(store), live_batch(store)
    store.connection.delete(BatchKeys(broken).table, BatchKeys(broken).queues)
    store.connection.set(BatchKeys(broken).table, "mine")
    store.connection.set(BatchKeys(broken).queues, "mine")
    rq(store, "empty", QUEUE)
    assert put_back(store) == SHARDS
    assert queued(store) == each_once(batch_id)


@pytest.mark.parametrize("mark", ["mine", "nan", "9e99", ""])
def test_damaged_marks_stop_nobody_who_looks(store: Store, mark: str) -> None:
    """Where it cannot be read since when a shard is in no queue, it is so from now on."""
    batch_id = live_batch(store)
    store.connection.hset(BatchKeys(batch_id).orphans, "0", mark)
    rq(store, "empty", QUEUE)
    assert put_back(store) == SHARDS
    assert queued(store) == each_once(batch_id)


def test_a_pool_looks_once_however_many_ask(store: Store) -> None:
    """Looking reads all queues: one process does it, and not again at once. What is lost is back when it is said to."""
    batch_id = live_batch(store)
    upkeep(store)
    rq(store, "empty", QUEUE)
    for _ in range(3):
        tend_orphans(store)
    assert store.connection.exists(BatchKeys(batch_id).orphans) == 0
    store.connection.delete(ORPHANS_LOOK)
    tend_orphans(store)
    assert store.connection.hlen(BatchKeys(batch_id).orphans) == SHARDS
    assert 0 < store.connection.pttl(ORPHANS_LOOK) <= LOOK_S * 1000
    assert 2 * (LOOK_S + MAINTENANCE_S) <= PUT_BACK_S


@contextmanager
def plain_worker(store: Store, log: Path, queue: str) -> Iterator[Callable[[], str]]:
    """A plain `rq worker` on a queue; what its log says."""
    url = "unix://" + store.connection.connection_pool.connection_kwargs["path"]
    command = [str(Path(sys.executable).with_name("rq")), "worker", "--url", url]
    command += ["--serializer", "rq.serializers.JSONSerializer", queue]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            yield lambda: log.read_text()
        finally:
            horses = [child.pid for child in processes() if child.parent == process.pid]  # they sleep
            process.kill()
            for horse in horses:
                os.kill(horse, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_plain_rq_worker_holds_nothing_up(store: Store, tmp_path: Path, shards: int) -> None:
    """It takes one shard, gives it back at once, says what to start instead, and takes no other for half a minute: a
    worker of ours, which asks for shards ten times a second, gets them all."""
    batch_id = make_batch(store, prompts(shards * LINES))
    with plain_worker(store, tmp_path / "rq.log", QUEUE) as said:
        until(lambda: "was taken by a plain RQ worker" in said(), "it has taken one")
        assert queued(store) == each_once(batch_id, shards)
        worker = ShardWorker(store, [QUEUE], "mini.1")
        while shard := worker.take([QUEUE]):
            lease = worker.begin(shard)
            assert lease is not None
            work(store, batch_id)
            worker.acknowledge(lease, 0.0)
        assert said().count("was taken by a plain RQ worker") == 1
        assert "start `promptmill worker` on this queue instead" in said()
    assert store.batch(batch_id).status == "completed"
    assert queued(store) == Counter()
    assert list(store.connection.scan_iter("rq:job:*")) == []


def run_one(store: Store, name: str, meanwhile: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a plain RQ worker run one job of a queue in this process; ``meanwhile`` happens in its pause."""
    monkeypatch.setattr("jobs.tasks.sleep", lambda _: meanwhile())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    queue = Queue(name, connection=store.connection, serializer=JSONSerializer)
    try:
        SimpleWorker([queue], connection=store.connection, serializer=JSONSerializer).work(burst=True, max_jobs=1)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_plain_rq_worker_leaves_rqs_books_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it goes on after its pause, a worker of ours has the shard: its lease and its job stay as they are, and RQ
    shows one failed job, which is none of the batch's."""
    batch_id = make_batch(store, prompts(LINES))
    worker = ShardWorker(store, [QUEUE], "mini.1")

    def meanwhile() -> None:
        shard = worker.take([QUEUE])
        assert shard is not None
        assert worker.begin(shard) is not None

    run_one(store, QUEUE, meanwhile, monkeypatch)
    assert queued(store) == each_once(batch_id, 1)
    assert store.connection.hget(f"rq:job:{batch_id}-0", "status") == b"started"
    assert FailedJobRegistry(QUEUE, connection=store.connection).get_job_ids(cleanup=False) == [REFUSED_ID]
    assert 0 < store.connection.ttl(f"rq:job:{REFUSED_ID}") <= 3600
    rq(store, "requeue", "--all", "--queue", QUEUE, "--serializer", "rq.serializers.JSONSerializer")
    assert ShardWorker(store, [QUEUE], "mini.2").take([QUEUE]) is None
    assert put_back(store) == 0


def test_a_plain_rq_worker_without_promptmill_takes_each_shard_once(store: Store, tmp_path: Path) -> None:
    """Where the function cannot be found, as in another project that has a module of its name, RQ does not try again
    and again: the shards have failed, until upkeep puts them back."""
    batch_id = live_batch(store)
    (tmp_path / "worker.py").write_text("")
    url = "unix://" + store.connection.connection_pool.connection_kwargs["path"]
    command = [str(Path(sys.executable).with_name("rq")), "worker", "--burst", "--url", url, "--path", str(tmp_path)]
    command += ["--serializer", "rq.serializers.JSONSerializer", QUEUE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("exception raised while executing") == SHARDS
    assert queued(store) == Counter()
    assert put_back(store) == SHARDS
    finish(store, batch_id)


def test_status_says_that_shards_are_in_no_queue(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """As text and as JSON, whoever emptied the queue and whether or not a worker is there; until they are back."""
    batch_id = live_batch(store)
    url = "unix://" + store.connection.connection_pool.connection_kwargs["path"]

    def status(*flags: str) -> str:
        assert main(["status", batch_id, "--redis", url, *flags]) == 0
        return capsys.readouterr().out

    assert "no queue" not in status()
    rq(store, "empty", QUEUE)
    said = "waiting: 3 shards (150 lines) are in no queue: start `promptmill worker`, which puts them back"
    assert f"in_progress, {said}" in status()
    publish(store, "mini.1", queues=[QUEUE])
    assert "(150 lines) are in no queue: a worker puts them back within 45 s" in status()
    found = orjson.loads(status("--json"))
    assert found["orphans"] == {"shards": 3, "lines": 150}
    assert "are in no queue" in found["waiting"]
    assert restore(store) == 0
    assert main(["status", "--redis", url]) == 0
    assert "waiting" in capsys.readouterr().out
    assert put_back(store) == SHARDS
    assert orjson.loads(status("--json"))["orphans"] is None
    assert "no queue" not in status()


def test_status_says_it_beside_lines_under_way(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """One shard is worked on, the other is nowhere."""
    batch_id = make_batch(store, prompts(2 * LINES))
    store.connection.lrem(f"rq:queue:{QUEUE}", 0, f"{batch_id}-1")
    line = {"batch_id": batch_id, "index": 0, "id": "row-0", "phase": "decode"}
    publish(store, "mini.1", queues=[QUEUE], state="busy", in_flight=[line])
    url = "unix://" + store.connection.connection_pool.connection_kwargs["path"]
    assert main(["status", batch_id, "--redis", url]) == 0
    out = capsys.readouterr().out
    assert "some of its lines wait: 1 shard (50 lines) is in no queue: a worker puts it back within 45 s" in out
