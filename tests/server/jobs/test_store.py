"""The storage layer on a real server: what is one step is one step, and a lost reply changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from jobs.attempt import Attempt
from jobs.batch import Usage, queue_name
from jobs.errors import BatchNotFoundError, RefusedError, StaleAttemptError
from jobs.redis.connect import connect
from jobs.shard import Group, ShardLine
from jobs.store.keys import UPLOADING, BatchKeys
from jobs.store.store import UPLOAD_LEASE_S, FinishedLine, NewBatch, Store, UploadedShard
from submit.results.read import finished_records, ordered_records
from tests.pool import full
from tests.proxy import Proxy

MODEL = Group("m")
QUEUE = queue_name("m", "normal")


def new_batch(name: str = "b_1", **fields: Any) -> NewBatch:
    return NewBatch(id=name, name=None, source="a.jsonl", priority="normal", defaults={}, metadata={}, **fields)


def shard(number: int, lines: int = 2, group: Group = MODEL, group_number: int = 0) -> UploadedShard:
    """Shard ``number`` of shards of ``lines`` lines each."""
    first = number * lines
    raw = [ShardLine(index, index + 1, b'{"prompt":"x"}') for index in range(first, first + lines)]
    return UploadedShard(number, group_number, group, raw)


def upload(store: Store, batch: NewBatch, shards: int = 2, lines: int = 2) -> None:
    store.create(batch)
    store.upload(batch, [shard(number, lines) for number in range(shards)])


def live(store: Store, name: str = "b_1", shards: int = 2, lines: int = 2) -> NewBatch:
    """A batch that is enqueued."""
    batch = new_batch(name)
    upload(store, batch, shards, lines)
    assert store.commit(name, total=shards * lines, shards=shards, groups=[MODEL], digest="d")
    return batch


def record(index: int, *, ok: bool = True) -> FinishedLine:
    fields: dict[str, Any] = {"id": f"row-{index}", "index": index}
    if not ok:
        fields["error"] = {"code": "timeout", "message": "", "param": None}
    return FinishedLine(index, ok, 3, 5, 1, orjson.dumps(fields), scored_tokens=2)


def claimed(store: Store, number: int, batch_id: str = "b_1") -> Attempt:
    attempt = store.claim(batch_id, number)
    assert attempt is not None
    return attempt


def all_keys(store: Store) -> set[bytes]:
    keys: list[bytes] = store.connection.keys("*")
    return set(keys)


# --- submitting ---


def test_nothing_of_an_upload_can_run_before_it_is_committed(store: Store) -> None:
    """Until commit the batch is validating, no queue holds its jobs and no list of batches shows it."""
    upload(store, new_batch())
    assert store.batch("b_1").status == "validating"
    assert store.take([QUEUE]) is None
    assert store.claim("b_1", 0) is None
    assert store.batches() == []


def test_commit_makes_the_whole_batch_live(store: Store) -> None:
    """All jobs are in their queue, in order; the batch is listed with its totals."""
    live(store, shards=3)
    batch = store.batch("b_1")
    assert (batch.status, batch.total, batch.models, batch.source) == ("in_progress", 6, ("m",), "a.jsonl")
    assert [found.id for found in store.batches()] == ["b_1"]
    assert [store.take([QUEUE]) for _ in range(4)] == [(QUEUE, f"b_1-{number}") for number in range(3)] + [None]
    assert store.connection.zrange(UPLOADING, 0, -1) == []
    assert b"rq:queue:" + QUEUE.encode() in store.connection.smembers("rq:queues")


def test_jobs_are_rqs_own(store: Store) -> None:
    """RQ's tools see the shards as queued jobs of our one function."""
    from rq import Queue
    from rq.serializers import JSONSerializer

    live(store)
    jobs = Queue(QUEUE, connection=store.connection, serializer=JSONSerializer).jobs
    assert [(job.id, job.func_name, job.args) for job in jobs] == [
        ("b_1-0", "worker.tasks.run_shard", ["b_1", 0, 2]),
        ("b_1-1", "worker.tasks.run_shard", ["b_1", 1, 2]),
    ]


