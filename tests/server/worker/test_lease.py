"""The RQ side of a worker on a real server: safe dequeue, leases, recovery, refusal of what is not ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rq.job import Job
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from jobs.attempt import Attempt, Verdict
from jobs.batch import new_batch_id, queue_name
from jobs.errors import RefusedError, StaleAttemptError
from jobs.redis.connect import connect
from jobs.shard import Group, ShardLine
from jobs.store.keys import PREFIX
from jobs.store.store import FinishedLine, NewBatch, Store, UploadedShard
from tests.pool import watched
from tests.proxy import Proxy
from worker.rq.worker import UNBEGUN_S, Lease, ShardJob, ShardWorker, machine

MODEL = Group("pocket")
QUEUE = queue_name(MODEL.key, "normal")
DEAD_PID = 2**22 + 1  # above the kernel's highest


@pytest.fixture
def make_worker(store: Store) -> Callable[..., ShardWorker]:
    """Workers on the test's server, by name."""

    def make(name: str = "mini.1", *queues: str) -> ShardWorker:
        return ShardWorker(store, queues or [QUEUE], name)

    return make


def live_batch(store: Store, shards: int = 1, lines: int = 2, priority: str = "normal") -> str:
    batch = NewBatch(new_batch_id(), None, "test.jsonl", priority, {"model": MODEL.model}, {})
    store.create(batch)
    for number in range(shards):
        first = number * lines
        raw = [ShardLine(first + step, first + step + 1, b'{"prompt":"a"}') for step in range(lines)]
        store.upload(batch, [UploadedShard(number, 0, MODEL, raw)])
    assert store.commit(batch.id, total=shards * lines, shards=shards, groups=[MODEL])
    return batch.id


def record(index: int) -> FinishedLine:
    return FinishedLine(index, True, 1, 1, 0, b'{"id":"x","index":%d}' % index)


