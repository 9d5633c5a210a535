"""With a trained model and its tokenizer: the text is mlx_lm.generate's, and what the contract adds to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm import generate

from jobs.lines.line import Defaults, Job, check_line
from jobs.record import Choice
from worker.engine.engine import Engine
from worker.engine.loading.model import LoadedModel
from worker.engine.prompts.prepare import Preparer
from worker.engine.text.completion import TextAssembler
from worker.engine.text.detokenizer import Detokenizer, TextStream
from worker.engine.text.stop_strings import StopMatcher

QUESTIONS = [
    "What is 2 plus 3?",
    "What is the capital of France?",
    "Reverse the word lamp.",
    "Count from 3 to 9.",
    "Tell me a story.",
    "Give me JSON for a person named Ben aged 20.",
]


def job(**fields: Any) -> Job:
    line = check_line(json.dumps({"id": "x", **fields}).encode())
    return line.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))


@pytest.fixture
def complete(pocket: LoadedModel) -> Callable[..., list[list[Choice]]]:
    """``complete(*lines)``: the completions of job lines run together, by line and choice."""

    def run(*lines: dict[str, Any], **options: Any) -> list[list[Choice]]:
        engine, preparer, assembler = Engine(pocket, **options), Preparer(pocket), TextAssembler(pocket.tokenizer)
        for index, fields in enumerate(lines):
            engine.add(preparer.prepare(job(**fields), key=index))
        done: dict[Any, list[Choice]] = {}
        while engine.has_work:
            for finished in engine.step():
                assert finished.error is None
                done[finished.key] = [assembler.assemble(seq) for seq in finished.sequences]
        return [done[index] for index in range(len(lines))]

    return run


def chat(question: str, *, thinking: bool = False, **fields: Any) -> dict[str, Any]:
    options = {"enable_thinking": thinking}
    return {"messages": [{"role": "user", "content": question}], "chat_template_kwargs": options, **fields}


def expected(model: LoadedModel, question: str, *, thinking: bool = False, count: int = 40) -> str:
    """mlx_lm.generate's text of a chat."""
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, enable_thinking=thinking
    )
    return generate(model.model, model.tokenizer, prompt, max_tokens=count)


def test_greedy_text_is_mlx_lms(pocket: LoadedModel, complete: Any) -> None:
    """Chats and plain prompts run together give the very text that mlx_lm.generate prints for each, which leaves out
    the space that a plain prompt goes on with."""
    plain = ["Once upon a time", "The sun", "2 + 2 ="]
    lines = [chat(question, max_tokens=40) for question in QUESTIONS]
    lines += [{"prompt": text, "max_tokens": 30} for text in plain]
    texts = [completion.text for (completion,) in complete(*lines, decode_concurrency=4)]
    assert texts[: len(QUESTIONS)] == [expected(pocket, question) for question in QUESTIONS]
    found = [text.removeprefix(" ") for text in texts[len(QUESTIONS) :]]
    assert found == [generate(pocket.model, pocket.tokenizer, text, max_tokens=30) for text in plain]


def test_thinking_is_the_default_and_apart(pocket: LoadedModel, complete: Any) -> None:
    """As with mlx_lm.generate a model that can think does; its thoughts are the record's reasoning."""
    question = "What is 4 plus 5?"
    asked = {"messages": [{"role": "user", "content": question}], "max_tokens": 60}
    ((completion,),) = complete(asked)
    thought, _, answer = expected(pocket, question, thinking=True, count=60).partition("</think>")
    assert completion.reasoning == thought.strip()
    assert completion.text == answer.lstrip()
    assert completion.reasoning
    assert completion.text


def test_stop_strings_see_the_answer_only(pocket: LoadedModel, complete: Any) -> None:
    """A stop string that is in the thought does not end it; with stop_in_reasoning it does, as in the answer."""
    question = "What is 4 plus 5?"
    thought, _, answer = expected(pocket, question, thinking=True, count=60).partition("</think>")
    thought, answer = thought.strip(), answer.strip()
    stop = answer[:1]
    assert stop in thought
    asked = {"messages": [{"role": "user", "content": question}], "max_tokens": 60}
    (apart,), (both,), (white,) = complete(
        {**asked, "stop": [stop]}, {**asked, "stop": [stop], "stop_in_reasoning": True}, {**asked, "stop": ["\n"]}
    )
    assert (apart.reasoning, apart.text, apart.stop_string) == (thought, "", stop)
    assert (both.reasoning, both.text) == (thought[: thought.index(stop)] or None, "")
    assert (white.reasoning, white.text, white.stop_reason) == (thought, answer, "eos")


def test_stop_string_on_text(pocket: LoadedModel, complete: Any) -> None:
    """Any part of the text works as a stop string, wherever tokens begin and end in it."""
    text, question = max(
        ((expected(pocket, question), question) for question in QUESTIONS), key=lambda pair: len(pair[0])
    )
    assert len(text) > 25
    for start in range(2, 20, 3):
        stop = text[start : start + 4]
        ((completion,),) = complete(chat(question, stop=[stop, "never to be seen"], max_tokens=40))
        assert completion.text == text[: text.index(stop)]
        assert (completion.stop_reason, completion.stop_string) == ("stop_string", stop)


def test_rows_with_and_without_stop_strings_have_the_same_text(complete: Any) -> None:
    """Reading along for stop strings changes nothing in the text of a row that none ends."""
    with_stop, without = complete(
        chat(QUESTIONS[5], stop=["never to be seen"], max_tokens=40), chat(QUESTIONS[5], max_tokens=40)
    )
    assert with_stop == without


def test_sampled_lines_are_reproducible(complete: Any) -> None:
    """A seed gives the same choices again, and logprobs in OpenAI's names with the text's tokens."""
    line = chat(QUESTIONS[4], temperature=1.0, top_p=0.9, seed=5, n=3, max_tokens=12, logprobs=True, top_logprobs=2)
    first, second = complete(line, chat(QUESTIONS[0])), complete(line)
    assert first[0] == second[0]
    assert len({completion.text for completion in first[0]}) > 1
    entries = first[0][0].logprobs
    assert "".join(entry["token"] for entry in entries).strip() == first[0][0].text.strip()
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in entries)


@pytest.mark.parametrize("naive", [False, True])
def test_characters_of_several_tokens(pocket: LoadedModel, naive: bool) -> None:
    """Characters that take several tokens come whole or not at all, and can be part of stop strings."""
    tokenizer = pocket.tokenizer

    def stream() -> TextStream:
        return Detokenizer(SimpleNamespace(decode=tokenizer.decode) if naive else tokenizer).stream()

    tokens = tokenizer.encode("say 日本 🙂 now", add_special_tokens=False)
    growing = stream()
    seen = [growing.add(token) for token in tokens]
    assert not any("\ufffd" in text for text in seen)
    assert growing.close() == "say 日本 🙂 now"
    matcher = StopMatcher(["本 🙂"], stream())
    used = next(index for index, token in enumerate(tokens) if matcher.add(token))
    assert matcher.text == "say 日"
    assert used < len(tokens) - 1
    half = stream()
    for token in tokens[: used - 1]:
        half.add(token)
    assert half.close() in ("say 日本 ", "say 日本")
