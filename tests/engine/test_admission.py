"""Which lines an engine begins, and who is told of it first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.app.worker_options import EngineSettings
from jobs.shard import Group
from tests.engine.conftest import NoLog
from worker.engine.engine import Engine
from worker.engine.sequence import WITHOUT_CONTEXT, Finished, sequences_of
from worker.faults.quarantine import TRIAL_TOKENS
from worker.models.compute import Compute
from worker.shards.claimed import QuarantineLevel


def test_begun_lines_are_told_before_anything_is_computed_of_them(markov: Any, line_of: Any) -> None:
    """Each key once, while the model has not yet seen its prompt; a row that begins again is not told again."""
    model = markov()
    engine = Engine(model, decode_concurrency=4, prompt_concurrency=2)
    told: list[Any] = []

    def tell(keys: list[Any]) -> frozenset[Any]:
        assert sum(rows for rows, columns in model.model.calls if columns > 1) == len(told)
        assert all(key not in told for key in keys)
        told.extend(keys)
        return frozenset()

    engine.on_begin = tell
    for index in range(6):
        engine.add(line_of(index, range(1, 4), max_tokens=3))
    while engine.has_work:
        engine.step()
    assert sorted(told) == list(range(6))


def test_lines_that_shall_not_begin_are_cancelled(markov: Any, line_of: Any) -> None:
    """Nothing is computed of them; the others of their wave go on."""
    model = markov()
    engine = Engine(model, decode_concurrency=4, prompt_concurrency=4)
    engine.on_begin = lambda keys: frozenset(keys) & {1, 2}
    for index in range(4):
        engine.add(line_of(index, range(1, 4), max_tokens=3))
    ended: dict[Any, Any] = {}
    while engine.has_work:
        ended |= {finished.key: finished.sequences[0] for finished in engine.step()}
    assert {key: row.stop_reason for key, row in ended.items()} == {
        0: "max_tokens", 1: "cancelled", 2: "cancelled", 3: "max_tokens"
    }  # fmt: skip
    assert sum(rows for rows, columns in model.model.calls if columns > 1) == 2
    assert engine.stats.prompt_tokens == 6


def test_only_admitted_lines_begin(markov: Any, line_of: Any) -> None:
    """Those under way go on, the others wait in their order, and begin when all are admitted again."""
    engine = Engine(markov(), decode_concurrency=4)
    engine.add(line_of("first", [1], max_tokens=20))
    engine.step()
    engine.admit(frozenset())
    for key in ("a", "b", "c"):
        engine.add(line_of(key, [1], max_tokens=2))
    for _ in range(5):
        engine.step()
    assert engine.begun == 1
    engine.admit(frozenset({"b"}))
    ended = [finished.key for _ in range(6) for finished in engine.step()]
    assert ended == ["b"]
    assert "a" in engine
    assert "b" not in engine
    engine.admit(None)
    ended = [finished.key for _ in range(40) for finished in engine.step()]
    assert sorted(ended) == ["a", "c", "first"]
    assert not engine.has_work


def test_rows_that_begin_again_are_not_held_off(markov: Any, line_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no line may begin, those under way come to their end all the same, after an error of the device too."""
    engine = Engine(markov(), decode_concurrency=4, prompt_concurrency=2)
    for key in ("a", "b", "c"):
        engine.add(line_of(key, [1, 2], max_tokens=8))
    for _ in range(5):
        engine.step()
    assert engine.begun == 3
    engine.admit(frozenset())
    engine.add(line_of("late", [1], max_tokens=2))
    advance, failures = engine._decode_batch.advance, iter([RuntimeError("lost")])

    def failing() -> None:
        for failure in failures:
            raise failure
        advance()

    monkeypatch.setattr(engine._decode_batch, "advance", failing)
    ended = [finished.key for _ in range(60) for finished in engine.step()]
    assert sorted(ended) == ["a", "b", "c"]
    assert engine.pending == 1