def test_a_dequeued_shard_is_never_only_in_memory(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Between the pop and the lease the job lies in RQ's intermediate list; after it, in the started registry."""
    live_batch(store)
    worker, queue = make_worker(), Queue(QUEUE, connection=store.connection, serializer=JSONSerializer)
    shard = worker.take([QUEUE])
    assert shard is not None
    assert queue.intermediate_queue.get_job_ids() == [shard.job.id]
    worker.begin(shard)
    assert queue.intermediate_queue.get_job_ids() == []
    assert queue.started_job_registry.get_job_ids(cleanup=False) == [shard.job.id]


def test_higher_priorities_are_taken_first(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Queues are asked in order, one at a time."""
    live_batch(store)
    urgent = live_batch(store, priority="high")
    queues = [queue_name(MODEL.key, "high"), QUEUE]
    shard = make_worker("mini.1", *queues).take(queues)
    assert shard is not None
    assert shard.batch_id == urgent


def test_an_acknowledged_shard_leaves_nothing_in_rq(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Job, execution and registry entry are gone; the worker's count has grown."""
    live_batch(store)
    worker = make_worker()
    shard = worker.take([QUEUE])
    assert shard is not None
    worker.acknowledge(worker.begin(shard), 1.5)
    assert store.connection.keys("rq:job:*") == []
    assert store.connection.keys("rq:execution*") == []
    assert store.connection.hget(worker.key, "successful_job_count") == b"1"


def test_a_handed_back_shard_is_next_again(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Hand-back puts the shard to the front of its queue, before the shards behind it."""
    live_batch(store, shards=2)
    worker = make_worker()
    shard = worker.take([QUEUE])
    assert shard is not None
    worker.hand_back(worker.begin(shard), QUEUE)
    again = worker.take([QUEUE])
    assert again is not None
    assert again.number == shard.number


def test_an_expired_lease_returns_the_shard_and_fences_out_its_holder(
    store: Store, make_worker: Callable[..., ShardWorker]
) -> None:
    """After recovery another worker claims the shard, and the first one's writes are refused."""
    batch = live_batch(store)
    first, second = make_worker("far.1"), make_worker("near.2")
    shard = first.take([QUEUE])
    assert shard is not None
    lease = first.begin(shard)
    old = store.claim(batch, 0)
    assert old is not None
    store.connection.zadd(lease.job.started_job_registry.key, {lease.execution.composite_key: 1})
    watched(store)
    second.recover()
    again = second.take([QUEUE])
    assert again is not None
    second.begin(again)
    new = store.claim(batch, 0)
    assert new is not None
    with pytest.raises(StaleAttemptError):
        store.write(old, [record(0)])
    store.write(new, [record(0), record(1)])
    assert store.finish(new, 2)
    assert store.batch(batch).completed == 2


def test_a_lease_whose_reply_is_lost_is_taken_once(store: Store, server_url: str) -> None:
    """The client sends the command again: the job is leased once, and in no other place."""
    live_batch(store)
    proxy = Proxy(server_url)
    try:
        with connect(proxy.url) as connection:
            worker = ShardWorker(Store(connection), [QUEUE], "mini.1")
            shard = worker.take([QUEUE])
            assert shard is not None
            worker._step("lease", ["a", "b", "c", "d", "e"], ["", "", "", 1, "", ""])  # the script is known there
            proxy.lose_next_reply()
            lease = worker.begin(shard)
            assert proxy.lost == 1
    finally:
        proxy.close()
    assert lease is not None
    registry = StartedJobRegistry(QUEUE, connection=store.connection)
    assert registry.get_job_and_execution_ids(cleanup=False) == [(lease.job_id, lease.execution.id)]
    assert store.connection.llen(f"rq:queue:{QUEUE}:intermediate") == 0


def test_a_job_given_to_another_meanwhile_is_not_begun(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """A worker that slept between dequeue and lease leaves alone the other one's lease, and what it finished."""
    batch = live_batch(store)
    sleeper, other = make_worker("far.1"), make_worker("near.2")
    shard = sleeper.take([QUEUE])
    assert shard is not None
    watched(store)
    other.recover()
    store.connection.hset(f"{PREFIX}dequeued:{QUEUE}", shard.job.id, store.server_time() - UNBEGUN_S - 1)
    watched(store)
    other.recover()
    again = other.take([QUEUE])
    assert again is not None
    lease = other.begin(again)
    assert lease is not None
    assert sleeper.begin(shard) is None
    registry = StartedJobRegistry(QUEUE, connection=store.connection)
    assert registry.get_job_and_execution_ids(cleanup=False) == [(lease.job_id, lease.execution.id)]
    other.acknowledge(lease, 0.0)
    assert sleeper.begin(shard) is None
    assert store.connection.keys("rq:job:*") == store.connection.keys("rq:execution*") == []
    assert store.batch(batch).status == "in_progress"


def test_a_live_lease_is_left_alone(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Recovery does not touch a shard whose lease still runs."""
    live_batch(store)
    first, second = make_worker("far.1"), make_worker("near.2")
    shard = first.take([QUEUE])
    assert shard is not None
    first.begin(shard)
    watched(store)
    second.recover()
    assert second.take([QUEUE]) is None


def test_a_dead_process_of_this_host_is_not_waited_for(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """A worker of the same machine whose process is gone loses its leases at the next recovery."""
    live_batch(store)
    dead, living = make_worker(f"mini.{DEAD_PID}"), make_worker("other.1")
    store.connection.hset(dead.key, "machine", machine())
    shard = dead.take([QUEUE])
    assert shard is not None
    dead.begin(shard)
    watched(store)
    living.recover()
    assert living.take([QUEUE]) is not None


def test_a_namesake_on_another_machine_is_left_alone(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Two hosts may have one name, or two workers one --name: the process ids of the other say nothing here."""
    live_batch(store)
    there, here = make_worker(f"mini.{DEAD_PID}"), make_worker("mini.1")
    store.connection.hset(there.key, "machine", "another")
    shard = there.take([QUEUE])
    assert shard is not None
    there.begin(shard)
    watched(store)
    here.recover()
    assert here.take([QUEUE]) is None


def test_what_dead_workers_left_does_not_hinder_the_next(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """A shard is acknowledged although RQ still lists an execution of it whose hash has expired."""
    batch = live_batch(store)
    dead, living = make_worker("far.1"), make_worker("near.2")
    lost(store, dead, batch)
    watched(store)
    living.recover()
    shard = living.take([QUEUE])
    assert shard is not None
    living.acknowledge(living.begin(shard), 1.0)
    assert store.connection.keys("rq:job:*") == []
    assert store.connection.keys("rq:execution*") == []


def lost(store: Store, worker: ShardWorker, batch: str) -> tuple[Lease, Attempt]:
    """Take and claim a shard, then be silent until the lease runs out."""
    shard = worker.take([QUEUE])
    assert shard is not None
    lease, attempt = worker.begin(shard), store.claim(batch, 0)
    assert attempt is not None
    store.connection.zadd(lease.job.started_job_registry.key, {lease.execution.composite_key: 1})
    store.connection.delete(lease.execution.key)
    return lease, attempt


def test_a_zombie_hands_nothing_back(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """A worker that wakes up after its lease was taken over neither fences the holder out nor queues the job again."""
    batch = live_batch(store)
    zombie, living = make_worker("far.1"), make_worker("near.2")
    lease, old = lost(store, zombie, batch)
    watched(store)
    living.recover()
    shard = living.take([QUEUE])
    assert shard is not None
    living.begin(shard)
    new = store.claim(batch, 0)
    assert new is not None
    assert not store.release(old)
    zombie.hand_back(lease, QUEUE)
    assert living.take([QUEUE]) is None
    store.write(new, [record(0)])


def test_a_job_with_a_live_lease_is_not_queued_for_a_dead_one(
    store: Store, make_worker: Callable[..., ShardWorker]
) -> None:
    """Where a job has two leases, the end of one does not take it from the holder of the other."""
    batch = live_batch(store)
    dead, living = make_worker("far.1"), make_worker("near.2")
    lease, _ = lost(store, dead, batch)
    store.connection.rpush(f"rq:queue:{QUEUE}:intermediate", lease.job_id)
    living.begin(ShardJob(lease.job, QUEUE, batch, 0, 2))
    watched(store)
    living.recover()
    assert living.take([QUEUE]) is None


def test_recovery_calls_nothing_that_redis_names(
    store: Store, make_worker: Callable[..., ShardWorker], capfd: pytest.CaptureFixture[str]
) -> None:
    """RQ's own clean-up would call a job's failure callback; here it is ignored."""
    batch = live_batch(store)
    dead, living = make_worker("far.1"), make_worker("near.2")
    lease, _ = lost(store, dead, batch)
    store.connection.hset(lease.job.key, "failure_callback_name", "builtins.print")
    watched(store)
    living.recover()
    assert living.take([QUEUE]) is not None
    assert capfd.readouterr().out == ""


def test_a_hand_back_counts_as_an_attempt_only_after_a_failure(store: Store) -> None:
    """An innocent one leaves the count of attempts as it was; a model's end with several lines under way speaks against
    them, and is charged to none."""
    batch = live_batch(store)
    for verdict, tries, suspicions in (
        (Verdict.INNOCENT, {}, {}),
        (Verdict.SUSPECT, {}, {}),
        (Verdict.SUSPECT, {}, {1: 1}),
        (Verdict.GUILTY, {}, {1: 2}),
        (Verdict.INNOCENT, {1: 1}, {1: 2}),
    ):
        claimed = store.claim(batch, 0)
        assert claimed is not None
        assert claimed.tries == claimed.deaths == tries
        assert (claimed.suspicions, claimed.alone) == (suspicions, frozenset())
        assert store.begin(claimed, [1], "one", store.connection)
        assert store.release(claimed, verdict)


def test_a_name_in_use_is_refused(make_worker: Callable[..., ShardWorker], store: Store) -> None:
    """The message says what to do; a worker of this very process id can only be a dead one."""
    store.connection.hset(make_worker("mini.1").key, "machine", "another")
    with pytest.raises(RefusedError, match="--name"):
        make_worker("mini.1").start()
    store.connection.hset(make_worker("mini.1").key, "machine", machine())
    worker = make_worker("mini.1")
    worker.start()
    worker.end()


def test_a_job_dequeued_and_never_begun_comes_back(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """A worker that died between pop and lease leaves its job in the intermediate list; recovery requeues it."""
    live_batch(store)
    worker = make_worker()
    shard = worker.take([QUEUE])
    assert shard is not None
    watched(store)
    worker.recover()
    assert worker.take([QUEUE]) is None
    store.connection.hset(f"{PREFIX}dequeued:{QUEUE}", shard.job.id, store.server_time() - UNBEGUN_S - 1)
    watched(store)
    worker.recover()
    assert worker.take([QUEUE]) is not None


def test_renewal_keeps_the_lease(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """A renewed lease ends later than it did."""
    live_batch(store)
    worker = make_worker()
    shard = worker.take([QUEUE])
    assert shard is not None
    lease = worker.begin(shard)
    registry = StartedJobRegistry(QUEUE, connection=store.connection)
    store.connection.zadd(registry.key, {lease.execution.composite_key: 5})
    worker.start()
    try:
        worker.renew([lease], store.connection)
    finally:
        worker.end()
    assert (store.connection.zscore(registry.key, lease.execution.composite_key) or 0) > store.now()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("os.system", ("true",)), ("worker.tasks.run_shard", ("b_1", "0", 1)), ("worker.tasks.run_shard", (1,))],
)
def test_foreign_jobs_are_refused(
    store: Store, make_worker: Callable[..., ShardWorker], function: str, arguments: tuple[object, ...]
) -> None:
    """A job with another function or other arguments is dropped and marked failed; the next shard is served."""
    queue = Queue(QUEUE, connection=store.connection, serializer=JSONSerializer)
    bad = Job.create(function, args=arguments, connection=store.connection, origin=QUEUE, serializer=JSONSerializer)
    queue.enqueue_job(bad)
    live_batch(store)
    shard = make_worker().take([QUEUE])
    assert shard is not None
    assert shard.number == 0
    assert queue.intermediate_queue.get_job_ids() == [shard.job.id]
    assert store.connection.hget(bad.key, "status") == b"failed"


def test_data_that_breaks_the_parser_is_refused(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """JSON too deep for Python's parser costs the hostile job, not the worker."""
    queue = Queue(QUEUE, connection=store.connection, serializer=JSONSerializer)
    job = queue.enqueue_job(Job.create("os.getpid", connection=store.connection, origin=QUEUE))
    store.connection.hset(job.key, "data", b"[" * 100_000)
    assert make_worker().take([QUEUE]) is None


def test_pickled_jobs_are_refused(store: Store, make_worker: Callable[..., ShardWorker]) -> None:
    """Data that is not JSON is never unpickled: the job is refused."""
    queue = Queue(QUEUE, connection=store.connection)
    queue.enqueue_job(Job.create("os.getpid", connection=store.connection, origin=QUEUE))
    assert make_worker().take([QUEUE]) is None
