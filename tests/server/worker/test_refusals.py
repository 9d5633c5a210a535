"""Shards that workers refuse, on a real server and without an engine: none is thrown away."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from redis import Redis

from jobs.batch import queue_name
from jobs.shard import Group, ShardLine, encode_lines
from jobs.store.keys import BatchKeys
from jobs.store.retry import retry
from jobs.store.store import Store
from submit.results.read import ordered_records
from submit.status.waiting import BatchOutlook
from submit.status.workers import Workers
from tests.pool import MODEL, make_batch, prompts
from worker.engine.sequence import Failure
from worker.faults.refused_shards import PAUSES_S, UNSTORED_S
from worker.models.residency import WeightSize
from worker.service import Service, ServiceSettings
from worker.shards.records import EndedLine

QUEUE = queue_name(MODEL, "normal")
LIST = f"rq:queue:{QUEUE}"

Opened = Callable[[str], Redis]
MakeService = Callable[..., Service]


@pytest.fixture
def clock() -> SimpleNamespace:
    """The time of the workers' own clocks; ``now`` may be set."""
    return SimpleNamespace(now=1000.0)


@pytest.fixture
def make_service(store: Store, server_url: str, clock: SimpleNamespace, opened: Opened) -> MakeService:
    """``make(name)``: a live worker for MODEL whose threads are not started; each step is taken by the test."""

    def make(name: str = "mini", *models: str) -> Service:
        groups = tuple(map(Group, (MODEL, *models)))
        service = Service(store.connection, opened(server_url), ServiceSettings(groups, name=name))
        service.order._clock = service.refusals._clock = lambda: clock.now
        service.models.residency.sizes[groups[0]] = WeightSize(1)  # there is no limit, so all fit
        service.rq._register()
        return service

    return make


def write_all(service: Service) -> None:
    """Let the writer store what it was given."""
    service.writer.stop()
    service.writer.run()


def records(store: Store, batch: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]


def put_line(store: Store, batch: str, raw: bytes, number: int = 0) -> None:
    """Have a shard's only line be these bytes: a worker that does not know it cannot tell it from a newer one."""
    store.connection.set(BatchKeys(batch).payload(number), encode_lines([ShardLine(0, 1, raw)]))


def newer_job(store: Store, batch: str, number: int = 0) -> None:
    """Have the job of a shard be one that another version wrote."""
    call = ["runner.shards.run", None, [batch, number, 1, {"fast": True}], {}]
    store.connection.hset(f"rq:job:{batch}-{number}", "data", zlib.compress(orjson.dumps(call)))


def newer_payload(store: Store, batch: str) -> None:
    store.connection.set(BatchKeys(batch).payload(0), b"of another form")


def newer_defaults(store: Store, batch: str) -> None:
    store.connection.hset(BatchKeys(batch).info, "defaults", b'{"model":"pocket","temperament":"mild"}')


def newer_line(store: Store, batch: str) -> None:
    put_line(store, batch, b'{"id":"row-0","prompt":"x","temperament":"mild"}')


WAYS = [
    pytest.param(newer_job, "row-0", "the shard's job: its data is not a shard's", id="a job of another form"),
    pytest.param(newer_payload, "line-1", "a payload is not a zstd frame", id="prompts of another form"),
    pytest.param(newer_defaults, "row-0", "'temperament'", id="an unknown default"),
    pytest.param(newer_line, "row-0", "'temperament'", id="an unknown field"),
]


@pytest.mark.parametrize(("damage", "line_id", "said"), WAYS)
def test_a_refused_shard_fails_only_when_every_live_worker_has_refused_it(
    damage: Callable[[Store, str], None], line_id: str, said: str, store: Store, make_service: MakeService
) -> None:
    """The first hands it back, uncharged; the last writes error records that name the workers and the remedy."""
    batch, one, two = make_batch(store, prompts(1)), make_service("one"), make_service("two")
    damage(store, batch)
    one._take_one()
    assert not one.held
    assert store.connection.lrange(LIST, 0, -1) == [f"{batch}-0".encode()]
    assert store.connection.zcard(f"rq:wip:{QUEUE}") == 0
    assert store.batch(batch).finished == 0
    assert list(one.refusals.reasons) == [batch]
    assert two._take_one()
    write_all(two)
    assert store.batch(batch).status == "completed"
    assert store.connection.keys("rq:job:*") == []
    [record] = records(store, batch)
    message = record["error"]["message"]
    assert (record["id"], record["index"], record["attempt"]) == (line_id, 0, 1)
    assert said in message
    assert f"no live worker takes it ({one.name}, {two.name}): upgrade the workers" in message
    assert f"then `promptmill retry {batch}`" in message


