"""With a trained model and its tokenizer: what users get of texts that are scored, in our records and in OpenAI's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import orjson
import pytest

from jobs.lines.line import Defaults, Job, check_line
from jobs.record import RunStats, result_record
from submit.results.openai_format import envelope
from worker.engine.engine import Engine
from worker.engine.loading.model import LoadedModel
from worker.engine.prompts.prepare import Preparer
from worker.engine.text.completion import TextAssembler

STATS = RunStats(1, 0, 0, 0.0, 0.0, 0.0, 0.0)
TEXT = "Once upon a time there was a duck named Jack who"


def job(fields: dict[str, Any]) -> Job:
    line = check_line(json.dumps(fields).encode())
    return line.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))


@pytest.fixture
def scored(pocket: LoadedModel) -> Callable[..., list[dict[str, Any]]]:
    """``scored(*lines)``: the records of lines that are run together."""

    def run(*lines: dict[str, Any]) -> list[dict[str, Any]]:
        engine, preparer, assembler = Engine(pocket), Preparer(pocket), TextAssembler(pocket.tokenizer)
        jobs = [job(fields) for fields in lines]
        for index, one in enumerate(jobs):
            engine.add(preparer.prepare(one, key=index))
        done: dict[Any, Any] = {}
        while engine.has_work:
            for finished in engine.step():
                assert finished.error is None
                choices = map(assembler.assemble, finished.sequences)
                names = {"batch_id": "b", "model_revision": None, "worker": "w", "attempt": 1}
                record = result_record(
                    jobs[finished.key],
                    choices,
                    STATS,
                    created_at=0.0,
                    finished_at=0.0,
                    **names,  # type: ignore[arg-type]
                )
                done[finished.key] = orjson.loads(record)
        return [done[index] for index in range(len(lines))]

    return run


def alone(model: LoadedModel, ids: list[int]) -> np.ndarray[Any, Any]:
    logits = model.model(mx.array([ids]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def test_a_continuation_has_the_score_of_its_tokens(pocket: LoadedModel, scored: Any) -> None:
    """What greedy decoding writes is greedy, anything else is not; sums are those of the tokens, wherever the blank
    between both stands."""
    begun, rest = TEXT[:28], TEXT[28:]
    good, moved, other, shown = scored(
        {"prompt": begun, "continuation": rest},
        {"prompt": begun + " ", "continuation": rest[1:]},
        {"prompt": begun, "continuation": " prime number"},
        {"prompt": begun, "continuation": rest, "logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1},
    )
    ids = pocket.tokenizer.encode(TEXT)
    border = len(pocket.tokenizer.encode(begun))
    own = [float(alone(pocket, ids)[place - 1, ids[place]]) for place in range(1, len(ids))]
    assert (good["text"], good["stop_reason"], good["finish_reason"]) == ("", "scored", "length")
    assert good["score"]["tokens"] == len(ids) - border
    assert math.isclose(good["score"]["logprob"], sum(own[border - 1 :]), abs_tol=1e-4)
    assert good["score"]["is_greedy"]
    assert moved["score"]["tokens"] == good["score"]["tokens"]
    assert math.isclose(moved["score"]["logprob"], good["score"]["logprob"], abs_tol=1e-5)
    assert not other["score"]["is_greedy"]
    assert other["score"]["logprob"] < good["score"]["logprob"]
    assert "prompt_logprobs" not in good
    entries = shown["score"]["logprobs"]
    assert "".join(entry["token"] for entry in entries) == rest
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * len(entries)
    listed = shown["prompt_logprobs"]
    assert listed[0] is None
    assert "".join(entry["token"] for entry in listed[1:]) == TEXT.removeprefix("Once")
    np.testing.assert_allclose([entry["logprob"] for entry in listed[1:]], own, atol=1e-4)
    assert set(listed[1]) == {"id", "token", "logprob", "rank", "top"}
    assert [(entry["rank"] == 1) == (entry["top"][0]["id"] == entry["id"]) for entry in listed[1:]] == [True] * len(own)


def test_answers_of_messages_are_scored(scored: Any) -> None:
    """After the template the answer that the model gives is likelier than another."""
    asked = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    (answer,) = scored({**asked, "max_tokens": 30})
    right, wrong = scored({**asked, "continuation": answer["text"]}, {**asked, "continuation": "Lamp"})
    assert right["score"]["is_greedy"]
    assert right["score"]["logprob"] > wrong["score"]["logprob"]


def test_echo_repeats_the_prompt(pocket: LoadedModel, scored: Any) -> None:
    """In OpenAI's form lists cover prompt and completion, nulls first, whether the prompt is text or ids."""
    ids = pocket.tokenizer.encode(TEXT)
    body = {"echo": True, "logprobs": 1, "temperature": 0, "max_tokens": 1}
    text, tokens, plain = scored(
        {"body": {"prompt": TEXT, **body}},
        {"body": {"prompt": [ids, ids[:4]], **body}},
        {"body": {"prompt": TEXT, **body, "logprobs": None}},
    )
    (choice,) = envelope(text, str)["response"]["body"]["choices"]
    assert choice["text"].startswith(TEXT)
    lists = choice["logprobs"]
    assert "".join(lists["tokens"]) == choice["text"]
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert {len(values) for values in lists.values()} == {len(ids) + 1}
    assert lists["text_offset"][:2] == [0, len("Once")]
    own = alone(pocket, ids)
    wanted = [own[place - 1, ids[place]] for place in range(1, len(ids))]
    np.testing.assert_allclose(lists["token_logprobs"][1:-1], wanted, atol=1e-4)
    whole, part = envelope(tokens, str)["response"]["body"]["choices"]
    assert (whole["index"], part["index"]) == (0, 1)
    assert whole["text"] == choice["text"]
    np.testing.assert_allclose(whole["logprobs"]["token_logprobs"][1:], lists["token_logprobs"][1:], atol=1e-5)
    assert part["logprobs"]["tokens"][:-1] == lists["tokens"][:4]
    assert plain["text"] == choice["text"]
    assert "logprobs" not in plain


