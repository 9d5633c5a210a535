"""Attempts at lines on a real server: what is charged to whom, and what a worker does with it."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from jobs.attempt import Attempt, Standing, Verdict
from jobs.errors import ModelLoadError, SickModelError, StaleAttemptError
from jobs.shard import Group
from jobs.store.keys import trouble_key
from jobs.store.store import FinishedLine, Store
from submit.results.read import ordered_records
from tests.pool import MODEL, make_batch, prompts
from worker.engine.sequence import Failure
from worker.faults.crash_loop import TROUBLE_LIMIT, note_failure, note_trouble, without_trouble
from worker.rq.worker import machine
from worker.service import Service
from worker.shards.claimed import HeldShard, QuarantineLevel
from worker.shards.records import EndedLine


def claimed(store: Store, batch: str, life: str = "") -> Attempt:
    attempt = store.claim(batch, 0, life)
    assert attempt is not None
    return attempt


def record(index: int) -> FinishedLine:
    return FinishedLine(index, True, 1, 1, 0, b'{"id":"x","index":%d}' % index)


def test_lines_under_way_at_a_death_are_charged_and_only_they(store: Store) -> None:
    """The next claim finds an attempt at the lines that were begun and had no record; others count as never tried."""
    batch = make_batch(store, prompts(4))
    first = claimed(store, batch, "one")
    store.begin(first, [0, 1], "one", store.connection)
    store.write(first, [record(0)])
    second = claimed(store, batch, "two")
    assert second.finished == {0}
    assert second.tries == second.deaths == {1: 1}
    assert claimed(store, batch, "three").tries == {1: 1}


def test_a_worker_that_takes_its_own_shard_again_is_not_charged(store: Store) -> None:
    """It has slept, not died; a namesake with another life has."""
    batch = make_batch(store, prompts(2))
    store.begin(claimed(store, batch, "one"), [0], "one", store.connection)
    assert claimed(store, batch, "one").tries == {}
    assert claimed(store, batch, "another").tries == {0: 1}


def test_stale_attempts_begin_and_fail_nothing(store: Store) -> None:
    """Their lines are another attempt's."""
    batch = make_batch(store, prompts(2))
    stale, current = claimed(store, batch), claimed(store, batch)
    assert not store.begin(stale, [0], "one", store.connection)
    with pytest.raises(StaleAttemptError):
        store.fail(stale, 0)
    assert store.fail(current, 0) == 1
    assert store.fail(current, 0) == 1  # sent again
    assert store.fail(claimed(store, batch), 0) == 2
    assert claimed(store, batch).tries == {0: 2}


def test_a_batch_that_ended_takes_no_records(store: Store) -> None:
    """Whatever ended it counts its lines: what comes later would count them again."""
    batch = make_batch(store, prompts(2))
    attempt = claimed(store, batch)
    assert store.standing([attempt], store.connection) == [Standing.OURS]
    store.connection.hset(f"promptmill:b:{batch}", "status", "cancelled")
    with pytest.raises(StaleAttemptError):
        store.write(attempt, [record(0)])
    with pytest.raises(StaleAttemptError):
        store.finish(attempt, 2)
    assert store.standing([attempt], store.connection) == [Standing.LOST]


def held_by(service: Service) -> HeldShard:
    assert service._take_one()
    [held] = service.held
    return held


def prepare_all(service: Service) -> list[tuple[int, QuarantineLevel]]:
    """Let the preparer prepare what it has: (index, its level of quarantine) of each line the engine gets."""
    given: list[tuple[int, QuarantineLevel]] = []
    preparer = SimpleNamespace(prepare=lambda job, key, rank: SimpleNamespace(key=key))
    loaded: Any = SimpleNamespace(result=lambda: SimpleNamespace(preparer=preparer))
    compute: Any = SimpleNamespace(add=lambda group, line, level, **_: given.append((line.key[2], level)))
    while not service.preparer._queue.empty():
        work = service.preparer._queue.get()
        assert work is not None
        service.preparer._compute = compute
        object.__setattr__(work, "loading", loaded)
        service.preparer._queue.put(work)
        service.preparer._queue.put(None)
        service.preparer.run()
    return given


def write_all(service: Service) -> None:
    service.writer.stop()
    service.writer.run()


def dies(store: Store, batch: str, under_way: list[int], *, alone: bool = False) -> None:
    """A worker claims the shard, and dies with these lines under way."""
    life = f"life {uuid.uuid4()}"
    attempt = claimed(store, batch, life)
    store.begin(attempt, [] if alone else under_way, life, store.connection, alone=under_way if alone else [])


