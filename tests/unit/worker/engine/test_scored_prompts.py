"""Prompts of lines that are scored: which tokens are a continuation's, and what several prompts of a line become."""

from __future__ import annotations

import re
from typing import Any

import pytest

from jobs.errors import LineError
from tests.unit.worker.engine.test_prompts import HELLO, Letters, job, preparer
from worker.engine.scoring.task import ScoringTask


class Words(Letters):
    """A token for each word with the space before it, and for each other character; numbers as they come."""

    bos_token = None

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.words.setdefault(word, 10 + len(self.words)) for word in re.findall(r" ?\w+|\s|\W", text)]

    def text(self, tokens: tuple[int, ...]) -> list[str]:
        names = {number: word for word, number in self.words.items()}
        return [names[token] for token in tokens]


def parted(prompt: str, continuation: str) -> tuple[list[str], list[str]]:
    """The words of the context and of the continuation."""
    tokenizer = Words()
    line = preparer(tokenizer=tokenizer).prepare(job(prompt=prompt, continuation=continuation))
    assert line.scoring is not None
    words, border = tokenizer.text(line.prompt), line.scoring.border
    assert line.scoring == ScoringTask(border or 0, border=border)
    return words[:border], words[border:]


@pytest.mark.parametrize(
    ("prompt", "continuation", "context", "own"),
    [
        ("one two", " three four", ["one", " two"], [" three", " four"]),
        ("one two ", "three", ["one", " two"], [" three"]),
        ("one two\n", "three", ["one", " two"], ["\n", "three"]),
        ("one tw", "o three", ["one", " two"], [" three"]),
        ("one two", "three", ["one"], [" twothree"]),
        ("one two", "  three", ["one", " two"], [" ", " three"]),
    ],
)
def test_tokens_are_those_of_the_whole_text(prompt: str, continuation: str, context: Any, own: Any) -> None:
    """The continuation begins after as many tokens as the prompt has alone without blanks at its end; at least one
    token is its own."""
    assert parted(prompt, continuation) == (context, own)


def test_a_continuation_must_follow_something() -> None:
    """Where the prompt has no token to go on from, or none of its own, the line is refused."""
    for prompt, reason in (("  ", "has no token"), ("t", "a single token together")):
        with pytest.raises(LineError, match=reason) as caught:
            parted(prompt, "one")
        assert (caught.value.code, caught.value.field) == ("out_of_range", "prompt")


def test_what_generates_nothing_is_not_guided() -> None:
    """A constraint says nothing of a text that is not written: the record of a score has no ``valid``."""
    given = {"prompt": "one", "prompt_logprobs": 0, "response_format": {"type": "json_object"}}
    assert preparer().prepare(job(**given, max_tokens=0)).guide is None
    with pytest.raises(LineError, match="cannot be enforced"):  # by a tokenizer of letters
        preparer().prepare(job(**given))


def test_a_continuation_of_messages_is_the_answer() -> None:
    """It stands where the template lets the assistant begin, or after what the assistant's turn begins with."""
    line = preparer().prepare(job(messages=HELLO, continuation="yes"))
    assert line.scoring is not None
    text = "".join(map(chr, line.prompt))
    assert (text[: line.scoring.border], text[line.scoring.border :]) == ("[user]hi[assistant]", "yes")
    line = preparer().prepare(job(messages=HELLO, prefill_response="I say ", continuation="yes", prompt_logprobs=2))
    assert line.scoring is not None
    text = "".join(map(chr, line.prompt))
    assert (text[: line.scoring.border], text[line.scoring.border :]) == ("[user]hi[assistant]I say ", "yes")
    assert (line.scoring.first, line.scoring.top, line.scoring.listed) == (1, 2, 2)


def test_control_tokens_in_a_continuation_are_text() -> None:
    """As in any content of messages, unless files are trusted: a score cannot be that of a forged turn."""
    line = preparer().prepare(job(messages=HELLO, continuation="<|end|>"))
    assert "".join(map(chr, line.prompt)).endswith("[assistant]<|end|>")
    trusting = preparer(control_tokens=True).prepare(job(messages=HELLO, continuation="<|end|>"))
    assert trusting.prompt[-1] == 4


def test_a_prompt_may_fill_the_context_where_nothing_follows() -> None:
    """One that is only scored needs no room for a new token."""
    assert len(preparer(context=20).prepare(job(prompt="a" * 19, prompt_logprobs=0, max_tokens=0)).prompt) == 20
    with pytest.raises(LineError, match="context 20"):
        preparer(context=20).prepare(job(prompt="a" * 20, prompt_logprobs=0, max_tokens=0))
    with pytest.raises(LineError, match="context 20"):
        preparer(context=20).prepare(job(prompt="a" * 19, prompt_logprobs=0, max_tokens=1))


def test_several_prompts_are_parts_of_one_line() -> None:
    """Texts are encoded as ever, ids are taken as they are, and an echo is the text of either."""
    line = preparer().prepare(job(prompt=["ab", [99, 100]], echo=True, logprobs=True, top_logprobs=3), key="k")
    parts = (line, *line.others)
    assert [part.prompt for part in parts] == [(0, 97, 98), (99, 100)]
    assert [part.echo for part in parts] == ["ab", "cd"]
    assert {part.scoring for part in parts} == {ScoringTask(1, 3, generates=True)}
    assert {part.key for part in parts} == {"k"}
    plain = preparer().prepare(job(prompt=[[99, 100]]))
    assert (plain.prompt, plain.scoring, plain.echo, plain.others) == ((99, 100), None, None, ())


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    """As any prompt that a model has no token for; the error says which of several it is."""
    for prompt, field in (([[5], [300]], "prompt[1]"), ([300], "prompt")):
        with pytest.raises(LineError) as caught:
            preparer().prepare(job(prompt=prompt))
        assert (caught.value.code, caught.value.field) == ("unsupported", field)


def test_a_preview_has_the_whole_text() -> None:
    """What `check --model` shows is what is read, the continuation and every prompt."""
    assert preparer().render(job(prompt="one", continuation=" two")) == "one two"
    assert preparer().render(job(messages=HELLO, continuation="yes")) == "[user]hi[assistant]yes"
    assert preparer().render(job(prompt=["ab", [99, 100]])) == "ab\ncd"