def test_a_harness_reads_what_it_asks_for(pocket: LoadedModel, scored: Any) -> None:
    """As lm-evaluation-harness does with local completions: ids of context and continuation, echo, one token more that
    it drops; the sum and whether it is greedy are those of a line with a continuation."""
    for rest in (TEXT[28:], " prime number"):
        context, whole = (pocket.tokenizer.encode(text) for text in (TEXT[:28], TEXT[:28] + rest))
        body = {"prompt": [whole], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
        asked, own = scored({"body": body}, {"prompt": TEXT[:28], "continuation": rest})
        (choice,) = envelope(asked, str)["response"]["body"]["choices"]
        logprobs = choice["logprobs"]["token_logprobs"][len(context) : -1]
        top = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert math.isclose(sum(logprobs), own["score"]["logprob"], abs_tol=1e-5)
        greedy = all(max(best.values()) == one for best, one in zip(top, logprobs, strict=True))
        assert greedy == own["score"]["is_greedy"]


def test_an_end_is_among_the_tokens_of_an_echo(pocket: LoadedModel, scored: Any) -> None:
    """Where the token that a harness drops is an EOS, the lists have it as any other: what is dropped is never the
    prompt's last token."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = scored({"messages": messages, "chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 30})
    template = pocket.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    text = template + answer["text"]
    ids = pocket.tokenizer.encode(text, add_special_tokens=False)
    body = {"prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    (asked,) = scored({"body": body})
    (choice,) = envelope(asked, str)["response"]["body"]["choices"]
    lists = choice["logprobs"]
    assert (answer["stop_reason"], choice["finish_reason"], choice["text"]) == ("eos", "stop", text)
    assert {len(values) for values in lists.values()} == {len(ids) + 1}
    assert lists["tokens"][-1] in (pocket.tokenizer.decode([token]) for token in pocket.eos)
    assert "".join(lists["tokens"][:-1]) == text
    assert lists["text_offset"][-1] == len(text)