def test_thousands_of_shards_are_committed_in_order(store: Store) -> None:
    """More jobs than fit into one command of the script keep their order."""
    live(store, shards=2500, lines=1)
    ids = store.connection.lrange(f"rq:queue:{QUEUE}", 0, -1)
    assert ids == [f"b_1-{number}".encode() for number in range(2500)]


def test_each_group_and_priority_has_its_queue(store: Store) -> None:
    """Lines of another model or adapter never reach a worker that lacks it."""
    batch = NewBatch("b_1", None, "a", "high", {}, {}, pool="mine")
    store.create(batch)
    groups = [Group("m"), Group("m", "lora"), Group("other")]
    store.upload(batch, [shard(number, 1, group, number) for number, group in enumerate(groups)])
    assert store.commit("b_1", total=3, shards=3, groups=groups)
    for number, key in enumerate(["m", "m+lora", "other"]):
        assert store.take([f"promptmill:high:mine:{key}"]) == (f"promptmill:high:mine:{key}", f"b_1-{number}")


def test_discard_leaves_nothing(store: Store) -> None:
    """An upload given up takes every key with it, error records included."""
    batch = new_batch()
    upload(store, batch)
    store.upload_rejected("b_1", 2, [record(4, ok=False)])
    store.discard("b_1")
    assert all_keys(store) == set()


def test_submitters_discard_needs_no_table(store: Store) -> None:
    """A sweep between two commands of an upload takes the table away; what came after it is removed all the same."""
    batch = new_batch()
    upload(store, batch, shards=3)
    store.upload_rejected("b_1", 3, [record(6, ok=False)])
    store.connection.delete(BatchKeys("b_1").table)
    store.discard("b_1", shards=4)
    assert all_keys(store) == set()


def test_silent_uploads_are_swept_and_can_no_longer_be_committed(store: Store) -> None:
    """After the lease a sweep removes the upload; its submitter learns it at commit."""
    upload(store, new_batch())
    later = Store(store.connection, server_time=lambda: time.time() + UPLOAD_LEASE_S + 5)
    assert store.sweep() == []
    assert later.sweep() == ["b_1"]
    assert all_keys(store) == set()
    assert not store.commit("b_1", total=4, shards=2, groups=[MODEL])
    assert all_keys(store) == set()


def test_signs_of_life_keep_an_upload(store: Store) -> None:
    """Each upload, even of nothing, starts the lease again; live batches are never swept."""
    now = [1000.0]
    clocked = Store(store.connection, server_time=lambda: now[0])
    live(clocked, "b_0")
    batch = new_batch()
    upload(clocked, batch)
    for _ in range(5):
        now[0] += UPLOAD_LEASE_S * 0.9
        assert clocked.sweep() == []
        clocked.upload(batch, [])
    assert clocked.commit("b_1", total=4, shards=2, groups=[MODEL])
    now[0] += UPLOAD_LEASE_S * 9
    assert clocked.sweep() == []


def test_upload_that_is_being_swept_cannot_be_committed(store: Store) -> None:
    """Between a sweep's decision and its end a late commit is refused: the batch would vanish while it runs."""
    upload(store, new_batch())

    class Interrupted(Store):
        def discard(self, batch_id: str, shards: int = 0) -> None:
            assert not store.commit(batch_id, total=4, shards=2, groups=[MODEL])
            super().discard(batch_id, shards)

    assert Interrupted(store.connection, server_time=lambda: time.time() + UPLOAD_LEASE_S + 5).sweep() == ["b_1"]
    assert store.take([QUEUE]) is None
    assert all_keys(store) == set()


