"""What a line gets: ends, limits, choices, log-probabilities, statistics, cancelling."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from worker.engine.engine import Engine
from worker.engine.room import GROWTH
from worker.engine.text.completion import TextAssembler


def text_of(model: Any, finished: Any, choice: int = 0) -> Any:
    assert finished.error is None
    return TextAssembler(model.tokenizer).assemble(finished.sequences[choice])


def letters(*tokens: int) -> str:
    return "".join(chr(0x100 + token) for token in tokens)


def test_max_tokens(markov: Any, line_of: Any, run: Any) -> None:
    """A text ends after max_tokens with finish_reason length."""
    model = markov()
    done = run(model, [line_of("a", [5], max_tokens=3), line_of("b", [7, 9], max_tokens=1)])
    first, second = text_of(model, done["a"]), text_of(model, done["b"])
    assert (first.text, first.stop_reason, first.finish_reason) == (letters(6, 7, 8), "max_tokens", "length")
    assert (second.text, second.stop_reason) == (letters(10), "max_tokens")
    assert [len(done[key].sequences[0].tokens) for key in "ab"] == [3, 1]


def test_eos_ends_and_is_counted(markov: Any, line_of: Any, run: Any) -> None:
    """EOS is no text, but it was generated: completion_tokens counts it."""
    model = markov()
    done = run(model, [line_of("a", [5], eos=[9], max_tokens=20)])
    found = text_of(model, done["a"])
    assert (found.text, found.stop_reason, found.finish_reason) == (letters(6, 7, 8), "eos", "stop")
    assert done["a"].sequences[0].completion_tokens == 4


def test_ignore_eos(markov: Any, line_of: Any, run: Any) -> None:
    """With ignore_eos the text goes on past EOS."""
    model = markov()
    done = run(model, [line_of("a", [5], eos=[7], ignore_eos=True, max_tokens=4)])
    assert text_of(model, done["a"]).text == letters(6, 7, 8, 9)


def test_min_tokens_puts_eos_off(markov: Any, line_of: Any, run: Any) -> None:
    """EOS cannot come among the first min_tokens tokens; the next best comes in its place."""
    table = np.zeros((256, 256), dtype=np.float32)
    table[:, 9] = 10.0
    table[:, 4] = 5.0
    model = markov(table)
    done = run(model, [line_of("a", [5], eos=[9], min_tokens=3, max_tokens=20), line_of("b", [5], eos=[9])])
    assert text_of(model, done["a"]).text == letters(4, 4, 4)
    assert text_of(model, done["b"]).text == ""
    assert done["a"].sequences[0].tokens == [4, 4, 4, 9]


def test_context_ends_a_text(markov: Any, line_of: Any, run: Any) -> None:
    """A row that fills the model's context ends there, and a prompt that fills it fails."""
    model = markov(context=10)
    engine = Engine(model)
    done = run(engine, [line_of("a", range(1, 8), max_tokens=50), line_of("b", range(1, 11), max_tokens=5)])
    assert text_of(model, done["a"]).stop_reason == "context_length"
    assert text_of(model, done["a"]).finish_reason == "length"
    assert len(done["a"].sequences[0].tokens) == 3
    assert done["b"].error.code == "context_length_exceeded"
    assert "10 tokens" in done["b"].error.message


def test_max_context_overrides_the_model(markov: Any, line_of: Any, run: Any) -> None:
    """--max-context wins over the config, in both directions."""
    model = markov(context=10)
    assert len(run(model, [line_of("a", [1, 2], max_tokens=30)], max_context=20)["a"].sequences[0].tokens) == 18
    assert len(run(model, [line_of("a", [1, 2], max_tokens=30)], max_context=5)["a"].sequences[0].tokens) == 3


