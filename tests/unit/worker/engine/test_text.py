"""Tokens to text without a model: stop strings, thinking, characters of several bytes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from jobs.params import Sampling
from worker.engine.sequence import PreparedLine, Sequence, choice_seed
from worker.engine.text.completion import TextAssembler
from worker.engine.text.detokenizer import Detokenizer, TextStream
from worker.engine.text.markup import Markup, Thinking
from worker.engine.text.parts import AnswerParts, split_thinking
from worker.engine.text.stop_strings import StopMatcher

THINK = Markup(
    {"answer": (("<think>", "reasoning"),), "reasoning": (("</think>", "answer"),)},
    thinking=Thinking("<think>", "</think>"),
)


class Bytes:
    """A tokenizer whose tokens are pieces of bytes; behind them there is one for each byte."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def convert_ids_to_tokens(self, token: int) -> bytes:
        return self.pieces[token] if token < len(self.pieces) else bytes([token - len(self.pieces)])

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(self.pieces) + byte for byte in text.encode()]

    def decode(self, tokens: list[int]) -> str:
        return b"".join(map(self.convert_ids_to_tokens, tokens)).decode(errors="replace")


class Decoding:
    """A tokenizer that can but decode."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.decode = Bytes(pieces).decode


def stream_of(pieces: list[bytes]) -> TextStream:
    return Detokenizer(Bytes(pieces)).stream()


def match(
    pieces: list[bytes], stops: list[str], min_tokens: int = 0, *, inside: bool | None = None
) -> tuple[str, str | None, int]:
    """Text, matched stop string and number of tokens read, of pieces fed one by one. ``inside``: whether the first
    is part of a thought, of a model that has some."""
    answers = None if inside is None else AnswerParts(THINK, "reasoning" if inside else "answer")
    matcher = StopMatcher(stops, stream_of(pieces), min_tokens, answers)
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


@pytest.mark.parametrize("tokenizer", [Bytes, Decoding])
def test_half_a_character_is_left_out(tokenizer: Any) -> None:
    """Bytes of a character that was cut by the end of the text are not shown as a replacement character."""
    assert match([b"caf", b"\xc3"], ["zzz"])[0] == "caf"
    stream = Detokenizer(tokenizer(["\ufffd!".encode(), "日".encode()[:2]])).stream()
    assert [stream.add(0), stream.add(1), stream.close()] == ["\ufffd!", "\ufffd!", "\ufffd!"]


@pytest.mark.parametrize("tokenizer", [Bytes, Decoding])
def test_invalid_bytes_are_replacement_characters(tokenizer: Any) -> None:
    """Bytes that are no part of a character are U+FFFD each, as everywhere; a text of nothing else is not empty."""
    stream = Detokenizer(tokenizer([b"\xff"])).stream()
    for _ in range(24):
        stream.add(0)
    assert stream.close() == 24 * "\ufffd"
    stream = Detokenizer(tokenizer([b"a\xc3", b"b", b"\xe6", b"\x97", b"\xa5."])).stream()
    assert [stream.add(token) for token in range(5)][-1] == "a\ufffdb日."


@given(data=st.binary(max_size=40), seed=st.integers(0, 99))
def test_texts_grow_to_what_their_bytes_say(data: bytes, seed: int) -> None:
    """However bytes are cut into tokens, each text on the way begins the next, and the last is what the bytes decode
    to, but for an unfinished character at the end."""
    borders = sorted(random.Random(seed).choices(range(len(data) + 1), k=6))
    stream = stream_of([data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)])
    seen = [stream.add(token) for token in range(7)]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(seen))
    whole = data.decode(errors="replace")
    assert stream.close() in (whole, whole.removesuffix("\ufffd"))
    assert Detokenizer(Bytes([data])).text([0]) == stream.close() == stream.text


@pytest.mark.parametrize("inside", [False, True])
@given(count=st.integers(0, 12), seed=st.integers(0, 99))
def test_stop_strings_do_not_see_the_thought(inside: bool, count: int, seed: int) -> None:
    """The thought goes on past a stop string, whether the prompt or the model opened it and wherever its markers are
    cut into tokens; the answer ends at one. White space at the markers is nobody's."""
    opened = "" if inside else "\n<think>\n"
    raw = f"{opened}1 < 2. So.\n\n</think>\n\nYes. No."
    assert match(cut(raw, count, seed), [".", "\n"], inside=inside)[:2] == (raw.removesuffix(". No."), ".")


