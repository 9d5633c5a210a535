"""The in-flight log on a real server: what is noted of lines, when, and what an outage makes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.exceptions import ConnectionError as OutError

from jobs.attempt import Attempt
from jobs.redis.connect import connect
from jobs.store.keys import BatchKeys
from jobs.store.store import Store
from tests.pool import make_batch, prompts
from tests.waiting import until
from worker.faults import in_flight_log
from worker.faults.in_flight_log import QUIET_S, InFlightLog, Note, NoteReply
from worker.service import Service
from worker.shards.claimed import HeldShard, LineKey

WAVE = 3


@dataclass
class FakeEngine:
    """Lines that wait, in their order, and those that have begun."""

    waiting: list[LineKey] = field(default_factory=list)
    running: list[LineKey] = field(default_factory=list)

    @property
    def pending(self) -> int:
        return len(self.waiting)

    @property
    def begun(self) -> int:
        return len(self.running)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.waiting or key in self.running

    def upcoming(self, only: frozenset[Hashable] | None) -> list[Hashable]:
        return [key for key in self.waiting if only is None or key in only][:WAVE]


class Rounds:
    """What the compute thread does with the log, round by round; answers wait until the next one."""

    def __init__(self, log: InFlightLog, engine: FakeEngine, answers: list[NoteReply]) -> None:
        self.log, self.engine, self.answers = log, engine, answers

    def round(self, only: frozenset[Hashable] | None = None) -> None:
        while self.answers:
            self.log.answered(self.answers.pop(0))
        admitted = self.log.admitted([self.engine], only)
        assert admitted is not None
        begin = [key for key in self.engine.waiting if key in admitted]
        assert self.log.begun(begin) == frozenset()
        self.engine.running += begin
        self.engine.waiting = [key for key in self.engine.waiting if key not in begin]


Make = Callable[..., InFlightLog]


@pytest.fixture
def answers() -> list[NoteReply]:
    return []


@pytest.fixture
def make_log(store: Store, service: Service, answers: list[NoteReply]) -> Iterator[Make]:
    """Logs of a worker of the life ``one``; their threads end with the test."""
    made: list[InFlightLog] = []

    def make(**more: Any) -> InFlightLog:
        wanted = {"store": store, "clock": lambda: 0.0, **more}
        clock = wanted["clock"]
        log = InFlightLog(
            wanted["store"], store.connection, "one", service.held, service.abandon, answers.append, clock=clock
        )
        made.append(log)
        return log

    yield make
    for log in made:
        log.stop()
        if log.is_alive():
            log.join(60)


def held_by(service: Service) -> HeldShard:
    assert service._take_one()
    [held] = service.held
    return held


def noted(store: Store, held: HeldShard) -> dict[int, str]:
    """What Redis has for under way."""
    flights = BatchKeys(held.attempt.batch_id).flights(held.attempt.number)
    return {int(index): life.decode() for index, life in store.connection.hgetall(flights).items()}


def ask(log: InFlightLog) -> None:
    """What its thread does in a round."""
    log._take(log._gather() or {})


def test_the_next_wave_is_noted_before_it_begins(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """One wave ahead and no further; nothing begins before Redis has it."""
    make_batch(store, prompts(10))
    held = held_by(service)
    log, engine = make_log(), FakeEngine([held.key(index) for index in range(10)])
    rounds = Rounds(log, engine, answers)
    log.start()
    for wave in range(3):
        rounds.round()
        until(lambda: answers, "it is noted")
        assert (len(engine.running), len(noted(store, held))) == (wave * WAVE, (wave + 1) * WAVE)
        rounds.round()
        assert engine.running == [held.key(index) for index in range((wave + 1) * WAVE)]


def test_lines_of_a_higher_priority_are_noted_beside_those_that_are(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """They begin first, as if nothing had been noted ahead."""
    make_batch(store, prompts(10))
    held = held_by(service)
    log, engine = make_log(), FakeEngine([held.key(index) for index in range(8)])
    rounds = Rounds(log, engine, answers)
    rounds.round()
    engine.waiting.insert(0, held.key(9))
    rounds.round()
    ask(log)
    assert set(noted(store, held)) == {9, 0, 1, 2}


def test_what_was_noted_ahead_is_taken_back_before_a_suspect_begins(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """Its worker's death charges nobody else, and is known for one that it had alone."""
    batch = make_batch(store, prompts(6))
    held = held_by(service)
    log, engine = make_log(), FakeEngine([held.key(index) for index in range(3)])
    rounds = Rounds(log, engine, answers)
    rounds.round()
    ask(log)
    rounds.answers, taken = [], rounds.answers.pop()
    log.answered(taken)
    suspect = held.key(5)
    assert log.unsettled == 3
    log.admitted([engine], frozenset())
    ask(log)
    log.answered(answers.pop())
    assert (log.unsettled, noted(store, held)) == (0, {})
    engine.waiting.append(suspect)
    rounds.round(frozenset({suspect}))
    ask(log)
    assert noted(store, held) == {5: "one alone"}
    attempt = store.claim(batch, 0, "another")
    assert attempt is not None
    assert (attempt.deaths, attempt.alone) == ({5: 1}, {5})


