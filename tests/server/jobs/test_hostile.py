"""Whatever somebody puts into Redis: it is refused and said, and the next good shard is served."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from jobs.attempt import Standing
from jobs.batch import new_batch_id, queue_name
from jobs.errors import LineError, RefusedError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.redis.rq_jobs import JOB_FUNCTION
from jobs.shard import pack
from jobs.store.cancel import cancel, expire_due
from jobs.store.keys import BATCHES, EXPIRING, UPLOADING, BatchKeys, worker_key
from jobs.store.maintenance import upkeep
from jobs.store.retry import resume, retry
from jobs.store.store import UPLOAD_LEASE_S, Store
from submit.status.workers import Workers
from tests.hostile import ENTRIES, job_data, put_job
from tests.pool import MODEL, make_batch, prompts, watched, work
from worker.engine.sequence import Failure
from worker.faults.refused_shards import note_refusal
from worker.service import Service
from worker.shards.records import EndedLine

QUEUE = queue_name(MODEL, "normal")
LIST = f"rq:queue:{QUEUE}"


def refuse(_job: Job) -> list[Choice]:
    """Every line fails."""
    raise LineError("internal_error", None, "no")


def takes_the_next(service: Service) -> bool:
    """Whether the worker takes the one good shard, however many bad ones lie before it."""
    for _ in range(50):
        service._take_one()
        if service.held:
            return True
    return False


@pytest.mark.parametrize("name", ENTRIES)
def test_a_hostile_entry_is_refused_and_the_next_shard_served(
    name: str, store: Store, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, it leaves the queue, and nothing that it names is imported, called or unpacked."""
    ENTRIES[name](store.connection, QUEUE)
    batch = make_batch(store, prompts(1))
    with caplog.at_level(logging.WARNING, "promptmill.worker"):
        assert takes_the_next(service)
    assert [held.job_id for held in service.held] == [f"{batch}-0"]
    assert {record.__dict__["action"] for record in caplog.records} <= {"refuse_job", "refuse_shard"}
    assert len(caplog.records) == 1
    assert len(caplog.text) < 2000
    assert store.connection.llen(LIST) == 0
    assert store.connection.llen(f"{LIST}:intermediate") == 0