def test_rejected_lines_count_as_failed_from_the_start(store: Store) -> None:
    """Their records are there at once, in both orders; a batch of nothing else is completed at once."""
    store.create(new_batch())
    store.upload_rejected("b_1", 0, [record(0, ok=False), record(2, ok=False)])
    assert store.commit("b_1", total=2, shards=1, groups=[])
    batch = store.batch("b_1")
    assert (batch.status, batch.failed, batch.rejected, batch.completed) == ("completed", 2, 2, 0)
    assert [found.index for found in ordered_records(store.connection, "b_1")] == [0, 2]
    assert [found.index for found in finished_records(store.connection, "b_1")] == [0, 2]


def test_server_out_of_memory_leaves_the_batch_as_it_was(store: Store) -> None:
    """A refused commit changes nothing: it can be repeated, or swept."""
    upload(store, new_batch())
    with full(store), pytest.raises(OutOfMemoryError):
        store.commit("b_1", total=4, shards=2, groups=[MODEL])
    assert (store.batch("b_1").status, store.batches(), store.take([QUEUE])) == ("validating", [], None)
    assert store.commit("b_1", total=4, shards=2, groups=[MODEL])
    assert store.take([QUEUE]) == (QUEUE, "b_1-0")


# --- a connection that breaks ---


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    passing = Proxy(server_url)
    yield passing
    passing.close()


@pytest.fixture
def shaky(proxy: Proxy) -> Iterator[Store]:
    """The storage layer behind the proxy."""
    connection: Redis = connect(proxy.url)
    yield Store(connection)
    connection.close()


def test_lost_replies_double_nothing(store: Store, shaky: Store, proxy: Proxy) -> None:
    """The client sends again what it has no reply to: no shard is queued twice, nothing is counted twice."""
    batch = new_batch()
    shaky.create(batch)
    for step in (
        lambda: shaky.upload(batch, [shard(0), shard(1)]),
        lambda: shaky.upload_rejected("b_1", 2, [record(4, ok=False)]),
    ):
        proxy.lose_next_reply()
        step()
    proxy.lose_next_reply()
    assert shaky.commit("b_1", total=5, shards=3, groups=[MODEL])
    assert proxy.lost == 3
    assert store.connection.lrange(f"rq:queue:{QUEUE}", 0, -1) == [b"b_1-0", b"b_1-1"]
    found = store.batch("b_1")
    assert (found.status, found.total, found.failed, found.rejected) == ("in_progress", 5, 1, 1)
    for number in range(2):
        attempt = claimed(store, number)
        store.write(attempt, [record(number * 2), record(number * 2 + 1)])
        assert store.finish(attempt, 2)
    assert [line.index for line in ordered_records(store.connection, "b_1")] == [0, 1, 2, 3, 4]
    assert sorted(line.index for line in finished_records(store.connection, "b_1")) == [0, 1, 2, 3, 4]
    assert store.batch("b_1").status == "completed"


# --- working ---


def test_records_and_counts_change_together(store: Store) -> None:
    """What a worker writes is counted once: completed, failed and tokens."""
    live(store)
    attempt = claimed(store, 0)
    store.write(attempt, [record(0), record(1, ok=False)])
    store.write(attempt, [record(1)])  # a line has one record: the second is not taken
    batch = store.batch("b_1")
    assert (batch.completed, batch.failed) == (1, 1)
    assert batch.usage == Usage(prompt_tokens=6, completion_tokens=10, cached_tokens=2, scored_tokens=4)
    assert [line.ok for line in ordered_records(store.connection, "b_1")] == [True, False]