def test_memory_that_can_never_do_fails_the_line(tiny: Any, line_of: Any, run: Any) -> None:
    """A line whose cache can never fit fails by itself; one that fits runs."""
    model = tiny("qwen3")
    limit = model.cache_cost(40 + GROWTH)
    lines = [line_of("long", range(1, 30), max_tokens=100), line_of("short", [1, 2, 3], max_tokens=5)]
    done = run(model, lines, memory_limit=limit, prefix_memory=0)
    assert done["long"].error.code == "context_length_exceeded"
    assert "bytes" in done["long"].error.message
    assert done["short"].error is None


@pytest.mark.parametrize("stop", [[letters(8, 9)], [letters(9)], [letters(30), letters(9, 10), letters(9)]])
def test_stop_strings_cut_the_text(stop: list[str], markov: Any, line_of: Any, run: Any) -> None:
    """The text ends before the first stop string that is complete, which may span tokens."""
    model = markov()
    done = run(model, [line_of("a", [5], stop=tuple(stop), max_tokens=20)])
    found = text_of(model, done["a"])
    matched = letters(8, 9) if letters(8, 9) in stop else letters(9)
    assert found.stop_reason == "stop_string"
    assert found.finish_reason == "stop"
    assert found.stop_string == matched
    assert found.text == letters(6, 7, 8).removesuffix(matched[:-1])


def test_stop_strings_wait_for_min_tokens(markov: Any, line_of: Any, run: Any) -> None:
    """A stop string within the first min_tokens tokens does not end the text; the same one later does."""
    table = np.zeros((256, 256), dtype=np.float32)
    for token in range(4):
        table[token, (token + 1) % 4] = 9.0
    model = markov(table)
    done = run(model, [line_of("a", [3], eos=[99], stop=(letters(1),), min_tokens=4, max_tokens=20)])
    assert text_of(model, done["a"]).text == letters(0, 1, 2, 3, 0)


def test_choices_share_the_prompt(tiny: Any, line_of: Any, run: Any) -> None:
    """n choices are n texts, the first with the line's own seed; the prompt is computed and counted once."""
    model = tiny("qwen3")
    prompt = list(range(1, 60))
    engine = Engine(model, decode_concurrency=4)
    sampled = {"temperature": 1.5, "seed": 9, "max_tokens": 8}
    done = run(engine, [line_of("n", prompt, n=6, **sampled)])
    alone = run(model, [line_of("1", prompt, **sampled)])
    texts = [seq.tokens for seq in done["n"].sequences]
    assert [seq.choice for seq in done["n"].sequences] == list(range(6))
    assert texts[0] == alone["1"].sequences[0].tokens
    assert len({tuple(text) for text in texts}) == 6
    assert engine.stats.prompt_tokens == len(prompt)
    assert run(model, [line_of("n", prompt, n=6, **sampled)])["n"].sequences[5].tokens == texts[5]


def test_seeds_reproduce_whatever_the_company(tiny: Any, line_of: Any, run: Any) -> None:
    """Sampled lines give the same tokens in any order, at any concurrency, next to any others."""
    model = tiny("qwen3")
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 0.9, "min_p": 0.05, "presence_penalty": 0.4},
        {"temperature": 1.0, "xtc_probability": 0.5, "frequency_penalty": 0.3},
        {},
    ]
    lines = [
        line_of(i, range(1, 4 + 3 * i), seed=i * 1000, max_tokens=14 + i, **kinds[i % len(kinds)]) for i in range(12)
    ]
    first = run(model, lines, decode_concurrency=12)
    for order, rows in ((lines[::-1], 3), (lines, 1)):
        again = run(model, order, decode_concurrency=rows, prompt_concurrency=2)
        for key, finished in first.items():
            assert again[key].sequences[0].tokens == finished.sequences[0].tokens