def test_retry_asks_the_workers_anew(store: Store, make_service: MakeService) -> None:
    """What was refused before the retry says nothing about the workers there are now."""
    batch, one = make_batch(store, prompts(1)), make_service("one")
    newer_job(store, batch)
    one._take_one()
    write_all(one)
    assert store.batch(batch).failed == 1
    assert store.connection.exists(BatchKeys(batch).refusals(0))
    assert retry(store, batch) == 1
    assert not store.connection.exists(BatchKeys(batch).refusals(0))
    assert make_service("two")._take_one()


def test_a_worker_in_its_next_life_has_refused_nothing(store: Store, make_service: MakeService) -> None:
    """One that was upgraded in place has its old name: what it refused before does not count."""
    batch, one, two = make_batch(store, prompts(1)), make_service("one"), make_service("two")
    newer_line(store, batch)
    one._take_one()
    store.connection.delete(one.rq.key)
    make_service("one")
    two._take_one()
    assert not two.held
    assert store.batch(batch).finished == 0


def test_lines_beside_a_refused_one_are_run(store: Store, make_service: MakeService) -> None:
    """Only the line that no live worker takes fails; the others go to the engine."""
    batch, service = make_batch(store, prompts(3)), make_service()
    raws = [b'{"id":"row-0","prompt":"x"}', b"{", b'{"id":"row-2","prompt":"x"}']
    lines = [ShardLine(index, index + 1, raw) for index, raw in enumerate(raws)]
    store.connection.set(BatchKeys(batch).payload(0), encode_lines(lines))
    assert service._take_one()
    [held] = service.held
    work = service.preparer._queue.get_nowait()
    assert work is not None
    assert [line.index for line in work.todo()] == [0, 2]
    for index in (0, 2):
        service.writer.put(EndedLine(held, index, 0.0, Failure("internal_error", "no")))
    write_all(service)
    assert [record["error"]["code"] for record in records(store, batch)] == [
        "internal_error",
        "invalid_json_line",
        "internal_error",
    ]
    assert service.preparer.unprepared(Group(MODEL)) == 2


