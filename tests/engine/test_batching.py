"""The loop: full batches, prompts between steps, failures that stay with their line, models that cannot batch."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ChunkedKVCache, KVCache

from jobs.errors import SickModelError
from worker.engine.engine import Engine


def steps_until(engine: Engine, condition: Any, limit: int = 500) -> list[Any]:
    finished: list[Any] = []
    for _ in range(limit):
        if condition():
            return finished
        finished += engine.step()
    raise AssertionError("never came")


def test_batch_stays_full_while_work_waits(markov: Any, line_of: Any) -> None:
    """A row that ends is followed at once: mean rows per step are those that may decode together, but for the end."""
    model = markov()
    engine = Engine(model, decode_concurrency=8, prompt_concurrency=4)
    for index in range(120):
        engine.add(line_of(index, range(1, 2 + index % 7), max_tokens=10 + index % 13))
    steps_until(engine, lambda: engine.stats.decode_steps > 3)
    before = (engine.stats.decode_rows, engine.stats.decode_steps)
    steps_until(engine, lambda: engine.pending == 0)
    rows, steps = engine.stats.decode_rows - before[0], engine.stats.decode_steps - before[1]
    assert rows / steps > 0.95 * 8
    steps_until(engine, lambda: not engine.has_work)
    assert engine.stats.completion_tokens == sum(10 + index % 13 for index in range(120))
    assert max(rows for rows, _ in model.model.calls) == 8


def test_long_prompt_does_not_stop_the_others(markov: Any, line_of: Any) -> None:
    """While a long prompt is prefilled in chunks, rows go on decoding in between."""
    engine = Engine(markov(), prefill_step_size=16)
    engine.add(line_of("short", [1], max_tokens=100))
    steps_until(engine, lambda: engine.stats.completion_tokens > 2)
    engine.add(line_of("long", [2] * 400, max_tokens=2))
    before = engine.stats.completion_tokens
    steps_until(engine, lambda: any(line.phase == "decode" and line.key == "long" for line in engine.snapshot()))
    assert engine.stats.completion_tokens - before >= 20
    assert max(rows * columns for rows, columns in engine.model.model.calls) <= 17


def test_prompts_are_prefilled_together(markov: Any, line_of: Any, run: Any) -> None:
    """Short prompts that wait together cost one forward, not one each."""
    model = markov()
    run(model, [line_of(i, range(1, 12 + i), max_tokens=2) for i in range(8)], prompt_concurrency=8)
    assert [shape for shape in model.model.calls if shape[1] > 1] == [(8, 17)]


def test_columns_computed_and_needed_are_counted(tiny: Any, line_of: Any, run: Any) -> None:
    """A step computes every row as wide as the longest; rows of equal length need all of it."""
    lines = {name: line_of(name, [1] * size, max_tokens=3, eos=()) for name, size in (("a", 4), ("b", 4), ("c", 10))}
    even, uneven = (Engine(tiny("qwen3"), compile=False) for _ in range(2))
    run(even, [lines["a"], lines["b"]])
    assert (even.stats.decode_columns, even.stats.needed_columns) == (2 * (4 + 5 + 6), 2 * (4 + 5 + 6))
    run(uneven, [lines["a"], lines["c"]])
    assert (uneven.stats.decode_columns, uneven.stats.needed_columns) == (2 * (10 + 11 + 12), 4 + 5 + 6 + 10 + 11 + 12)


def test_snapshot_tells_where_lines_are(markov: Any, line_of: Any) -> None:
    """Status sees a line's phase, how much of its prompt is computed, and its tokens so far."""
    engine = Engine(markov(), decode_concurrency=1, prompt_concurrency=1, prefill_step_size=10)
    engine.add(line_of("a", [1] * 41, max_tokens=30))
    engine.add(line_of("b", [1], max_tokens=30))
    assert engine.snapshot() == []
    assert engine.pending == 2
    engine.step()
    (line,) = engine.snapshot()
    assert (line.key, line.phase, line.prompt_tokens, line.prefilled, line.completion_tokens) == (
        "a",
        "prefill",
        41,
        10,
        0,
    )
    steps_until(engine, lambda: engine.stats.completion_tokens == 3)
    first = engine.snapshot()[0]
    assert (first.phase, first.prefilled, first.completion_tokens) == ("decode", 41, 3)


def test_drop_pending(markov: Any, line_of: Any, run: Any) -> None:
    """Lines that have not begun can be taken back; they are not heard of again."""
    engine = Engine(markov(), decode_concurrency=1, prompt_concurrency=1)
    for key in "abcd":
        engine.add(line_of(key, [1], max_tokens=9))
    engine.step()
    dropped = engine.drop_pending()
    assert engine.pending == 0
    assert set(dropped) | set(run(engine, [])) == set("abcd")
    assert "a" not in dropped
    assert "d" in dropped