def test_logprobs_are_the_log_softmax(tiny: Any, line_of: Any, run: Any) -> None:
    """Log-probabilities are those of the model's distribution, the chosen token's and the best; before the filters."""
    model = tiny("llama")
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    lines = [
        line_of("a", prompt, logprobs=True, top_logprobs=4, temperature=1.0, top_k=3, max_tokens=5, eos=[]),
        line_of("b", prompt, max_tokens=5, eos=[]),
        line_of("c", prompt, logprobs=True, max_tokens=5, eos=[]),
    ]
    done = run(model, lines)
    entries = text_of(model, done["a"]).logprobs
    seq = done["a"].sequences[0]
    for position, entry in enumerate(entries):
        history = mx.array([prompt + seq.tokens[:position]])
        logits = np.array(model.model(history))[0, -1].astype(np.float64)
        expected = logits - np.logaddexp.reduce(logits)
        assert entry["id"] == seq.tokens[position]
        assert entry["token"] == letters(entry["id"])
        assert entry["logprob"] == pytest.approx(expected[entry["id"]], abs=1e-4)
        best = np.argsort(-expected)[:4]
        assert [item["id"] for item in entry["top_logprobs"]] == best.tolist()
        assert [item["logprob"] for item in entry["top_logprobs"]] == pytest.approx(expected[best], abs=1e-4)
    assert text_of(model, done["b"]).logprobs is None
    assert [item["top_logprobs"] for item in text_of(model, done["c"]).logprobs] == [[]] * 5


def test_logprobs_see_bias_and_leave_out_eos_and_what_is_cut(markov: Any, line_of: Any, run: Any) -> None:
    """Bias counts in log-probabilities; neither EOS nor tokens behind a stop string have an entry."""
    model = markov()
    lines = [
        line_of("biased", [5], logprobs=True, logit_bias={200: 60.0}, max_tokens=1),
        line_of("eos", [5], logprobs=True, eos=[8]),
        line_of("stop", [5], logprobs=True, stop=(letters(7, 8, 9),)),
    ]
    done = run(model, lines)
    (entry,) = text_of(model, done["biased"]).logprobs
    assert entry["id"] == 200
    assert entry["logprob"] == pytest.approx(-np.log1p(np.exp(-10.0)), abs=1e-4)
    assert [item["id"] for item in text_of(model, done["eos"]).logprobs] == [6, 7]
    assert [item["id"] for item in text_of(model, done["stop"]).logprobs] == [6]


def test_token_ids_are_all_that_was_generated_with_a_logprob_each(markov: Any, line_of: Any, run: Any) -> None:
    """EOS and the tokens of a stop string too: whoever trains on them needs the whole of what was drawn."""
    model = markov()
    lines = [
        line_of("eos", [5], logprobs=True, eos=[8]),
        line_of("stop", [5], logprobs=True, top_logprobs=1, stop=(letters(7, 8, 9),)),
        line_of("cut", [5], max_tokens=2),
    ]
    done = run(model, lines)
    whole = {
        key: TextAssembler(model.tokenizer).assemble(done[key].sequences[0], token_ids=True)
        for key in ("eos", "stop", "cut")
    }
    assert {key: choice.token_ids for key, choice in whole.items()} == {
        "eos": [6, 7, 8],
        "stop": [6, 7, 8, 9],
        "cut": [6, 7],
    }
    for key in ("eos", "stop"):
        assert [item["id"] for item in whole[key].logprobs] == whole[key].token_ids
        assert [item["logprob"] for item in whole[key].logprobs] == done[key].sequences[0].token_logprobs
    assert whole["stop"].text == text_of(model, done["stop"]).text == letters(6)
    assert whole["cut"].logprobs is None
    assert text_of(model, done["eos"]).token_ids is None


def test_uncovered_nucleus_is_done_again_by_the_full_path(line_of: Any, run: Any, markov: Any) -> None:
    """A nucleus wider than the best candidates loses nothing: the row goes on with its whole vocabulary, and draws
    from all of it, also when it sits in a batch."""
    table = np.broadcast_to(np.where(np.arange(6000) == 0, -100, 0).astype(np.float32), (6000, 6000))
    model = markov(table)
    engine = Engine(model, decode_concurrency=4)
    wide = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40}
    lines = [line_of(i, [1, 2, 3], seed=i, **wide) for i in range(6)] + [line_of("greedy", [1], max_tokens=30)]
    done = run(engine, lines)
    tokens = list(itertools.chain.from_iterable(done[i].sequences[0].tokens for i in range(6)))
    assert all(len(done[i].sequences[0].tokens) == 40 for i in range(6))
    assert len(set(tokens)) > 200
    assert max(tokens) > 5700
    assert engine.stats.repeated_rows == 6
    one = run(model, [line_of(3, [1, 2, 3], seed=3, **{**wide, "max_tokens": 1})])[3].sequences[0].tokens
    assert one == done[3].sequences[0].tokens[:1]
    assert run(model, [line_of(3, [1, 2, 3], seed=3, **wide)])[3].sequences[0].tokens == done[3].sequences[0].tokens