def test_a_shard_whose_lines_nobody_can_name_stays_and_the_status_says_why(
    store: Store, make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """No error record can be written of it: it goes round, said once, until it is mended or its batch is cancelled."""
    batch = make_batch(store, [job | {"model": [MODEL, "other"][n % 2]} for n, job in enumerate(prompts(4))])
    service, keys = make_service("mini", "other"), BatchKeys(batch)
    [number] = [int(job.rpartition(b"-")[2]) for job in store.connection.lrange(LIST, 0, -1)]
    payload = store.connection.get(keys.payload(number))
    for shard in (0, 1):
        store.connection.set(keys.payload(shard), b"of another form")
    with caplog.at_level(logging.WARNING, "promptmill.worker"):
        for _ in range(3):
            store.connection.delete(f"rq:queue:{queue_name('other', 'normal')}")
            service._take_one()
            service.order._not_before.clear()
    assert not service.held
    assert [record.__dict__["action"] for record in caplog.records] == ["refuse_shard"]
    assert store.connection.llen(LIST) == 1
    service.heartbeat._beat()
    workers = Workers(store.connection)
    states = workers.read()
    said = BatchOutlook(store.batch(batch), workers.queues_of(batch, states), states).why_waiting
    why = "a payload is not a zstd frame: error when determining content size"
    assert said == f"waiting: {service.name} refuses it: {why}"
    store.connection.set(keys.payload(number), payload)
    service._take_one()
    assert [held.attempt.number for held in service.held] == [number]
    assert service.refusals.reasons == {}


@pytest.mark.parametrize("field", ["defaults", "name", "total"])
def test_a_batch_that_cannot_be_read_keeps_its_shards(field: str, store: Store, make_service: MakeService) -> None:
    """Its header is damaged, or in a newer form: nothing can be written for it, and nothing is thrown away."""
    batch, service = make_batch(store, prompts(1)), make_service()
    info = BatchKeys(batch).info
    before = store.connection.hget(info, field)
    store.connection.hset(info, field, b"\xff[")
    service._take_one()
    assert not service.held
    assert "damaged" in service.refusals.reasons[batch]
    assert store.connection.lrange(LIST, 0, -1) == [f"{batch}-0".encode()]
    store.connection.hset(info, field, before)
    service.order._not_before.clear()
    service._take_one()
    assert [held.job_id for held in service.held] == [f"{batch}-0"]


def test_refused_shards_hold_up_no_others_and_are_left_alone_for_longer_and_longer(
    store: Store, make_service: MakeService, clock: SimpleNamespace
) -> None:
    """What stands behind them is taken at once; a queue with nothing else is looked at after pauses that grow."""
    make_service("another")
    batch, service = make_batch(store, prompts(150)), make_service()
    newer_defaults(store, batch)
    good = make_batch(store, prompts(1))
    taken = 0
    while not service.held:
        assert service._take_one()
        taken += 1
    assert ([held.job_id for held in service.held], taken) == ([f"{good}-0"], 4)
    service.held._shards.clear()
    pauses = []
    for _ in range(len(PAUSES_S) + 2):
        while service._take_one():
            pass
        assert service.order.waiting  # so a --burst worker stays
        pauses.append(service.order._not_before[QUEUE] - clock.now)
        clock.now += pauses[-1]
    assert pauses == [*PAUSES_S, PAUSES_S[-1], PAUSES_S[-1]]
    assert store.connection.llen(LIST) == 3


def test_a_refusal_that_cannot_be_noted_ends_no_worker(store: Store, make_service: MakeService) -> None:
    """Something else lies where it goes: nobody knows whether all have refused the shard, which goes back."""
    batch, service = make_batch(store, prompts(1)), make_service()
    newer_line(store, batch)
    store.connection.set(BatchKeys(batch).refusals(0), "x")
    assert service._take_one()
    assert not service.held
    assert store.connection.lrange(LIST, 0, -1) == [f"{batch}-0".encode()]
    assert "'temperament'" in service.refusals.reasons[batch]


def test_a_shard_whose_records_cannot_be_stored_is_kept_and_not_generated_again_at_once(
    store: Store, make_service: MakeService, clock: SimpleNamespace
) -> None:
    """It waits in its queue for a pause that doubles; once Redis takes its records it is finished."""
    batch, service = make_batch(store, prompts(1)), make_service()
    for pause in (UNSTORED_S, 2 * UNSTORED_S):
        assert service._take_one()
        [held] = service.held
        store.connection.set(BatchKeys(batch).records(0), "x")
        service.writer.put(EndedLine(held, 0, 0.0, Failure("internal_error", "no")))
        service.writer._write_down([service.writer._ended_lines.get_nowait()])
        service.writer._deliver([service.writer._written.get_nowait()])
        store.connection.delete(BatchKeys(batch).records(0))
        assert not service.held
        clock.now += pause - 1
        service._take_one()
        assert not service.held
        assert store.connection.lrange(LIST, 0, -1) == [f"{batch}-0".encode()]
        clock.now += 1 + PAUSES_S[-1]
    assert service._take_one()
    [held] = service.held
    service.writer.put(EndedLine(held, 0, 0.0, Failure("internal_error", "no")))
    write_all(service)
    assert store.batch(batch).status == "completed"


def test_a_purged_batchs_job_is_removed(store: Store, make_service: MakeService) -> None:
    """There is nothing to wait for."""
    batch, service = make_batch(store, prompts(1)), make_service()
    store.connection.delete(BatchKeys(batch).info)
    service._take_one()
    assert store.connection.llen(LIST) == 0
    assert store.connection.keys("rq:job:*") == []