@pytest.mark.parametrize(
    "call",
    [
        None,
        {},
        "call",
        [JOB_FUNCTION],
        ["os.system", None, ["B", 0, 1], {}],
        [[JOB_FUNCTION], None, ["B", 0, 1], {}],
        [JOB_FUNCTION, "os", ["B", 0, 1], {}],
        [JOB_FUNCTION, None, ["B", 0, 1], {"a": 1}],
        [JOB_FUNCTION, None, ["B", 0, 1], []],
        [JOB_FUNCTION, None, {"B": 0}, {}],
        [JOB_FUNCTION, None, 5, {}],
        [JOB_FUNCTION, None, ["B", 0], {}],
        [JOB_FUNCTION, None, ["B", 1, 1], {}],
        [JOB_FUNCTION, None, ["B", -1, 1], {}],
        [JOB_FUNCTION, None, ["B", "0", 1], {}],
        [JOB_FUNCTION, None, ["B", 0.0, 1], {}],
        [JOB_FUNCTION, None, ["B", False, 1], {}],
        [JOB_FUNCTION, None, ["B", 0, 0], {}],
        [JOB_FUNCTION, None, ["B", 0, 10**15], {}],
        [JOB_FUNCTION, None, ["b_01J00000000000000000000000", 0, 1], {}],
    ],
)
def test_a_call_that_is_no_shards_is_refused(
    call: Any, store: Store, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """A job under the id of a shard needs the one function and the shard's own arguments, of their own types."""
    batch_id = new_batch_id()
    data = orjson.dumps(call).replace(b'"B"', f'"{batch_id}"'.encode())
    put_job(store.connection, QUEUE, f"{batch_id}-0", zlib.compress(data))
    make_batch(store, prompts(1))
    assert takes_the_next(service)
    assert [record.__dict__["action"] for record in caplog.records] == ["refuse_job"]
    assert store.connection.hget(f"rq:job:{batch_id}-0", "status") == b"failed"


def test_torn_data_is_refused(store: Store, service: Service) -> None:
    """Data that ends early is no call, whatever its beginning says."""
    batch_id = new_batch_id()
    put_job(store.connection, QUEUE, f"{batch_id}-0", job_data(batch_id)[:-3])
    assert service.rq.take([QUEUE]) is None


@pytest.mark.parametrize("key", [LIST, f"{LIST}:intermediate", f"rq:wip:{QUEUE}"])
def test_a_queue_of_another_type_stops_no_other(
    key: str, store: Store, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The other queues are served; that one is named in the log, once."""
    store.connection.set(key, "x")
    batch = make_batch(store, prompts(1), priority="low")
    assert takes_the_next(service)
    assert [held.job_id for held in service.held] == [f"{batch}-0"]
    for _ in range(2):
        watched(store, QUEUE)
        service.rq.recover()
    assert [QUEUE in record.message for record in caplog.records] == [True]
    assert service.rq.waiting([QUEUE]) == {}


def test_hostile_registries_do_not_stop_recovery(
    store: Store, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries that are no leases or jobs of ours are removed unread, and dead workers' shards come back."""
    connection, registry = store.connection, f"rq:wip:{QUEUE}"
    batch = make_batch(store, prompts(1))
    assert service._take_one()
    [held] = service.held
    connection.zadd(registry, {held.lease.execution.composite_key: 1})
    listed = f"{new_batch_id()}-0"
    connection.set(f"rq:job:{listed}", "x")
    connection.set(f"rq:execution:{listed}:abc", "x")
    for entry in (b"", b"\xff\xfe", b"no colon", b"a:b:c", b":", b"x" * 1_000_000, f"{listed}:abc".encode()):
        connection.zadd(registry, {entry: 1})
    for entry in (b"", b"\xff", b"y" * 1_000_000, listed.encode()):
        connection.rpush(f"{LIST}:intermediate", entry)
    seen = f"{LIST}:intermediate:first_seen:{listed}"
    connection.set(seen, "no number")
    watched(store, QUEUE)
    service.rq.recover()
    assert connection.zrange(registry, 0, -1) == []
    assert f"{batch}-0".encode() in connection.lrange(LIST, 0, -1)
    assert len(caplog.text) < 3000
    service.held._shards.clear()
    assert takes_the_next(service)


@pytest.mark.parametrize(
    "worker_name", [b"x." + b"9" * 5000, "x.\u0663".encode(), b"\xff.1", b"x." + b"9" * 19, b"z" * 1_000_000, b""]
)
def test_hostile_names_of_holders_do_not_stop_recovery(store: Store, service: Service, worker_name: bytes) -> None:
    """Whatever an execution says of its worker, the next look at the leases is as good as the last."""
    make_batch(store, prompts(1))
    assert service._take_one()
    [held] = service.held
    store.connection.hset(held.lease.execution.key, "worker_name", worker_name)
    watched(store, QUEUE)
    service.rq.recover()
    assert store.connection.zcard(f"rq:wip:{QUEUE}") == 1


def test_hostile_workers_of_rq_are_no_workers(store: Store, service: Service) -> None:
    """Only promptmill's own whose keys exist count as serving a queue, by bounded names: others refuse no shard."""
    for member in (b"\xff", b"x", b"rq:worker:", b"rq:worker:gone", b"rq:worker:odd", b"rq:worker:old"):
        store.connection.sadd(f"rq:workers:{QUEUE}", member)
    store.connection.hset("rq:worker:odd", mapping={"pid": "x", "birth": "never", "queues": b"\xff"})
    store.connection.hset("rq:worker:old", mapping={"machine": "m", "life": b"x" * 5000})
    assert service.rq.served_by(QUEUE) == {service.name: service.rq.instance, "old": "old"}
    keys = BatchKeys(new_batch_id())
    store.connection.sadd(keys.refusals(0), b"\xff")
    assert not note_refusal(store.connection, keys.batch_id, 0, "mini", ["mini", "other"])
    assert note_refusal(store.connection, keys.batch_id, 0, "other", ["mini", "other"])


def test_hostile_uploads_are_swept_or_left(store: Store, service: Service) -> None:
    """What is listed among the uploads and is none is taken off the list; a list of another type is only said."""
    store.connection.zadd(UPLOADING, {b"\xff": 1, b"x": 1, b"wrong": 1})
    store.connection.rpush(BatchKeys("wrong").info, "x")
    store.connection.hset(BatchKeys("x").info, "status", "validating")
    store.connection.zadd(BatchKeys("x").table, {b"{}": 1})
    store.sweep()
    assert store.connection.zcard(UPLOADING) == 0
    store.connection.set(UPLOADING, "x")
    with pytest.raises(RefusedError):
        store.sweep()
    service._maintain()


def test_hostile_batches_are_left_out_of_the_list(store: Store) -> None:
    """`status` shows the batches that are; one asked for by name is said to be damaged."""
    good = make_batch(store, prompts(1))
    bad = [new_batch_id() for _ in range(3)]
    store.connection.zadd(BATCHES, {b"\xff": 1, **dict.fromkeys(bad, 1)})
    store.connection.rpush(BatchKeys(bad[0]).info, "x")
    store.connection.hset(BatchKeys(bad[1]).info, mapping={"status": "in_progress", "created_at": "nan"})
    store.connection.hset(BatchKeys(bad[2]).info, mapping={"status": "\x1b[2J"})
    assert [batch.id for batch in store.batches()] == [good]
    for batch_id in bad:
        with pytest.raises(RefusedError, match="damaged"):
            store.batch(batch_id)


@pytest.mark.parametrize("field", ["defaults", "x"])
def test_a_giant_batch_is_not_loaded(store: Store, field: str) -> None:
    """Whichever of its fields it is: asked for by name it is refused with its size, and lists go without it."""
    batch_id = make_batch(store, prompts(1))
    store.connection.hset(BatchKeys(batch_id).info, field, b"x" * 5_000_000)
    with pytest.raises(RefusedError, match=r"50\d{5} bytes"):
        store.batch(batch_id)
    assert store.batches() == []


def test_a_batch_of_many_fields_is_not_loaded(store: Store) -> None:
    """Ours have two dozen."""
    batch_id = make_batch(store, prompts(1))
    store.connection.hset(BatchKeys(batch_id).info, mapping={str(number): "" for number in range(100)})
    with pytest.raises(RefusedError, match="too many fields"):
        store.batch(batch_id)


def test_defaults_that_could_not_be_read_back_are_refused(store: Store) -> None:
    """Before anything of the batch is stored."""
    with pytest.raises(RefusedError, match="give in the lines"):
        make_batch(store, prompts(1), metadata={"note": "x" * 3_000_000})
    assert store.connection.keys("promptmill:*") == []


def test_hostile_entries_of_what_expires_stop_no_other(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Each that is no batch is said once and taken off the list; the batch behind them expires."""
    good, text = (make_batch(store, prompts(1)) for _ in range(2))
    store.connection.hset(BatchKeys(good).info, "expires_at", 3.0)
    store.connection.hset(BatchKeys(text).info, "expires_at", "soon")
    store.connection.rpush(BatchKeys("wrong").info, "x")
    store.connection.zadd(EXPIRING, {b"\xff" * 1000: 1, "wrong": 1, text: 2, "gone": 2, good: 3})
    assert expire_due(store) == [good]
    assert store.connection.zcard(EXPIRING) == 0
    assert [record.__dict__["action"] for record in caplog.records] == ["refuse_list"] * 3
    assert len(caplog.text) < 2000


def test_what_expires_may_be_of_another_type(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It is said with its key, and the rest of the upkeep is done."""
    store.connection.set(EXPIRING, "x")
    store.connection.zadd(UPLOADING, {b"\xff": 1})
    upkeep(store)
    assert EXPIRING in caplog.text
    assert store.connection.zcard(UPLOADING) == 0


def test_a_queue_of_another_type_keeps_no_batch_from_ending(store: Store) -> None:
    """The batch's other queues are cleared, and that one is left as it is."""
    batch_id = make_batch(store, prompts(1))
    store.connection.set("rq:queue:wrong", "x")
    store.connection.sadd(BatchKeys(batch_id).queues, "wrong")
    assert cancel(store, batch_id)
    assert store.connection.llen(LIST) == 0
    assert store.connection.get("rq:queue:wrong") == b"x"


def _no_lines(store: Store, keys: BatchKeys) -> None:
    store.connection.set(keys.payload(0), pack(b'{"runs":[]}'))


def _giant_records(store: Store, keys: BatchKeys) -> None:
    store.connection.delete(keys.compacted(0))
    store.connection.setrange(keys.compacted(0), 200_000_000, "x")


def _damaged_piece(store: Store, keys: BatchKeys) -> None:
    store.connection.zremrangebyrank(keys.compacted(0), 0, -1)
    store.connection.zadd(keys.compacted(0), {pack(b'{"index":[],"error":{}}'): 0})


def _torn_piece(store: Store, keys: BatchKeys) -> None:
    store.connection.zremrangebyrank(keys.compacted(0), 0, -1)
    store.connection.zadd(keys.compacted(0), {pack(b'{"index":0,"error":{}}')[:-3]: 0})


def _pieces_of_another_type(store: Store, keys: BatchKeys) -> None:
    store.connection.delete(keys.compacted(0))
    store.connection.rpush(keys.compacted(0), "x")


def _records_of_another_type(store: Store, keys: BatchKeys) -> None:
    store.connection.delete(keys.compacted(0))
    store.connection.set(keys.records(0), "x")


def _odd_records(store: Store, keys: BatchKeys) -> None:
    store.connection.set(keys.compacted(0), pack(b'{"index":[],"error":{}}'))


def _odd_table(store: Store, keys: BatchKeys) -> None:
    store.connection.zadd(keys.table, {b"[1]": 0})


def _number_that_is_a_list(store: Store, keys: BatchKeys) -> None:
    store.connection.zadd(keys.table, {b"[[1],0,0,1]": 1})


DAMAGE = [
    _no_lines, _giant_records, _damaged_piece, _torn_piece, _pieces_of_another_type, _records_of_another_type,
    _odd_records, _odd_table, _number_that_is_a_list,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_batch_is_not_retried(store: Store, damage: Callable[[Store, BatchKeys], None]) -> None:
    """Its retry is refused in words."""
    batch_id = make_batch(store, prompts(1))
    work(store, batch_id, answer=refuse)
    damage(store, BatchKeys(batch_id))
    with pytest.raises(RefusedError):
        retry(store, batch_id)


@pytest.mark.parametrize("damage", DAMAGE)
def test_hostile_retries_stop_no_other(
    store: Store, damage: Callable[[Store, BatchKeys], None], caplog: pytest.LogCaptureFixture
) -> None:
    """What was listed as a retry and is none is taken off; one that cannot go on is said, and the good one goes on."""
    bad, good = (make_batch(store, prompts(1)) for _ in range(2))
    for batch_id in (bad, good):
        work(store, batch_id, answer=refuse)
        store.connection.hset(BatchKeys(batch_id).info, "status", "in_progress")
    damage(store, BatchKeys(bad))
    store.connection.rpush(BatchKeys("wrong").info, "x")
    store.connection.zadd(UPLOADING, {b"\xff": 1, "wrong": 1, bad: 2, good: 3})
    late = Store(store.connection, server_time=lambda: time.time() + UPLOAD_LEASE_S + 5)
    assert resume(late) == [good]
    assert store.connection.zrange(UPLOADING, 0, -1) == [bad.encode()]
    actions = [record.__dict__["action"] for record in caplog.records]
    assert actions == ["refuse_retry", "refuse_retry", "retry_stuck"]
    assert cancel(store, bad)


@pytest.mark.parametrize("fence", [b"x", b"", b"9" * 5000, None])
def test_a_hostile_fence_ends_its_attempt_alone(store: Store, fence: bytes | None) -> None:
    """The pulse lets go of that shard, whatever stands where its fence was, and keeps the others."""
    attempts = [store.claim(make_batch(store, prompts(1)), 0) for _ in range(2)]
    held = [attempt for attempt in attempts if attempt is not None]
    keys = BatchKeys(held[0].batch_id)
    if fence is None:
        store.connection.set(keys.fences, "x")
    else:
        store.connection.hset(keys.fences, "0", fence)
    assert store.standing(held, store.connection) == [Standing.LOST, Standing.OURS]


@pytest.mark.parametrize("key", ["records", "info", "finished"])
def test_a_shard_that_cannot_be_stored_ends_alone(
    store: Store, service: Service, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """It is no outage: the shard is dropped and said, and the next one's records are stored."""
    bad, good = (make_batch(store, prompts(1)) for _ in range(2))
    for _ in range(2):
        assert service._take_one()
    held, other = service.held._shards[f"{bad}-0"], service.held._shards[f"{good}-0"]
    keys = BatchKeys(bad)
    if key == "info":
        store.connection.hset(keys.info, "failed", "x")
    else:
        store.connection.set(keys.records(0) if key == "records" else keys.finished, "x")
    for shard in (held, other):
        service.writer.put(EndedLine(shard, 0, 0.0, Failure("internal_error", "no")))
    service.writer.stop()
    service.writer.run()
    assert not service.held
    assert service.writer.unstored == 0
    assert store.batch(good).status == "completed"
    assert [record.__dict__["action"] for record in caplog.records] == ["refuse_shard"]
    assert store.connection.zcard(f"rq:wip:{QUEUE}") == 0


def test_a_lease_that_cannot_be_closed_stops_no_writer(
    store: Store, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """What was generated is stored all the same."""
    batch_id = make_batch(store, prompts(1))
    assert service._take_one()
    [held] = service.held
    store.connection.delete(f"rq:wip:{QUEUE}")
    store.connection.set(f"rq:wip:{QUEUE}", "x")
    service.writer.put(EndedLine(held, 0, 0.0, Failure("internal_error", "no")))
    service.writer.stop()
    service.writer.run()
    assert store.batch(batch_id).status == "completed"
    assert [record.__dict__["action"] for record in caplog.records] == ["refuse_job"]


def test_a_failed_attempt_that_cannot_be_noted_ends_its_shard(
    store: Store, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """As records that cannot be stored do."""
    batch_id = make_batch(store, prompts(1))
    assert service._take_one()
    [held] = service.held
    store.connection.set(BatchKeys(batch_id).tries(0), "x")
    failure: Any = SimpleNamespace(code="internal_error", message="no", passing=True)
    service.writer.put(EndedLine(held, 0, 0.0, failure))
    service.writer.stop()
    service.writer.run()
    assert [record.__dict__["action"] for record in caplog.records] == ["refuse_shard"]
    assert not service.held
    assert store.connection.zcard(f"rq:wip:{QUEUE}") == 0


def test_hostile_states_of_workers_are_not_shown(store: Store) -> None:
    """Only what a worker would publish is read; what could move a terminal's cursor is replaced."""
    connection = store.connection
    good: dict[str, Any] = {"name": "mini\x1b[2J", "state": "busy", "queues": [QUEUE], "in_flight": []}
    bad: list[Any] = [
        5, [], {}, {**good, "name": {}}, {**good, "queues": [[1]]}, {**good, "queues": 5}, {**good, "models": [5]},
        {**good, "occupancy": "x"}, {**good, "occupancy": -1}, {**good, "tokens_per_second": 1e300},
        {**good, "memory_bytes": 1.5}, {**good, "in_flight": [5]}, {**good, "in_flight": [{"batch_id": "b"}]},
        {**good, "in_flight": [{"batch_id": "b", "index": 1e308, "phase": "decode"}]}, {**good, "model": []},
    ]  # fmt: skip
    for number, state in enumerate(bad):
        connection.set(worker_key(f"bad{number}"), orjson.dumps(state))
    connection.set(worker_key("deep"), b"[" * 100_000)
    connection.set(worker_key("text"), b"\xff")
    connection.setrange(worker_key("giant"), 300_000_000, "x")
    connection.rpush(worker_key("list"), "x")
    connection.set(worker_key("good"), orjson.dumps(good))
    assert [state.name for state in Workers(connection).read()] == ["mini?[2J"]


def test_a_hostile_command_leaves_the_worker_listening(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """What is published on a worker's channel and is no command is refused, and raises nothing."""
    for data in (b"x", b"[" * 100_000, b"5", b"{}", b'{"command": {}}', b"\xff"):
        service.rq.handle_payload({"type": "message", "channel": b"c", "data": data})
    assert sum(record.name == "promptmill.worker" for record in caplog.records) == 5