def test_cancel(markov: Any, line_of: Any, run: Any) -> None:
    """A cancelled line ends with its text so far, whether it decodes or waits; the others go on."""
    model = markov()
    engine = Engine(model, decode_concurrency=1, prompt_concurrency=1)
    for key in "abc":
        engine.add(line_of(key, [1], max_tokens=50))
    for _ in range(8):
        assert engine.step() == []
    engine.cancel("a")
    engine.cancel("c", "expired")
    engine.cancel("unknown")
    done = {finished.key: finished for finished in engine.step()}
    assert set(done) == {"a", "c"}
    found = text_of(model, done["a"])
    assert found.stop_reason == "cancelled"
    assert found.finish_reason is None
    assert found.text == letters(*range(2, 2 + len(found.text)))
    assert len(found.text) > 2
    assert (text_of(model, done["c"]).stop_reason, text_of(model, done["c"]).text) == ("expired", "")
    assert len(run(engine, [])["b"].sequences[0].tokens) == 50
    assert engine.active == 0


def test_cancel_of_choices_that_have_not_begun(markov: Any, line_of: Any) -> None:
    """Cancelling a line with more choices than rows ends those that wait as well."""
    engine = Engine(markov(), decode_concurrency=2)
    engine.add(line_of("a", [1, 2], n=5, max_tokens=50))
    for _ in range(4):
        engine.step()
    engine.cancel("a")
    (finished,) = engine.step()
    assert [seq.stop_reason for seq in finished.sequences] == ["cancelled"] * 5
    assert (engine.has_work, engine.active, engine.pending) == (False, 0, 0)


def test_statistics(markov: Any, line_of: Any) -> None:
    """Counts are exact and times are those of the clock."""
    ticks = itertools.count()
    engine = Engine(markov(), clock=lambda: float(next(ticks)))
    engine.add(line_of("a", [1, 2, 3], max_tokens=4))
    finished = []
    while engine.has_work:
        finished += engine.step()
    (seq,) = finished[0].sequences
    assert (seq.prompt_tokens, seq.completion_tokens, seq.cached_tokens) == (3, 4, 0)
    assert seq.submitted_at < seq.prefill_started < seq.first_token_at < seq.finished_at
    assert seq.first_token_at - seq.prefill_started == seq.prefill_s + seq.waited_s
    assert min(seq.prefill_s, seq.waited_s) > 0
    assert seq.decode_s > 0
    assert (engine.stats.prompt_tokens, engine.stats.completion_tokens) == (3, 4)
    assert (engine.stats.decode_steps, engine.stats.decode_rows, engine.stats.finished_lines) == (4, 4, 1)


def test_keys_and_tokens_are_checked(markov: Any, line_of: Any) -> None:
    """Two lines of one key, and ids beyond the vocabulary, are refused at once: they are the caller's mistakes."""
    engine = Engine(markov())
    engine.add(line_of("a", [1]))
    with pytest.raises(ValueError, match="already"):
        engine.add(line_of("a", [1]))
    with pytest.raises(ValueError, match="vocabulary"):
        engine.add(line_of("b", [1, 256]))
    with pytest.raises(ValueError, match="vocabulary"):
        engine.add(line_of("c", [1], logit_bias={300: 1.0}))
    with pytest.raises(ValueError, match="seed"):
        engine.add(line_of("d", [1], seed=None))
