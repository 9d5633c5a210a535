"""Running suspects alone: what may begin when, with engines that are lists."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from jobs.shard import Group
from worker.engine.sequence import InFlight
from worker.faults.quarantine import TRIAL_TOKENS, Quarantine

ONE, OTHER = Group("one"), Group("other")


@dataclass
class FakeEngine:
    """Begins what it may when told to; ends what it is told to."""

    waiting: list[Any] = field(default_factory=list)
    running: list[Hashable] = field(default_factory=list)
    cancelled: list[Hashable] = field(default_factory=list)
    tokens: int = 0

    @property
    def begun(self) -> int:
        return len(self.running)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.waiting or key in self.running

    def add(self, line: Any) -> None:
        self.waiting.append(line.key)

    def cancel(self, key: Hashable) -> None:
        self.cancelled.append(key)

    def snapshot(self) -> list[InFlight]:
        return [InFlight(key, "decode", 1, 1, self.tokens) for key in self.running]

    def step(self, only: frozenset[Hashable] | None) -> None:
        for key in self.cancelled:
            self.running.remove(key)
        self.cancelled.clear()
        for key in [key for key in self.waiting if only is None or key in only]:
            self.waiting.remove(key)
            self.running.append(key)


def line(key: str) -> Any:
    return SimpleNamespace(key=key)


def rounds(isolation: Quarantine, *engines: FakeEngine, unsettled: int | None = 0) -> None:
    """One round of all engines, named in order."""
    only = isolation.arrange(dict(zip((ONE, OTHER), engines, strict=False)), unsettled)
    for engine in engines:
        engine.step(only)


def test_a_suspect_waits_for_those_under_way_and_holds_off_all_others() -> None:
    """It begins when everything has ended, on any engine; meanwhile and beside it nothing else does."""
    isolation, first, second = Quarantine(), FakeEngine(), FakeEngine()
    first.add(line("a"))
    second.add(line("b"))
    rounds(isolation, first, second)
    isolation.add(ONE, line("suspect"))
    first.add(line("c"))
    second.add(line("d"))
    rounds(isolation, first, second)
    assert (first.running, second.running) == (["a"], ["b"])
    first.running.clear()
    rounds(isolation, first, second)
    assert (first.running, second.running) == ([], ["b"])
    second.running.clear()
    rounds(isolation, first, second)
    rounds(isolation, first, second)
    assert (first.running, second.running) == (["suspect"], [])
    first.running.clear()
    rounds(isolation, first, second)
    assert (first.running, second.running) == (["c"], ["d"])


def test_suspects_run_one_after_another() -> None:
    """In the order they came, each by itself."""
    isolation, engine = Quarantine(), FakeEngine()
    isolation.add(ONE, line("a"))
    isolation.add(ONE, line("b"))
    seen = []
    for _ in range(6):
        rounds(isolation, engine)
        seen.append(list(engine.running))
        engine.running.clear()
    assert seen == [["a"], ["b"], [], [], [], []]


def test_a_line_to_be_tried_later_holds_off_nothing_until_then() -> None:
    """A retry's pause is no pause for the others; due_in says how long it is."""
    now = [100.0]
    isolation, engine = Quarantine(clock=lambda: now[0]), FakeEngine()
    isolation.add(ONE, line("later"), 5.0)
    engine.add(line("a"))
    rounds(isolation, engine)
    assert engine.running == ["a"]
    engine.running.clear()
    assert isolation.due_in() == 5.0
    now[0] += 5.0
    assert isolation.due_in() == 0.0
    rounds(isolation, engine)
    assert engine.running == ["later"]
    assert isolation.due_in() is None


def test_a_suspect_that_is_due_waits_for_what_happens_and_not_for_a_time() -> None:
    """Nobody has to look again and again whether the records of others are stored."""
    isolation, engine = Quarantine(), FakeEngine()
    isolation.add(ONE, line("suspect"))
    rounds(isolation, engine, unsettled=1)
    assert isolation.due_in() is None
    rounds(isolation, engine, unsettled=None)
    assert isolation.due_in() is None
    rounds(isolation, engine)
    assert engine.running == ["suspect"]