@pytest.fixture
def compute(markov: Any) -> Any:
    """A compute thread that is not started, with one engine; ``ended`` collects what ended."""
    ended: list[Finished] = []
    made = Compute(EngineSettings(), lambda group, finished: ended.append(finished), lambda: None, NoLog())
    made._engines[Group("m")] = Engine(markov(), decode_concurrency=4)
    return made, ended


def test_suspects_run_by_themselves_on_the_real_engine(compute: Any, line_of: Any) -> None:
    """No step has a suspect and another line; all of them end."""
    made, ended = compute
    group = Group("m")
    for index in range(6):
        made.add(
            group, line_of(index, [1, 2], max_tokens=4), QuarantineLevel.ALONE if index % 2 else QuarantineLevel.NONE
        )
    together = []
    for _ in range(100):
        made._obey() if not made._commands.empty() else None
        made._step()
        together.append({line.key for line in made._engines[group].snapshot()})
        if len(ended) == 6:
            break
    assert sorted(finished.key for finished in ended) == list(range(6))
    assert all(len(keys) == 1 for keys in together if keys & {1, 3, 5})
    assert any(len(keys) == 3 for keys in together)
    assert made.idle


def test_a_trial_on_the_real_engine_begins_anew_among_the_others(compute: Any, line_of: Any) -> None:
    """Its record is as if there had been none: one end, all its tokens, and those that it would have had."""
    made, ended = compute
    group, tokens = Group("m"), 3 * TRIAL_TOKENS
    for index in range(4):
        quarantine = QuarantineLevel.TRIAL if index % 2 else QuarantineLevel.NONE
        made.add(group, line_of(index, [1, 2], max_tokens=tokens), quarantine)
    together = []
    for _ in range(20 * tokens):
        made._obey() if not made._commands.empty() else None
        made._step()
        together.append({line.key for line in made._engines[group].snapshot()})
        if len(ended) == 4:
            break
    assert sorted(finished.key for finished in ended) == list(range(4))
    rows = [finished.sequences[0] for finished in ended]
    assert {row.stop_reason for row in rows} == {"max_tokens"}
    assert len({tuple(row.tokens) for row in rows}) == 1
    assert together.index({1}) < together.index({3}) < together.index({0, 1, 2, 3})
    assert made.idle


def test_a_line_that_cannot_be_queued_fails_by_itself(compute: Any, line_of: Any) -> None:
    """A token that the model does not have ends its line, not the thread."""
    made, ended = compute
    made.add(Group("m"), line_of("bad", [100_000], max_tokens=2))
    made._obey()
    [finished] = ended
    assert finished.error.code == "internal_error"
    assert "100000" in finished.error.message


def test_texts_to_the_contexts_end_run_together(markov: Any, line_of: Any) -> None:
    """Lines without max_tokens, as OpenAI's are: all of them at once where their contexts fit, each to its end."""
    engine = Engine(markov(context=40), decode_concurrency=8, prompt_concurrency=8)
    for index in range(8):
        engine.add(line_of(index, range(1, 4), max_tokens=None))
    ended: dict[Any, Any] = {}
    while engine.has_work:
        ended |= {finished.key: finished.sequences[0] for finished in engine.step()}
    assert {(row.stop_reason, row.completion_tokens, row.limit) for row in ended.values()} == {
        ("context_length", 37, 37)
    }
    assert engine.stats.decode_rows == 8 * engine.stats.decode_steps


def test_a_text_without_end_ends_where_no_context_is_known(line_of: Any) -> None:
    """A model that does not say how long its context is has a bound all the same."""
    (row,) = sequences_of(line_of("a", [1], max_tokens=None), None, 0.0)
    assert (row.limit, row.limit_reason) == (WITHOUT_CONTEXT, "max_tokens")


