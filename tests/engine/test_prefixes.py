"""What prompts have in common is computed once, and nobody can tell from the tokens."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import Prefix
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import measure
from worker.engine.prefill import PrefillBatch
from worker.engine.room import GROWTH

KINDS = ["qwen3", "gemma3_text", "lfm2"]
"""One per kind of cache; ``test_families`` has them all."""


def words(seed: int, length: int) -> list[int]:
    """Tokens that look random, none of them EOS."""
    return [(seed * 7919 + i * i * 31 + i * 17) % 251 + 1 for i in range(length)]


def tails(count: int) -> list[list[int]]:
    """What follows the prefix in each prompt: 1 to 13 tokens, told apart by the first two."""
    return [[1 + i % 250, 1 + i // 250, *words(i, i % 12)][: 1 + i % 13 if i % 13 else 14] for i in range(count)]


def tokens_of(done: dict[Any, Any]) -> dict[Any, list[list[int]]]:
    return {key: [seq.tokens for seq in finished.sequences] for key, finished in done.items()}


def cached_of(done: dict[Any, Any]) -> dict[Any, int]:
    return {key: finished.sequences[0].cached_tokens for key, finished in done.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_same_tokens_at_a_fraction_of_the_work(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """64 lines with 300 tokens in common give the tokens that they give without sharing; the 300 are computed once,
    and each line's count of cached tokens says whether it was the one."""
    model = tiny(kind)
    lines = [line_of(i, [*words(1, 300), *tail], max_tokens=6) for i, tail in enumerate(tails(64))]
    plain, shared = Engine(model, prefix_memory=0), Engine(model)
    expected, done = run(plain, lines), run(shared, lines)
    assert tokens_of(done) == tokens_of(expected)
    in_full = sum(len(line.prompt) - 1 for line in lines)
    assert (plain.stats.prefilled_tokens, plain.stats.cached_tokens) == (in_full, 0)
    assert set(cached_of(expected).values()) == {0}
    assert shared.stats.prefilled_tokens + shared.stats.cached_tokens == in_full
    assert sum(cached_of(done).values()) == shared.stats.cached_tokens
    assert shared.stats.cached_tokens == 63 * 300
    assert sorted(cached_of(done).values()) == [0] + [300] * 63


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_prefix_and_rest(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Prefix and rest are computed in chunks like other prompts, whatever their size."""
    model = tiny(kind)
    lines = [line_of(i, [*words(2, 50), *words(i + 9, 5 + 6 * i)], max_tokens=5) for i in range(8)]
    expected = tokens_of(run(model, lines, prefix_memory=0))
    for size in (7, 32, 100):
        engine = Engine(model, prefill_step_size=size, decode_concurrency=3, prompt_concurrency=4)
        assert tokens_of(run(engine, lines)) == expected
        assert engine.stats.cached_tokens == 7 * 50


@pytest.mark.parametrize("prefix", [40, 60, 61, 200])
def test_windows_of_all_sizes(prefix: int, tiny: Any, line_of: Any, run: Any) -> None:
    """A window that the prefix does not fill, that the rest fills, and that has long gone round: all the same."""
    model = tiny("gemma3_text", sliding_window=64)
    lines = [line_of(i, [*words(14, prefix), 1 + i, *words(i, 4 * i)], max_tokens=70) for i in range(7)]
    engine = Engine(model, decode_concurrency=4, prompt_concurrency=3)
    assert tokens_of(run(engine, lines)) == tokens_of(run(model, lines, prefix_memory=0))
    assert engine.stats.cached_tokens == 6 * prefix


def test_row_that_begins_again_keeps_its_count(tiny: Any, line_of: Any, run: Any) -> None:
    """A row whose filters the best candidates do not cover is computed again; that changes nothing in what it paid."""
    model = tiny("qwen3", vocab_size=8192)
    lines = [
        line_of(i, [*words(15, 90), 1 + i], temperature=50.0, top_p=0.9999, seed=i, max_tokens=4) for i in range(4)
    ]
    engine = Engine(model)
    done = run(engine, lines)
    assert engine.stats.repeated_rows > 0
    assert [cached_of(done)[i] for i in range(4)] == [0, 90, 90, 90]
    assert tokens_of(done) == tokens_of(run(model, lines, prefix_memory=0))


@pytest.mark.parametrize("kind", KINDS)
def test_two_prefixes_in_turn(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Lines of two prefixes and of none, in turn: each starts from its own, and beginnings of prefixes are shared."""
    model = tiny(kind)
    head = words(3, 40)
    starts = [[*head, *words(4, 60)], [*head, *words(5, 90)], []]
    lines = [line_of(i, [*starts[i % 3], *words(20 + i, 2 + i % 7)], max_tokens=5) for i in range(24)]
    engine = Engine(model)
    done = run(engine, lines)
    assert tokens_of(done) == tokens_of(run(model, lines, prefix_memory=0))
    assert [cached_of(done)[i] for i in range(6)] == [0, 40, 0, 100, 130, 0]
    assert engine.stats.prefilled_tokens == 40 + 60 + 90 + sum(1 + i % 7 for i in range(24))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_are_the_prefix_or_less(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Prompts equal to one another, to the common part, shorter than it, or one token longer: the last token of each
    is always computed."""
    model = tiny(kind)
    shared = words(6, 80)
    prompts = [shared, shared, shared[:33], shared[:79], [*shared, 7], [*shared, 8], [*shared, 9, 9], shared[:1]]
    lines = [line_of(i, prompt, max_tokens=5) for i, prompt in enumerate(prompts)]
    engine = Engine(model)
    done = run(engine, lines)
    assert tokens_of(done) == tokens_of(run(model, lines, prefix_memory=0))
    assert all(cached < len(prompts[key]) for key, cached in cached_of(done).items())
    assert engine.stats.cached_tokens > 250


@pytest.mark.parametrize("kind", KINDS)
def test_late_lines_find_what_was_computed(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """A line that comes when all others have ended starts from the prefix that they left."""
    model = tiny(kind)
    lines = [line_of(i, [*words(7, 100), 1 + i, *words(i, 4)], max_tokens=4) for i in range(6)]
    engine = Engine(model)
    run(engine, lines[:4])
    late = run(engine, lines[4:])
    assert set(cached_of(late).values()) == {100}
    assert tokens_of(late) == tokens_of(run(model, lines[4:], prefix_memory=0))


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_draws(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Several choices of one line, seeds and penalties are what they are without sharing."""
    model = tiny(kind)
    lines = [
        line_of(i, [*words(9, 70), 1 + i], n=1 + i % 3, temperature=0.8, seed=i, presence_penalty=0.5, max_tokens=8)
        for i in range(9)
    ]
    done = run(model, lines, decode_concurrency=5)
    assert tokens_of(done) == tokens_of(run(model, lines, decode_concurrency=5, prefix_memory=0))
    for finished in done.values():
        assert len({seq.cached_tokens for seq in finished.sequences}) == 1
    assert sorted(cached_of(done).values()) == [0] + [70] * 8


def test_little_memory_keeps_the_latest(tiny: Any, line_of: Any, run: Any) -> None:
    """With room for one prefix only the last one stays, the tokens are the same, and the budget is kept."""
    model = tiny("qwen3")
    budget = model.cache_cost(120)
    engine = Engine(model, prefix_memory=budget, prompt_concurrency=4)
    lines = [line_of(i, [*words(30 + i % 2, 100), 1 + i], max_tokens=3) for i in range(16)]
    expected = tokens_of(run(model, lines, prefix_memory=0))
    found: dict[Any, Any] = {}
    for line in lines:
        engine.add(line)
    while engine.has_work:
        found |= {finished.key: finished for finished in engine.step()}
        assert engine._prefixes.nbytes <= budget
    assert tokens_of(found) == expected
    # The first of four waves computes both prefixes; after it one of the two is always there.
    assert engine.stats.cached_tokens == 200 + 3 * 300
    assert len(engine._prefixes) == 1


def test_prefixes_take_their_part_of_the_memory(tiny: Any, line_of: Any) -> None:
    """What prefixes may take is not there for rows; a prefix larger than its budget is not kept at all."""
    model = tiny("qwen3")
    engine = Engine(model, memory_limit=model.cache_cost(100 + GROWTH), prefix_memory=model.cache_cost(40))
    engine.add(line_of("fits", words(1, 50), max_tokens=10))
    engine.add(line_of("not", words(1, 50), max_tokens=11))
    (finished,) = engine.step()
    assert (finished.key, finished.error.code) == ("not", "context_length_exceeded")
    with pytest.raises(ValueError, match="prefix_memory"):
        Engine(model, prefix_memory=-1)


def test_bytes_are_those_of_the_arrays(tiny: Any, line_of: Any, run: Any) -> None:
    """A kept prefix takes what its tokens take, without spare columns, and gives it back on close."""
    model = tiny("qwen3")
    engine = Engine(model)
    run(engine, [line_of(i, [*words(11, 300), 1 + i], max_tokens=2) for i in range(3)])
    (prefix,) = engine._prefixes._kept.values()
    assert engine._prefixes.nbytes == sum(
        array.nbytes for array in prompt_cache.arrays(prefix.caches) if array.ndim > 1
    )
    assert engine._prefixes.nbytes == model.cache_cost(300)
    del prefix
    engine.close()
    assert engine._prefixes.nbytes == len(engine._prefixes) == 0


def test_failed_step_drops_prefixes(markov: Any, line_of: Any, run: Any) -> None:
    """After a step that failed no cache is trusted: the prefix is computed again, and the lines end as ever."""
    model = markov(poison=240)
    engine = Engine(model)
    shared = [5] * 100
    run(engine, [line_of(i, [*shared, 10 + i], max_tokens=4) for i in range(4)])
    (trusted,) = engine._prefixes._kept.values()
    guilty = line_of("guilty", [*shared, 240, 3], max_tokens=4)
    lines = [line_of(10 + i, [*shared, 30 + i], max_tokens=4) for i in range(4)]
    done = run(engine, [*lines, guilty], breaks=True)
    assert done["guilty"].error.code == "internal_error"
    assert [done[10 + i].sequences[0].tokens for i in range(4)] == [list(range(31 + i, 35 + i)) for i in range(4)]
    # Each was computed in full on trial.
    assert [cached_of(done)[10 + i] for i in range(4)] == [0] * 4
    (anew,) = engine._prefixes._kept.values()
    assert anew is not trusted
    assert anew.tokens == trusted.tokens


def test_poisoned_prefix_fails_its_lines_only(markov: Any, line_of: Any, run: Any) -> None:
    """A prefix that cannot be computed fails the lines that begin with it."""
    model = markov(poison=240)
    bad = [line_of(("bad", i), [*[240] * 80, 10 + i], max_tokens=4) for i in range(3)]
    good = [line_of(("good", i), [*[6] * 80, 10 + i], max_tokens=4) for i in range(3)]
    done = run(model, [*bad, *good], breaks=True)
    assert all((finished.error is not None) == (key[0] == "bad") for key, finished in done.items())
    assert [done["good", i].sequences[0].tokens for i in range(3)] == [list(range(11 + i, 15 + i)) for i in range(3)]


def test_cancelled_payer(markov: Any, line_of: Any, run: Any) -> None:
    """The line for which the prefix is being computed may be cancelled: the others get it all the same."""
    engine = Engine(markov(), prefill_step_size=16)
    for i in range(4):
        engine.add(line_of(i, [*[5] * 100, 10 + i], max_tokens=4))
    engine.step()
    assert [line.prefilled for line in engine.snapshot()] == [0] * 4
    engine.cancel(0)
    done = run(engine, [])
    assert done[0].sequences[0].stop_reason == "cancelled"
    assert [cached_of(done)[i] for i in (1, 2, 3)] == [100] * 3


def test_models_that_cannot_share_do_not(tiny: Any, line_of: Any, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A model whose rows go wrong when they start from a copy is found out at load, says so, and computes in full."""
    inner = tiny("qwen3")

    class Forgetful:
        """Loses what a batch held when several rows are given to caches that hold something already."""

        def __init__(self) -> None:
            self.layers = inner.model.layers

        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            copied = tokens.shape[1] > 1 and type(cache[0]).__name__ == "BatchKVCache" and cache[0]._idx == 7
            logits: mx.array = inner.model(mx.zeros_like(tokens) if copied else tokens, cache=cache)
            return logits

    model = measure("forgetful", Forgetful(), inner.tokenizer, inner.config)
    assert model.batchable
    assert not model.prefixes
    assert "computes every prompt in full" in caplog.text
    engine = Engine(model)
    run(engine, [line_of(i, [*words(12, 80), 1 + i], max_tokens=2) for i in range(4)])
    assert engine.stats.cached_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
def test_copies_leave_the_prefix_alone(kind: str, tiny: Any) -> None:
    """What rows add to their copies does not show in the prefix, nor in other copies."""
    model = tiny(kind)
    assert model.prefixes
    prefix = Prefix(tuple(words(13, 40)))
    batch = PrefillBatch.of_prefix(model, prefix)
    while not batch.done:
        batch.advance(16)
    caches = prompt_cache.pack(batch.take(batch.groups).caches)
    before = [mx.array(array) for array in prompt_cache.arrays(caches)]
    for rows in (1, 3, 2):
        copies = prompt_cache.repeat(caches, rows)
        for width in (3, 1, 1):
            mx.eval(model.forward(mx.full((rows, width), 9), copies), prompt_cache.arrays(copies))
    assert all(mx.array_equal(one, other) for one, other in zip(before, prompt_cache.arrays(caches), strict=True))
