"""How shards come to their end on a worker, on a real server and without an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from jobs.app.worker_options import EngineSettings
from jobs.attempt import Attempt
from jobs.batch import queue_name
from jobs.errors import ModelLoadError, StaleAttemptError
from jobs.shard import Group
from jobs.store.keys import BatchKeys
from jobs.store.shard_records import Part, ShardRecords
from jobs.store.store import FinishedLine, Store
from submit.results.read import ordered_records
from tests.pool import MODEL, make_batch, prompts, watched
from worker.engine.sequence import Failure
from worker.health.snapshot import Snapshot
from worker.models.engine_factory import ServedModel
from worker.models.load_failures import LoadFailure
from worker.models.residency import WeightSize
from worker.rq.worker import LEASE_S, UNWATCHED_S
from worker.service import Service, ServiceSettings
from worker.shards import claimed
from worker.shards.claimed import HeldShard
from worker.shards.records import EndedLine

Opened = Callable[[str], Redis]
MakeService = Callable[..., Service]


@pytest.fixture
def make_service(store: Store, server_url: str, opened: Opened) -> MakeService:
    """A worker for MODEL whose threads are not started; each step is taken by the test."""

    def make(**clock: Any) -> Service:
        return Service(store.connection, opened(server_url), ServiceSettings((Group(MODEL),), name="mini"), **clock)

    return make


def held_by(service: Service) -> HeldShard:
    """Take a shard; the one that the worker now holds."""
    assert service._take_one()
    [held] = service.held
    return held


def write_all(service: Service) -> None:
    """Let the writer store what it was given."""
    service.writer.stop()
    service.writer.run()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_worker_keeps_its_machine_awake_while_it_holds_lines(
    store: Store, server_url: str, allowed: bool, opened: Opened
) -> None:
    """From the first beat with a shard in hand to the one after its end, and never with --allow-sleep."""
    held: list[bool] = [False]

    def take() -> Callable[[], None]:
        held.append(True)
        return lambda: held.append(False)

    settings = ServiceSettings((Group(MODEL),), name="mini", allow_sleep=allowed)
    service = Service(store.connection, opened(server_url), settings, stay_awake=take)
    seen = []
    for _ in range(2):
        make_batch(store, prompts(1))
        service.heartbeat._beat()
        seen.append(held[-1])
        shard = held_by(service)
        service.heartbeat._beat()
        seen.append(held[-1])
        service._return(shard)
        service.heartbeat._beat()
        seen.append(held[-1])
    assert seen == ([False] * 6 if allowed else [False, True, False] * 2)


def test_a_worker_that_ends_lets_its_machine_sleep(store: Store, server_url: str, opened: Opened) -> None:
    """Whatever it still held: Redis may be out, and the shard's lease then ends by itself."""
    held: list[bool] = []

    def take() -> Callable[[], None]:
        held.append(True)
        return lambda: held.append(False)

    service = Service(store.connection, opened(server_url), ServiceSettings((Group(MODEL),)), stay_awake=take)
    make_batch(store, prompts(1))
    held_by(service)
    service.heartbeat._beat()
    service.heartbeat.start()
    service.heartbeat.stop()
    assert held == [True, False]


def run_out(store: Store, service: Service, held: HeldShard) -> None:
    """As if a shard's lease had run out while the worker slept: its job waits again."""
    store.connection.zadd(held.lease.job.started_job_registry.key, {held.lease.execution.composite_key: 1})
    watched(store)
    service.rq.recover()


def fail(service: Service, held: HeldShard, index: int) -> None:
    service.writer.put(EndedLine(held, index, 0.0, Failure("internal_error", "no")))


def test_lines_of_a_model_that_cannot_load_keep_their_identity(store: Store, make_service: MakeService) -> None:
    """Error records of lines that were never prepared have the line's id and metadata."""
    batch = make_batch(store, [{"id": "a", "prompt": "x", "metadata": {"row": 1}}])
    service = make_service()
    held, now = held_by(service), time.monotonic()
    failure = LoadFailure(ModelLoadError("no such model"), 3, now - 121, now + 1, now + 60, 120.0)
    service.compute.failed = {held.group: failure}
    service._load_failed(held)
    write_all(service)
    [record] = [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]
    assert (record["id"], record["metadata"], record["error"]["code"]) == ("a", {"row": 1}, "model_load_failed")
    assert store.batch(batch).status == "completed"


def test_a_result_that_cannot_be_written_down_fails_its_line_only(store: Store, make_service: MakeService) -> None:
    """An exception of the tokenizer ends one line, not the writer."""
    batch = make_batch(store, prompts(1))
    service = make_service()
    held = held_by(service)
    held.job(held.lines[0])

    def broken(_sequence: object) -> None:
        raise IndexError("token")

    served = cast("ServedModel", SimpleNamespace(assembler=SimpleNamespace(assemble=broken), revision=None))
    sequences: Any = [object()]
    service.writer.put(EndedLine(held, 0, 0.0, None, sequences, served))
    write_all(service)
    [record] = [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]
    assert (record["id"], record["error"]["code"]) == ("row-0", "internal_error")