def test_only_the_guilty_line_fails(markov: Any, line_of: Any, run: Any) -> None:
    """A line that breaks a step fails alone, with the reason; those beside it give the texts they give without it."""
    model = markov(poison=40)
    lines = [line_of(i, [i + 1] * (1 + i), max_tokens=20) for i in range(6)]
    guilty = line_of("guilty", [30], max_tokens=20)
    engine = Engine(model, decode_concurrency=4)
    done = run(engine, [*lines[:3], guilty, *lines[3:]], breaks=True)
    assert done["guilty"].error.code == "internal_error"
    assert "does not go down well" in done["guilty"].error.message
    for i in range(6):
        assert done[i].error is None
        assert done[i].sequences[0].tokens == list(range(i + 2, i + 22))
    assert engine.capacity == 4


def test_a_row_may_end_in_its_trial(markov: Any, line_of: Any, run: Any) -> None:
    """What breaks the step is the computation of what would come after the end of a text: nobody is guilty."""
    model = markov(poison=40)
    lines = [line_of("a", [35], eos=[40], max_tokens=20), line_of("b", [1], max_tokens=20)]
    done = run(model, lines, decode_concurrency=4, breaks=True)
    assert (done["a"].error, done["a"].sequences[0].tokens) == (None, [36, 37, 38, 39, 40])
    assert done["a"].sequences[0].stop_reason == "eos"
    assert (done["b"].error, done["b"].sequences[0].tokens) == (None, list(range(2, 22)))


def test_a_line_cancelled_before_its_trial(markov: Any, line_of: Any, run: Any) -> None:
    """It ends as cancelled, and the others go on."""
    engine = Engine(markov(poison=40), decode_concurrency=4)
    for key, start in (("guilty", 36), ("a", 1), ("b", 2)):
        engine.add(line_of(key, [start], max_tokens=20))
    done: dict[Any, Any] = {}
    while not engine.stats.recoveries:
        done |= {finished.key: finished for finished in engine.step()}
    engine.cancel("b")
    done |= run(engine, [], breaks=True)
    assert done["guilty"].error.code == "internal_error"
    assert done["a"].sequences[0].tokens == list(range(2, 22))
    assert done["b"].sequences[0].stop_reason == "cancelled"


def test_guilty_prompt(markov: Any, line_of: Any, run: Any) -> None:
    """The same holds for a line that breaks the prefill, and for one with several choices."""
    model = markov(poison=40)
    lines = [line_of("a", [1, 2], n=3, max_tokens=10), line_of("b", [3, 40, 3], n=2), line_of("c", [5], max_tokens=9)]
    done = run(model, lines, decode_concurrency=4, breaks=True)
    assert done["b"].error.code == "internal_error"
    assert [seq.tokens for seq in done["a"].sequences] == [list(range(3, 13))] * 3
    assert done["c"].sequences[0].tokens == list(range(6, 15))


def test_failure_of_the_batch_itself(markov: Any, line_of: Any, run: Any) -> None:
    """When every line is fine by itself the batch is made smaller, and all lines end well."""
    model = markov()
    object.__setattr__(model, "model", Narrow(model.model, rows=3))
    engine = Engine(model, decode_concurrency=16)
    done = run(engine, [line_of(i, [i + 1, i + 2], max_tokens=8) for i in range(20)], breaks=True)
    assert all(done[i].sequences[0].tokens == list(range(i + 3, i + 11)) for i in range(20))
    assert engine.capacity <= 3


class Narrow:
    """A model on a machine that cannot do many rows."""

    def __init__(self, inner: Any, rows: int) -> None:
        self.inner, self.rows, self.make_cache = inner, rows, inner.make_cache

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        if tokens.shape[0] > self.rows:
            raise RuntimeError("too many rows for this machine")
        return self.inner(tokens, cache)


class BrokenTokenizer:
    """Knows no whole characters, and fails on a token and when it is told to."""

    has_thinking = False
    closing = False

    def __init__(self, token: int) -> None:
        self.token = token

    def decode(self, tokens: list[int]) -> str:
        if self.closing:
            raise ValueError("cannot be closed")
        if self.token in tokens:
            raise KeyError(self.token)
        return "".join("\ufffd" for _ in tokens)


@pytest.fixture
def broken(markov: Any) -> Any:
    """A model that counts, with a tokenizer that fails on token 4."""
    model = markov()
    object.__setattr__(model, "tokenizer", BrokenTokenizer(4))
    return model