def begins(store: Store, service: Service, batch: str, most: int = 3) -> dict[int, QuarantineLevel]:
    """How each line of the shard begins here that does; the others get their records."""
    service.claimer._max_attempts = most
    for held in list(service.held):
        service.held._shards.clear()
        store.connection.zrem(held.lease.job.started_job_registry.key, held.lease.execution.composite_key)
        store.connection.rpush(f"rq:queue:{held.queue}", held.job_id)
    held_by(service)
    return dict(prepare_all(service))


def failed(store: Store, batch: str) -> dict[str, Any]:
    """The error records of a batch by their ids."""
    raw = [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]
    return {record["id"]: (record["error"]["code"], record["attempt"]) for record in raw}


NONE, TRIAL, ALONE = QuarantineLevel.NONE, QuarantineLevel.TRIAL, QuarantineLevel.ALONE


def test_one_death_puts_nobody_into_quarantine(store: Store, service: Service) -> None:
    """What was under way runs among the others again, however much it was: a power cut slows nothing down."""
    batch = make_batch(store, prompts(4))
    dies(store, batch, [0, 1, 2])
    assert begins(store, service, batch) == dict.fromkeys(range(4), NONE)
    [held] = service.held
    assert [held.attempt_at(index) for index in range(4)] == [2, 2, 2, 1]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_two_deaths_beside_others_cost_a_trial(store: Store, service: Service, most: int) -> None:
    """As two power cuts do, however few attempts a line gets: nothing runs alone to its end."""
    batch = make_batch(store, prompts(3))
    for _ in range(2):
        dies(store, batch, [0, 1])
    assert begins(store, service, batch, most) == {0: TRIAL, 1: TRIAL, 2: NONE}


def test_two_deaths_make_a_suspect_and_three_end_the_one_that_was_alone(store: Store, service: Service) -> None:
    """The line that kills fails with worker_crashed at the third; what was beside it twice is tried and goes on."""
    batch = make_batch(store, prompts(4))
    dies(store, batch, [0, 1, 2])
    dies(store, batch, [0, 1])
    assert begins(store, service, batch) == {0: TRIAL, 1: TRIAL, 2: NONE, 3: NONE}
    dies(store, batch, [0], alone=True)
    assert list(begins(store, service, batch).items()) == [(1, TRIAL), (2, NONE), (3, NONE)]
    write_all(service)
    assert failed(store, batch) == {"row-0": ("worker_crashed", 3)}


def test_no_line_is_given_up_for_deaths_beside_others(store: Store, service: Service) -> None:
    """However often its worker dies: it is given up by a death that it had alone, and runs alone to its end from the
    third death on."""
    batch = make_batch(store, prompts(2))
    for _ in range(5):
        dies(store, batch, [0, 1])
    assert begins(store, service, batch) == {0: ALONE, 1: ALONE}
    dies(store, batch, [0], alone=True)
    assert begins(store, service, batch) == {1: ALONE}
    write_all(service)
    assert failed(store, batch) == {"row-0": ("worker_crashed", 6)}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_a_line_that_kills_gets_as_many_attempts_as_it_may(store: Store, service: Service, most: int) -> None:
    """The last of them alone. With one attempt it gets a second: what was beside it at the first is not failed."""
    batch = make_batch(store, prompts(2))
    deaths, begun = 0, begins(store, service, batch, most)
    while 0 in begun:
        alone = begun[0] is not NONE
        dies(store, batch, [0] if alone else [0, 1], alone=alone)
        deaths += 1
        begun = begins(store, service, batch, most)
    assert deaths == max(most, 2)
    assert 1 in begun
    write_all(service)
    assert failed(store, batch) == {"row-0": ("worker_crashed", deaths)}


def test_what_a_sick_model_had_under_way_is_tried_alone(store: Store, service: Service) -> None:
    """One of them may be why it failed: each runs alone for a moment, and to its end where it failed again among
    others. Nobody is charged, however often the device is lost."""
    batch = make_batch(store, prompts(2))
    for quarantine in (NONE, TRIAL, ALONE, ALONE):
        assert begins(store, service, batch) == {0: quarantine, 1: quarantine}
        [held] = service.held
        store.begin(held.attempt, [0, 1], "life", store.connection)
        store.release(held.attempt, Verdict.SUSPECT)
    assert held.attempt.tries == {}