def test_a_shard_that_takes_long_to_begin_keeps_its_lease(
    store: Store, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose prompts are lost, in a large batch: no other worker takes it, and has to begin anew."""
    batch, service, queue = make_batch(store, prompts(1)), make_service(), queue_name(MODEL, "normal")
    store.connection.delete(BatchKeys(batch).payload(0))
    left = []

    def slowly(*_: Any) -> None:
        [(entry, _ends)] = store.connection.zrange(f"rq:wip:{queue}", 0, -1, withscores=True)
        store.connection.zadd(f"rq:wip:{queue}", {entry: 1})
        service.heartbeat._beat()
        left.append(store.connection.zscore(f"rq:wip:{queue}", entry) - store.server_time())

    monkeypatch.setattr("worker.shards.claiming.end_lost_lines", slowly)
    assert service._take_one()
    assert left == [pytest.approx(LEASE_S, abs=5)]


def test_records_that_redis_lost_are_made_again(store: Store, make_service: MakeService) -> None:
    """A server that crashed can lose the last second: the shard is queued again instead of being taken for done."""
    batch = make_batch(store, prompts(2))
    service = make_service()
    held = held_by(service)
    fail(service, held, 0)
    write_all(service)
    store.connection.hdel(BatchKeys(batch).records(0), "0")
    fail(service, held, 1)
    write_all(service)
    assert store.batch(batch).status == "in_progress"
    again = held_by(service)
    assert again.remaining == {0}


def test_a_worker_that_takes_its_own_shard_up_again_goes_on_with_it(store: Store, make_service: MakeService) -> None:
    """After a sleep its lease has run out: nothing is generated twice, and records go under the new fence."""
    batch = make_batch(store, prompts(2))
    service = make_service()
    held = held_by(service)
    run_out(store, service, held)
    key = held.key(0)
    assert held_by(service) is held
    assert held.key(0) == key
    assert held.attempt.fence > held.taken_under
    fail(service, held, 0)
    fail(service, held, 1)
    write_all(service)
    assert store.batch(batch).status == "completed"
    assert not service.held
    assert store.connection.keys("rq:job:*") == []


def test_leases_that_nobody_watched_get_time_to_be_renewed(store: Store, make_service: MakeService) -> None:
    """After an outage, a sleep of all machines or a step of the clock all leases look abandoned: nobody's shard is
    taken at once, and that of a dead worker when the time of a lease is over."""
    make_batch(store, prompts(1))
    service = make_service()
    held = held_by(service)
    registry, watch = held.lease.job.started_job_registry.key, f"promptmill:watch:{held.queue}"
    for seen in (0.0, store.server_time() - UNWATCHED_S - 1, store.server_time() + 3600):
        store.connection.zadd(registry, {held.lease.execution.composite_key: 1})
        store.connection.hset(watch, mapping={"seen": seen, "from": 0})
        service.rq.recover()
        assert store.connection.zcard(registry) == 1
        assert float(store.connection.hget(watch, "from")) > store.server_time() + LEASE_S - 2
    store.connection.hset(watch, "from", store.server_time() - 1)
    service.rq.recover()
    assert store.connection.zcard(registry) == 0


def test_a_worker_is_not_idle_while_a_cold_model_waits(store: Store, server_url: str, opened: Opened) -> None:
    """Work of a model whose turn it is not yet keeps a --burst worker from ending."""
    settings = ServiceSettings((Group(MODEL), Group("other")), burst=True, engine=EngineSettings(memory_limit=1))
    service = Service(store.connection, opened(server_url), settings)
    service._idle_since = -1e9
    batch = make_batch(store, prompts(1))
    assert not service._take_one()  # the size of the model is not known yet
    assert not service._idle_for_good()
    store.discard(batch)
    store.connection.delete(f"rq:queue:{queue_name(MODEL, 'normal')}")
    service._idle_since = -1e9
    assert not service._take_one()
    assert service._idle_for_good()


def test_a_lost_shard_of_a_model_never_loaded_is_abandoned(store: Store, make_service: MakeService) -> None:
    """Its lines are cancelled on an engine that is not there, which is no error of the engine's thread."""
    make_batch(store, prompts(2))
    service = make_service()
    held = held_by(service)
    assert store.claim(held.attempt.batch_id, held.attempt.number)
    fail(service, held, 0)
    write_all(service)
    service.compute._commands.get_nowait()  # the request to load it
    service.compute.stop()
    service.compute.run()
    assert service.compute.failure is None
    assert not service.held


@pytest.mark.parametrize(("capacity", "shards"), [(1, 1), (32, 1), (100, 2), (150, 3)])
def test_a_batch_of_lines_is_kept_ahead_of_what_the_model_decodes_together(
    store: Store, make_service: MakeService, capacity: int, shards: int
) -> None:
    """However many lines the loaded model takes at a time, as many wait for it, in shards of 50."""
    make_batch(store, prompts(300))
    service = make_service()
    service.compute._engines[Group(MODEL)] = cast("Any", SimpleNamespace(capacity=capacity))
    while service._take_one():
        pass
    assert len(service.held) == shards


def test_a_model_with_much_ahead_holds_off_no_other(store: Store, server_url: str, opened: Opened) -> None:
    """How many lines wait is asked of each model: another one's shard is taken while the first has enough."""
    other = Group("examples/pocket/other")
    make_batch(store, prompts(50))
    make_batch(store, prompts(50), defaults={"model": other.model})
    service = Service(store.connection, opened(server_url), ServiceSettings((Group(MODEL), other), name="mini"))
    service.models.residency.sizes[other] = WeightSize(1)  # there is no limit, so both fit
    service.preparer._count(Group(MODEL), 1000)
    assert service._take_one()
    assert [held.group for held in service.held] == [other]
    assert not service._take_one()


def test_occupancy_is_of_the_rows_there_was_room_for(make_service: MakeService) -> None:
    """What is published is the part of rows that were filled since the last beat, whatever the models' batches are."""
    service = make_service()
    service.compute.snapshot = Snapshot(decode_rows=60, decode_slots=80)
    assert service.readings.published()["occupancy"] == 0.75
    service.compute.snapshot = Snapshot(decode_rows=160, decode_slots=180)
    assert service.readings.published()["occupancy"] == 1.0
    assert service.readings.published()["occupancy"] is None


def test_a_shard_claimed_again_while_its_records_are_stored_is_kept(store: Store, make_service: MakeService) -> None:
    """The writer meets the new fence before it knows of it: it waits for the claim, and stores under that."""
    batch = make_batch(store, prompts(2))
    service = make_service()
    held = held_by(service)
    run_out(store, service, held)
    claim, write, refused = service.store.claim, service.store.write, threading.Event()

    def write_or_say(attempt: Attempt, lines: Sequence[FinishedLine]) -> None:
        try:
            write(attempt, lines)
        except StaleAttemptError:
            refused.set()
            raise

    def claim_slowly(*arguments: Any) -> Attempt | None:
        attempt = claim(*arguments)
        fail(service, held, 0)
        writing.start()
        assert refused.wait(60)
        return attempt

    service.store.write, service.store.claim = write_or_say, claim_slowly  # type: ignore[method-assign]
    writing = threading.Thread(target=write_all, args=[service])
    assert held_by(service) is held
    writing.join(60)
    assert held.remaining == {1}
    fail(service, held, 1)
    write_all(service)
    assert store.batch(batch).status == "completed"
    assert (list(service.held), store.connection.keys("rq:job:*")) == ([], [])


def test_a_shard_claimed_again_is_kept_though_the_answer_is_lost(store: Store, make_service: MakeService) -> None:
    """Its old fence may be stale by then: it is claimed until there is an answer, and what is under way goes on."""
    batch = make_batch(store, prompts(1))
    service = make_service()
    held = held_by(service)
    run_out(store, service, held)
    claim, answers = service.store.claim, iter([False, True])

    def claim_unheard(*arguments: Any) -> Attempt | None:
        attempt = claim(*arguments)
        if not next(answers):
            service._stops.wakeup.ring()
            raise ConnectionError("gone")
        return attempt

    service.store.claim = claim_unheard  # type: ignore[method-assign]
    service._broken = lambda: False  # type: ignore[method-assign]
    assert held_by(service) is held
    assert next(answers, None) is None
    fail(service, held, 0)
    write_all(service)
    assert store.batch(batch).status == "completed"


@pytest.mark.parametrize(("how", "asked"), [("plain", [[0]]), ("taken up again", [[], []]), ("long", [[], []])])
def test_a_shard_is_compacted_from_the_records_that_its_worker_has(
    store: Store, make_service: MakeService, monkeypatch: pytest.MonkeyPatch, how: str, asked: list[list[int]]
) -> None:
    """Those of earlier attempts alone are read; all of them where another worker may have stored some, and where they
    are too many to keep."""
    batch = make_batch(store, prompts(3))
    earlier = make_service()
    held = held_by(earlier)
    fail(earlier, held, 0)
    write_all(earlier)
    assert earlier._return(held)
    service = make_service()
    held = held_by(service)
    if how == "taken up again":
        run_out(store, service, held)
        assert held_by(service) is held
    elif how == "long":
        monkeypatch.setattr(claimed, "KEPT_BYTES", 10)
    part, read = ShardRecords.part, []

    def noted(self: ShardRecords, number: int, above: int, indices: Sequence[int] = ()) -> Part:
        read.append(list(indices))
        return part(self, number, above, indices)

    with monkeypatch.context() as patch:
        patch.setattr(ShardRecords, "part", noted)
        fail(service, held, 2)
        fail(service, held, 1)
        write_all(service)
    assert read == asked
    assert store.batch(batch).status == "completed"
    assert [record.index for record in ordered_records(store.connection, batch)] == [0, 1, 2]