def test_host_failure_stays_with_its_line(broken: Any, line_of: Any, run: Any) -> None:
    """A tokenizer that fails on a token fails the line whose stop strings need it, no other."""
    lines = [line_of("a", [1], max_tokens=5), line_of("b", [1], max_tokens=5, stop=("x",))]
    done = run(broken, lines, breaks=True)
    assert done["a"].error is None
    assert done["b"].error.code == "internal_error"


def test_cancelled_line_that_cannot_be_closed_fails(broken: Any, line_of: Any, run: Any) -> None:
    """An engine that is asked to cancel never raises; the line fails with what its tokenizer said."""
    engine = Engine(broken)
    engine.add(line_of("a", [10], max_tokens=50, stop=("x",)))
    engine.add(line_of("b", [10], max_tokens=9))
    steps_until(engine, lambda: engine.stats.completion_tokens > 4)
    broken.tokenizer.closing = True
    engine.cancel("a")
    (finished,) = engine.step()
    assert finished.error.code == "internal_error"
    assert "cannot be closed" in finished.error.message
    assert run(engine, [])["b"].error is None
    assert engine.active == 0


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_caches_that_cannot_be_merged_run_one_at_a_time(
    kind: str, tiny: Any, line_of: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A model whose caches have no batch form is detected, says so, and gives the same tokens one row at a time."""
    from worker.engine.loading.mlx_models import measure

    model = tiny(kind)

    class Unmergeable:
        def __init__(self) -> None:
            self.layers = model.model.layers

        def make_cache(self) -> list[Any]:
            return [Bare() for _ in self.layers]

        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            return model.model(tokens, cache=cache)

    alone = measure(kind, Unmergeable(), model.tokenizer, model.config)
    assert not alone.batchable
    assert "one row at a time" in caplog.text
    lines = [line_of(i, range(1, 5 + 9 * i), max_tokens=8, n=1 + i, temperature=float(i)) for i in range(3)]
    engine = Engine(alone, decode_concurrency=8)
    assert engine.capacity == 1
    expected = run(model, lines)
    done = run(engine, lines)
    for key, finished in expected.items():
        assert [seq.tokens for seq in done[key].sequences] == [seq.tokens for seq in finished.sequences]
    assert engine.stats.prompt_tokens == sum(len(line.prompt) for line in lines)


class Bare(KVCache):
    """A cache without the batch protocol, as llama4's and afm7's are."""

    merge = property(lambda self: ChunkedKVCache.merge)


def test_state_space_models_without_padding(tiny: Any, line_of: Any, run: Any) -> None:
    """Where padding would get into a recurrent state, prompts of equal length only are prefilled together."""
    from dataclasses import replace

    model = replace(tiny("mamba2"), padded_prefill=False)
    lines = [line_of(i, range(1, 3 + i % 3), max_tokens=6) for i in range(7)]
    done = run(model, lines)
    assert {key: done[key].sequences[0].tokens for key in done} == {
        key: finished.sequences[0].tokens for key, finished in run(tiny("mamba2"), lines).items()
    }


def test_close_forgets_everything(markov: Any, line_of: Any) -> None:
    """After close there is no work, and nothing is reported."""
    engine = Engine(markov())
    for key in "ab":
        engine.add(line_of(key, [1, 2], max_tokens=50))
    engine.step()
    engine.close()
    assert (engine.has_work, engine.pending, engine.active, engine.step()) == (False, 0, 0, [])


def test_a_model_that_fails_at_everything_is_not_blamed_on_a_line(
    markov: Any, line_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine gives up with the reason; no line has failed, and all of them are still there."""
    model = markov()
    engine = Engine(model, decode_concurrency=4)
    for index in range(6):
        engine.add(line_of(index, [1, 2], max_tokens=50))
    finished = [engine.step() for _ in range(3)]

    def lost(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device was lost")

    monkeypatch.setattr(type(model.model), "__call__", lost)
    with pytest.raises(SickModelError, match="at the simplest prompt: RuntimeError: the device was lost"):
        steps_until(engine, lambda: False, limit=5)
    assert not any(finished)
    assert all(index in engine for index in range(6))


def test_a_step_that_fails_with_nothing_under_way_does_not_fail_for_ever(
    markov: Any, line_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is in order and no line has begun: the exception goes to whoever runs the engine."""
    engine = Engine(markov())
    engine.add(line_of("a", [1, 2], max_tokens=3))

    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine._staging, "start", broken)
    with pytest.raises(ZeroDivisionError):
        engine.step()