def test_a_line_that_begins_anew_is_noted_anew(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """After its trial it is no longer alone: until that is noted it counts as unsettled, and does not begin."""
    make_batch(store, prompts(2))
    held = held_by(service)
    log, key = make_log(), held.key(0)
    engine = FakeEngine([key])
    rounds = Rounds(log, engine, answers)
    rounds.round(frozenset({key}))
    ask(log)
    rounds.round(frozenset({key}))
    assert (engine.running, noted(store, held)) == ([key], {0: "one alone"})
    engine.running, engine.waiting = [], [key]
    log.begins_anew(key)
    rounds.round()
    assert (engine.running, log.unsettled) == ([], 1)
    ask(log)
    rounds.round()
    ask(log)
    assert noted(store, held) == {0: "one"}
    rounds.round()
    assert (engine.running, log.unsettled) == ([key], 0)


class Flaky(Store):
    """A Redis that is out as long as it is told so."""

    out = True

    def begin(self, *arguments: Any, **more: Any) -> bool:
        if self.out:
            raise OutError("gone")
        return super().begin(*arguments, **more)


def test_lines_that_begin_in_an_outage_are_noted_after_it(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """They do not wait for a Redis that is out, which is not asked again within seconds; suspects do wait."""
    batch = make_batch(store, prompts(3))
    held = held_by(service)
    now, flaky = [0.0], Flaky(store.connection)
    log = make_log(store=flaky, clock=lambda: now[0])
    engine = FakeEngine([held.key(index) for index in range(2)])
    rounds = Rounds(log, engine, answers)
    rounds.round()
    ask(log)
    rounds.round()
    assert (len(engine.running), log.unsettled) == (2, None)
    flaky.out = False
    engine.waiting.append(held.key(2))
    rounds.round()
    ask(log)
    rounds.round()
    assert (len(engine.running), noted(store, held)) == (3, {})
    now[0] += QUIET_S
    ask(log)
    rounds.round()
    assert (noted(store, held), log.unsettled) == (dict.fromkeys(range(3), "one"), 0)
    attempt = store.claim(batch, 0, "two")
    assert attempt is not None
    assert attempt.tries == {0: 1, 1: 1, 2: 1}


def test_lines_of_a_shard_that_is_anothers_do_not_begin(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """A worker that wakes up finds out before it generates anything more, and lets the shard go."""
    batch = make_batch(store, prompts(2))
    held = held_by(service)
    log, key = make_log(), held.key(0)
    assert store.claim(batch, 0, "two") is not None
    log._take({key: Note.NEXT})
    assert answers == [NoteReply(frozenset(), frozenset(), frozenset({key}), out=False)]
    assert (list(service.held), held.ended, log.begun([key])) == ([], True, {key})


def test_lines_of_a_shard_that_is_taken_up_again_are_noted_under_the_new_attempt(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """The old one is stale in the midst of it, and the shard is this worker's all the time."""
    batch = make_batch(store, prompts(2))
    held = held_by(service)
    log, key = make_log(), held.key(0)
    taking = threading.Thread(target=log._take, args=[{key: Note.NEXT}])

    def claim() -> Attempt | None:
        attempt = store.claim(batch, 0, "one")
        taking.start()
        until(lambda: held._changed._waiters, "it meets the new fence")  # type: ignore[attr-defined]
        return attempt

    assert held.renew(held.lease, claim)
    taking.join(60)
    assert answers == [NoteReply(frozenset({key}), frozenset(), frozenset(), out=False)]
    assert (noted(store, held), list(service.held)) == ({0: "one"}, [held])


def test_lines_do_not_wait_long_for_a_shard_that_is_being_taken_up_again(
    store: Store, service: Service, make_log: Make, answers: list[NoteReply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim may take as long as an outage: they begin as in one, and are noted after it."""
    monkeypatch.setattr(in_flight_log, "CLAIM_S", 0.01)
    batch = make_batch(store, prompts(2))
    held = held_by(service)
    now = [0.0]
    log, key = make_log(clock=lambda: now[0]), held.key(0)

    def claim() -> Attempt | None:
        attempt = store.claim(batch, 0, "one")
        log._take({key: Note.NEXT})
        assert answers == [NoteReply(frozenset({key}), frozenset(), frozenset(), out=True)]
        return attempt

    assert held.renew(held.lease, claim)
    assert (held.ended, noted(store, held)) == (False, {})
    now[0] += QUIET_S
    log._take({})
    assert noted(store, held) == {0: "one"}


def test_a_server_that_hangs_is_waited_for_by_the_log_alone(
    server_url: str, store: Store, service: Service, make_log: Make, answers: list[NoteReply]
) -> None:
    """Whoever asks which lines may begin is answered at once, with those that were noted."""
    make_batch(store, prompts(2))
    held = held_by(service)
    asked, answering = threading.Event(), threading.Event()

    class Hanging(Store):
        def begin(self, *arguments: Any, **more: Any) -> bool:
            asked.set()
            assert answering.wait(60)
            return super().begin(*arguments, **more)

    connection = connect(server_url)
    log, engine = make_log(store=Hanging(connection)), FakeEngine([held.key(0)])
    log.start()
    assert log.admitted([engine], None) == frozenset()
    assert asked.wait(60)
    assert log.admitted([engine], None) == frozenset()
    answering.set()
    until(lambda: answers, "it is noted")
    log.answered(answers.pop())
    assert log.admitted([engine], None) == {held.key(0)}
    connection.close()