def test_a_line_on_trial_goes_among_the_others_when_its_first_tokens_are_there() -> None:
    """Each of them is taken out of the engine then, to be queued anew, and the next has its trial."""
    isolation, engine = Quarantine(), FakeEngine()
    for key in ("a", "b"):
        isolation.add(ONE, line(key), trial=True)
    passed = []
    for key in ("a", "b"):
        rounds(isolation, engine)
        assert engine.running == [key]
        engine.tokens = TRIAL_TOKENS - 1
        rounds(isolation, engine)
        assert (engine.running, isolation.passed(key)) == ([key], None)
        engine.tokens = TRIAL_TOKENS
        rounds(isolation, engine)
        assert (engine.running, isolation.running) == ([], key)
        passed.append(isolation.passed(key).key)
    assert (passed, isolation.running) == (["a", "b"], None)
    assert isolation.arrange({ONE: engine}, 0) is None


def test_a_trial_that_comes_to_its_own_end_is_no_trial_any_more() -> None:
    """A line that ends, fails or is cancelled in it is reported as any other."""
    isolation, engine = Quarantine(), FakeEngine()
    isolation.add(ONE, line("short"), trial=True)
    rounds(isolation, engine)
    engine.running.clear()
    assert isolation.passed("short") is None
    rounds(isolation, engine)
    assert isolation.running is None
    isolation.add(ONE, line("unwanted"), trial=True)
    rounds(isolation, engine)
    engine.tokens = TRIAL_TOKENS
    isolation.arrange({ONE: engine}, 0)
    isolation.cancel("unwanted")
    engine.step(frozenset())
    assert isolation.passed("unwanted") is None
    rounds(isolation, engine)
    assert isolation.running is None


def test_what_is_dropped_is_never_begun() -> None:
    """One by its key, or all."""
    isolation, engine = Quarantine(), FakeEngine()
    for key in ("a", "b", "c"):
        isolation.add(ONE, line(key))
    assert isolation.drop(lambda key: key == "b") == ["b"]
    assert isolation.drop() == ["a", "c"]
    assert len(isolation) == 0
    rounds(isolation, engine)
    assert engine.running == []


def test_a_suspect_of_a_model_that_is_not_loaded_holds_off_nothing() -> None:
    """Its turn comes with its engine."""
    isolation, engine = Quarantine(), FakeEngine()
    isolation.add(OTHER, line("suspect"))
    engine.add(line("a"))
    rounds(isolation, engine)
    assert engine.running == ["a"]


def test_an_engine_that_comes_meanwhile_waits_too() -> None:
    """A model loaded while a suspect runs begins nothing beside it."""
    isolation, first, second = Quarantine(), FakeEngine(), FakeEngine()
    isolation.add(ONE, line("suspect"))
    rounds(isolation, first)
    second.add(line("b"))
    rounds(isolation, first, second)
    assert (first.running, second.running) == (["suspect"], [])


def test_a_suspect_waits_for_the_records_of_others() -> None:
    """What has ended and is not stored would be taken for under way, should the suspect bring the worker down."""
    isolation, engine = Quarantine(), FakeEngine()
    isolation.add(ONE, line("suspect"))
    engine.add(line("a"))
    rounds(isolation, engine, unsettled=2)
    assert engine.running == []
    rounds(isolation, engine)
    assert engine.running == ["suspect"]


def test_suspects_hold_off_nothing_while_redis_is_out() -> None:
    """Nothing can be stored then, and the others go on."""
    isolation, engine = Quarantine(), FakeEngine()
    isolation.add(ONE, line("suspect"))
    engine.add(line("a"))
    rounds(isolation, engine, unsettled=None)
    assert engine.running == ["a"]