class Slow:
    """An in-flight log whose Redis never answers."""

    unsettled = 0

    def __init__(self) -> None:
        self.wanted: set[Any] = set()
        self.noted: frozenset[Any] = frozenset()

    def admitted(self, engines: Any, only: Any) -> frozenset[Any]:
        self.wanted.update(key for engine in engines for key in engine.upcoming(only))
        return self.noted

    def begun(self, keys: Any) -> frozenset[Any]:
        return frozenset()


def test_rows_under_way_go_on_while_what_is_next_is_not_noted_yet(markov: Any, line_of: Any) -> None:
    """The next prompts are known, and begin in the round after Redis has answered; with nothing under way the thread
    waits for that answer, and does not turn in a circle."""
    ended: list[Finished] = []
    log: Any = Slow()
    made = Compute(EngineSettings(), lambda group, finished: ended.append(finished), lambda: None, log)
    engine = made._engines[Group("m")] = Engine(markov(), decode_concurrency=4, prompt_concurrency=2)
    for index in range(5):
        engine.add(line_of(index, [1, 2], max_tokens=6))
    assert not engine.runnable or made._step() is None
    assert (engine.begun, log.wanted) == (0, {0, 1})
    assert not engine.runnable
    log.noted = frozenset({0, 1})
    for _ in range(4):
        made._step()
    assert engine.begun == 2
    assert log.wanted == {0, 1, 2, 3}
    while len(ended) < 2:
        made._step()
    assert (engine.begun, engine.pending, engine.runnable) == (0, 3, False)
    log.noted = frozenset({2, 3})
    made._step()
    assert engine.begun == 2


def test_the_thread_sleeps_until_something_happens(compute: Any, line_of: Any) -> None:
    """A suspect that waits for the records of others, and lines that wait for the suspect, are no reason to look again
    and again: the writer says when they are stored."""
    made, _ = compute
    unstored, waits = [1], []
    made._unstored = lambda: unstored[0]
    group = Group("m")
    made.add(group, line_of("other", [1, 2], max_tokens=4))
    made.add(group, line_of("suspect", [1, 2], max_tokens=4), QuarantineLevel.ALONE)
    made._obey()
    made._step()
    get = made._commands.get

    def waiting(block: bool, timeout: float | None) -> Any:
        waits.append((block, timeout))
        if block:
            unstored[0] = 0
            made.look()
        return get(block, timeout)

    made._commands = SimpleNamespace(get=waiting, put=made._commands.put, empty=made._commands.empty)
    made._obey()
    assert waits[0] == (True, None)
    made._step()
    assert {line.key for line in made._engines[group].snapshot()} == {"suspect"}


def test_a_failure_where_lines_begin_loses_none(markov: Any, line_of: Any) -> None:
    """The prompts of a wave were chosen, and who is told of them raises: the lines begin with the next wave."""
    engine = Engine(markov(), decode_concurrency=4)
    engine.add(line_of("running", [1], max_tokens=30))
    engine.step()
    failures = [OSError("nobody there")]

    def begin(_: Any) -> frozenset[Any]:
        if failures:
            raise failures.pop()
        return frozenset()

    engine.on_begin = begin
    engine.add(line_of("new", range(1, 6), max_tokens=5))
    ended = {}
    for _ in range(200):
        ended |= {finished.key: finished.error for finished in engine.step()}
    assert ended == {"running": None, "new": None}


def test_a_closed_engine_is_empty(markov: Any, line_of: Any) -> None:
    """Lines that waited are forgotten too: the engine can be used anew."""
    engine = Engine(markov(), decode_concurrency=1, prompt_concurrency=1)
    for index in range(4):
        engine.add(line_of(index, [1, 2], max_tokens=3))
    engine.step()
    engine.close()
    engine.add(line_of("x", [1, 2], max_tokens=3))
    ended: list[Any] = []
    while engine.has_work:
        ended += [finished.key for finished in engine.step()]
    assert ended == ["x"]