@pytest.mark.parametrize("what", ["the order of records", "lines under way", "a count", "shards done"])
def test_what_lies_in_the_way_leaves_counts_and_records_alike(store: Store, what: str) -> None:
    """Nothing is stored that is not counted; once it is gone the shard is finished as ever."""
    live(store, shards=1)
    attempt, keys = claimed(store, 0), BatchKeys("b_1")
    key = {"the order of records": keys.finished, "lines under way": keys.flights(0)}.get(what)
    field = {"a count": "completed", "shards done": "shards_done"}.get(what)

    def end() -> bool:
        store.write(attempt, [record(0), record(1)])
        return store.finish(attempt, 2)

    if key is not None:
        store.connection.set(key, "mine")
    if field is not None:
        store.connection.hset(keys.info, field, "mine")
    with pytest.raises(RefusedError, match="damaged"):
        end()
    if key is not None:
        store.connection.delete(key)
    if field is not None:
        store.connection.hset(keys.info, field, 0)
    assert store.connection.hlen(keys.records(0)) == store.batch("b_1").finished
    assert end()
    batch = store.batch("b_1")
    assert (batch.status, batch.completed) == ("completed", 2)
    assert len(list(finished_records(store.connection, "b_1"))) == 2


def test_stale_attempts_cannot_write_or_finish(store: Store) -> None:
    """Once another attempt has claimed the shard, the first one's writes are refused and change nothing."""
    live(store)
    zombie = claimed(store, 0)
    store.write(zombie, [record(0)])
    heir = claimed(store, 0)
    assert heir.finished == {0}
    with pytest.raises(StaleAttemptError):
        store.write(zombie, [record(1)])
    with pytest.raises(StaleAttemptError):
        store.finish(zombie, 2)
    assert (store.batch("b_1").completed, heir.fence > zombie.fence) == (1, True)
    store.write(heir, [record(1)])
    assert store.finish(heir, 2)


def test_handed_back_attempts_are_stale_and_do_not_count(store: Store) -> None:
    """A worker that stops cleanly leaves no mark on the shard."""
    live(store)
    attempt = claimed(store, 0)
    store.begin(attempt, [0, 1], "one", store.connection)
    store.release(attempt)
    with pytest.raises(StaleAttemptError):
        store.write(attempt, [record(0)])
    assert claimed(store, 0).tries == {}


def test_shard_is_finished_only_when_each_line_has_a_record(store: Store) -> None:
    """finish says no while a line is missing; then it compacts, and the shard cannot be claimed again."""
    live(store, shards=1)
    attempt = claimed(store, 0)
    store.write(attempt, [record(1)])
    assert not store.finish(attempt, 2)
    store.write(attempt, [record(0)])
    assert store.finish(attempt, 2)
    assert store.finish(attempt, 2)  # a reply can be lost here too
    assert store.claim("b_1", 0) is None
    assert store.connection.exists(BatchKeys("b_1").records(0)) == 0
    assert [line.index for line in finished_records(store.connection, "b_1")] == [1, 0]
    assert store.batch("b_1").status == "completed"


def test_records_are_read_in_both_orders_while_shards_are_open(store: Store) -> None:
    """Half-done and compacted shards read alike; finished_records goes on where it was."""
    live(store)
    second = claimed(store, 1)
    store.write(second, [record(3), record(2)])
    assert store.finish(second, 2)
    store.write(claimed(store, 0), [record(1)])
    assert [line.index for line in ordered_records(store.connection, "b_1")] == [1, 2, 3]
    assert [line.index for line in finished_records(store.connection, "b_1", chunk=2)] == [3, 2, 1]
    assert [line.index for line in finished_records(store.connection, "b_1", start=2)] == [1]


# --- finding ---


def test_batches_are_found_by_id_and_by_newest_name(store: Store) -> None:
    """A name used twice means the later batch; what is unknown is said to be."""
    for number, name in enumerate(["nightly", "other", "nightly"]):
        batch = NewBatch(f"b_{number}", name, "a", "normal", {}, {"n": number})
        clocked = Store(store.connection, now=lambda number=number: 1000.0 + number)  # type: ignore[misc]
        upload(clocked, batch, shards=1)
        assert clocked.commit(batch.id, total=2, shards=1, groups=[MODEL])
    assert [batch.id for batch in store.batches()] == ["b_0", "b_1", "b_2"]
    assert store.find("nightly").id == "b_2"
    assert store.find("b_0").metadata == {"n": 0}
    with pytest.raises(BatchNotFoundError, match="promptmill status"):
        store.find("missing")