def test_an_answer_goes_on_after_another_thought() -> None:
    """What is between two thoughts is searched, what is in them is not."""
    pieces = [b"<think>", b"x", b"</think>", b"a", b"<think>", b"x", b"</think>", b"b", b"x", b"c"]
    assert match(pieces, ["x"], inside=False) == ("<think>x</think>a<think>x</think>b", "x", 9)
    assert match(pieces, ["ab"], inside=False)[1] is None


def test_letters_of_a_marker_are_text_when_it_does_not_come() -> None:
    """A stop string that looks like a marker's beginning ends the text as soon as it cannot be one, or at the end."""
    assert match([b"a <", b"b", b"c"], ["<"], inside=False) == ("a ", "<", 2)
    assert match([b"a ", b"<"], ["<"], inside=False) == ("a ", "<", 2)
    assert match([b"\n", b"\n"], ["\n"], inside=False) == ("", "\n", 2)
    assert match([b"\n", b"b"], ["\n"], inside=False) == ("", "\n", 2)


def test_min_tokens_count_the_thought() -> None:
    """Tokens of the thought are tokens: a stop string is put off no further than by min_tokens."""
    pieces = [b"x", b"</think>", b"x", b"x"]
    assert match(pieces, ["x"], inside=True, min_tokens=4) == ("x</think>x", "x", 4)
    assert match(pieces, ["x"], inside=True, min_tokens=3) == ("x</think>", "x", 3)


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
    assert split_thinking(raw, THINK, "reasoning" if inside else "answer") == (text, reasoning)


def test_a_thought_that_goes_on_from_a_prefill_keeps_its_space() -> None:
    """What the line began and what the model added join to the text that the model read and wrote."""
    parts = split_thinking(" so.\n</think>\n\nYes", THINK, "reasoning", continues=True)
    assert parts == ("Yes", " so.")


class Words:
    """A tokenizer of whole words, with thinking."""

    has_thinking, think_start, think_end = True, "<think>", "</think>"
    words = ("<eos>", "<think>", "</think>", " a", " b", " c")

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.words[token] for token in tokens)


def sequence(tokens: list[int], reason: str | None, *, continues: bool = False, **given: Any) -> Sequence:
    line = PreparedLine("k", (1,), Sampling(seed=1, **given), frozenset({0}), continues=continues)
    row = Sequence(line, choice=0, seed=1, limit=10)
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
    assert found.text == "a<eos> b"


def test_only_an_answer_by_itself_is_trimmed() -> None:
    """The space before the first word belongs to the text where the text goes on from the prompt's; a chat's answer,
    which stands alone, begins with its first word. Its tokens have all their bytes either way."""
    assert TextAssembler(Words()).assemble(sequence([3, 4], "max_tokens", continues=True)).text == " a b"
    row = sequence([3, 4], "max_tokens", logprobs=True)
    row.token_logprobs = [-0.5, -0.1]
    found = TextAssembler(Words()).assemble(row)
    assert found.text == "a b"
    assert [entry["token"] for entry in found.logprobs or ()] == [" a", " b"]


def test_log_probabilities_are_numbers() -> None:
    """JSON has neither NaN nor infinities: what cannot come has a very low number, as with OpenAI."""
    row = sequence([3], "max_tokens", logprobs=True, top_logprobs=2)
    row.token_logprobs, row.top_logprobs = [float("nan")], [[(4, -0.1), (5, float("-inf"))]]
    (entry,) = TextAssembler(Words()).assemble(row).logprobs or ()
    assert [entry["logprob"], *(best["logprob"] for best in entry["top_logprobs"])] == [-9999.0, -0.1, -9999.0]
    assert orjson.loads(orjson.dumps(entry)) == entry


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
