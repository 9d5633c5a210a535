"""Tokens to text without a model: stop strings, thinking, characters of several bytes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from jobs.params import Sampling
from worker.engine.sequence import Sequence, choice_seed
from worker.engine.text import StopMatcher, TextAssembler, TextStream, split_thinking

THINK = ("<think>", "</think>")


class Bytes:
    """A detokenizer whose tokens are bytes, or pieces of text: it gives whole characters only."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces, self.pending, self.text = pieces, b"", ""

    def add_token(self, token: int) -> None:
        self.pending += self.pieces[token]
        text = self.pending.decode("utf-8", "replace")
        if not text.endswith("\ufffd"):
            self.text, self.pending = self.text + text, b""

    def finalize(self) -> None:
        self.text += self.pending.decode("utf-8", "replace")
        self.pending = b""


def match(pieces: list[bytes], stops: list[str], min_tokens: int = 0) -> tuple[str, str | None, int]:
    """Text, matched stop string and number of tokens read, of pieces fed one by one."""
    matcher = StopMatcher(stops, TextStream(Bytes(pieces)), min_tokens)
    for token in range(len(pieces)):
        if matcher.add(token):
            return matcher.text, matcher.match, token + 1
    matcher.close()
    return matcher.text, matcher.match, len(pieces)


def cut(text: str, count: int, seed: int) -> list[bytes]:
    """The bytes of a text in ``count`` pieces or fewer, cut anywhere, within characters too."""
    data = text.encode()
    borders = (
        sorted(random.Random(seed).sample(range(1, len(data)), min(count, len(data) - 1))) if len(data) > 1 else []
    )
    return [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]


@given(
    text=st.text("abé日🙂 ", min_size=1, max_size=30),
    stops=st.lists(st.text("abé日🙂 ", min_size=1, max_size=4), min_size=1, max_size=4),
    count=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_matches_do_not_depend_on_tokens(text: str, stops: list[str], count: int, seed: int) -> None:
    """However a text is cut into tokens the same stop string matches at the same place: that which is complete first
    when the text is read character by character."""
    found, matched, _ = match(cut(text, count, seed), stops)
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            assert (found, matched) == (text[: end - len(longest)], longest)
            return
    assert (found, matched) == (text, None)


def test_match_ends_the_reading_at_once() -> None:
    """The token that completes a stop string is the last one read, though the string began tokens before."""
    assert match([b"one ", b"ST", b"O", b"P two", b"more"], ["STOP"]) == ("one ", "STOP", 4)
    assert match([b"xabcx"], ["abc", "b"]) == ("xa", "b", 1)


def test_min_tokens_guard_the_beginning() -> None:
    """Matches within the first tokens count for nothing; one that ends behind them does, wherever it began."""
    assert match([b"x", b"x", b"x", b"x"], ["x"], min_tokens=3) == ("xx", "x", 3)
    assert match([b"a", b"b", b"c"], ["ab"], min_tokens=3) == ("abc", None, 3)
    assert match([b"a", b"b", b"c"], ["bc"], min_tokens=3) == ("a", "bc", 3)


def test_half_a_character_is_left_out() -> None:
    """Bytes of a character that was cut by the end of the text are not shown as a replacement character."""
    assert match([b"caf", b"\xc3"], ["zzz"])[0] == "caf"
    stream = TextStream(Bytes(["\ufffd!".encode(), "日".encode()[:2]]))
    assert [stream.add(0), stream.add(1), stream.close()] == ["\ufffd!", "\ufffd!", "\ufffd!"]


@pytest.mark.parametrize(
    ("raw", "inside", "text", "reasoning"),
    [
        ("plain <b>text</b>\n", False, "plain <b>text</b>\n", None),
        ("<think>\nhm\n</think>\n\n42\n", False, "42\n", "hm"),
        ("hm, so\n</think>\n\n42", True, "42", "hm, so"),
        ("still thinking", True, "", "still thinking"),
        ("<think>\n\n</think>\n\n42", False, "42", None),
        ("<think>a</think>x<think>b</think>y", False, "x\ny", "a\nb"),
        ("Sure.\n<think>a", False, "Sure.", "a"),
        ("stray </think> marker", False, "stray </think> marker", None),
        ("", True, "", None),
    ],
)
def test_thinking_is_apart(raw: str, inside: bool, text: str, reasoning: str | None) -> None:
    """What is between the markers is the reasoning, the rest the text, and white space at markers is nobody's."""
    assert split_thinking(raw, THINK, inside=inside) == (text, reasoning)


class Words:
    """A tokenizer of whole words, with thinking."""

    has_thinking, think_start, think_end = True, "<think>", "</think>"
    words = ("<eos>", "<think>", "</think>", " a", " b", " c")

    @property
    def detokenizer(self) -> Any:
        return Bytes([word.encode() for word in self.words])

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.words[token] for token in tokens)


def sequence(tokens: list[int], reason: str | None, **given: Any) -> Sequence:
    row = Sequence("k", 0, (1,), Sampling(seed=1, **given), 1, frozenset({0}), limit=10)
    row.tokens = tokens
    row.stop_reason = reason
    return row


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("eos", "stop"),
        ("stop_string", "stop"),
        ("max_tokens", "length"),
        ("context_length", "length"),
        ("cancelled", None),
        ("expired", None),
    ],
)
def test_finish_reasons_are_openais(reason: str, finish: str | None) -> None:
    """Each stop reason has OpenAI's finish reason, or none."""
    found = TextAssembler(Words()).assemble(sequence([3, 4], reason))
    assert (found.stop_reason, found.finish_reason) == (reason, finish)


def test_assembly() -> None:
    """A completion has the text without the EOS that ended it, and the reasoning apart."""
    found = TextAssembler(Words()).assemble(sequence([1, 3, 2, 4, 5, 0], "eos"))
    assert (found.text, found.reasoning, found.logprobs) == ("b c", "a", None)


def test_ignored_eos_stays_in_the_text() -> None:
    """A row that ended for another reason keeps all its tokens, as mlx-lm's text does."""
    found = TextAssembler(Words()).assemble(sequence([3, 0, 4], "max_tokens", ignore_eos=True))
    assert found.text == " a<eos> b"


def test_logprob_entries() -> None:
    """Entries are in OpenAI's names, one per token of the text."""
    row = sequence([3, 0], "eos", logprobs=True, top_logprobs=1)
    row.token_logprobs, row.top_logprobs = [-0.5, -0.1], [[(4, -0.4)], [(0, -0.1)]]
    assert TextAssembler(Words()).assemble(row).logprobs == [
        {
            "token": " a",
            "id": 3,
            "logprob": -0.5,
            "bytes": [32, 97],
            "top_logprobs": [{"token": " b", "id": 4, "logprob": -0.4, "bytes": [32, 98]}],
        }
    ]


def test_seeds_of_choices() -> None:
    """The first choice has the line's seed, the others different ones, always the same."""
    seeds = [choice_seed(7, choice) for choice in range(100)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 100
    assert seeds[5] == choice_seed(7, 5) != choice_seed(8, 5)
    assert all(0 <= seed < 2**64 for seed in seeds)