def ended(held: HeldShard, index: int, failure: Failure | None) -> Any:
    return EndedLine(held, index, 0.0, failure)


def test_a_failure_that_may_pass_is_tried_again_alone(store: Store, service: Service) -> None:
    """Each time counted, until the last attempt fails: its record says which attempt it was and what went wrong."""
    batch = make_batch(store, prompts(2))
    held = held_by(service)
    prepare_all(service)
    for attempt in (1, 2, 3):
        assert held.attempt_at(1) == attempt
        service.writer.put(ended(held, 1, Failure("internal_error", "no memory", passing=True)))
        write_all(service)
        assert prepare_all(service) == ([(1, ALONE)] if attempt < 3 else [])
    [raw] = [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]
    assert (raw["id"], raw["error"]["message"], raw["attempt"]) == ("row-1", "no memory", 3)


def test_a_failure_for_good_is_not_tried_again(store: Store, service: Service) -> None:
    """What the line asks for cannot be had, here or anywhere."""
    batch = make_batch(store, prompts(1))
    held = held_by(service)
    prepare_all(service)
    service.writer.put(ended(held, 0, Failure("context_length_exceeded", "too long")))
    write_all(service)
    [raw] = [orjson.loads(record.raw) for record in ordered_records(store.connection, batch)]
    assert (raw["error"]["code"], raw["attempt"]) == ("context_length_exceeded", 1)


def test_a_shard_of_an_ended_batch_is_abandoned(store: Store, service: Service) -> None:
    """At the next look, unless it is just being taken up again, or the writer is about to end it."""
    batch = make_batch(store, prompts(2))
    held = held_by(service)
    service.heartbeat._check_shards()
    store.connection.hset(f"promptmill:b:{batch}", "status", "cancelled")

    def claim() -> None:
        service.heartbeat._check_shards()
        assert service.held

    assert not held.renew(held.lease, claim)
    left, held.remaining = held.remaining, set()
    service.heartbeat._check_shards()
    assert service.held
    held.remaining = left
    service.heartbeat._check_shards()
    assert not service.held
    assert held.ended


def test_a_model_that_ends_its_workers_is_no_longer_served(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """After several troubles within the hour on this machine; others are served, and elsewhere it is too."""
    sick, well = Group("sick"), Group("well")
    for number in range(TROUBLE_LIMIT):
        assert without_trouble(store.connection, "here", [sick, well]) == (sick, well)
        note_trouble(store.connection, "here", sick, f"life {number}", "device lost")
        note_trouble(store.connection, "here", sick, f"life {number}", "device lost")
    assert without_trouble(store.connection, "here", [sick, well]) == (well,)
    assert "sick is not served here: it ended its worker again and again" in caplog.text
    assert "device lost" in caplog.text
    assert without_trouble(store.connection, "there", [sick]) == (sick,)
    with pytest.raises(ModelLoadError, match="in Redis"):
        without_trouble(store.connection, "here", [sick])
    assert 3000 < store.connection.ttl(trouble_key("here", "sick")) <= 3600


def test_a_worker_whose_engine_failed_leaves_word(
    store: Store, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end the model that was at work is noted, and lines under way count as tried."""
    batch = make_batch(store, prompts(2))
    service.rq.start()
    held = held_by(service)
    store.begin(held.attempt, [1], service.instance, store.connection)
    service.compute.failure, service.compute.failed_group = RuntimeError("device lost"), held.group
    monkeypatch.setattr(service.writer, "join", lambda timeout: None)
    monkeypatch.setattr(service.compute, "join", lambda timeout: None)
    monkeypatch.setattr(service.heartbeat, "stop", lambda: None)
    service._end()
    assert claimed(store, batch, "two").tries == {1: 1}
    assert store.connection.get(f"promptmill:trouble:{machine()}:{MODEL}:reason") == b"device lost"


def test_a_line_that_breaks_its_model_each_time_is_one_trouble(store: Store, service: Service) -> None:
    """Its shard is claimed under another fence in each life; the model is not to blame for it."""
    batch = make_batch(store, prompts(2))
    for fence in (1, 2, 3):
        service.compute.failure, service.compute.failed_group = SickModelError("lost"), Group(MODEL)
        service.compute.alone = (f"{batch}-0", fence, 1)
        note_failure(store.connection, machine(), service.compute, service.instance)
    assert store.connection.smembers(trouble_key(machine(), MODEL)) == {f"{batch}-0:1".encode()}
