"""Texts of real kinds of tokenizers: what the model wrote, from its first space to the bytes of each token."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jobs.lines.line import Defaults, Job, check_line
from jobs.record import Choice
from tests.engine.conftest import MarkovModel
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import measure
from worker.engine.prompts.prepare import Preparer
from worker.engine.text.completion import TextAssembler
from worker.engine.text.detokenizer import Detokenizer

SAMPLES = [
    "Snow is white. It's cold, cold !",
    "na\u00efve \u65e5\u672c\u8a9e \U0001f642\U0001f642 done",
    "  two\n\n\tspaces  and   more",
    "Sno\u0308w\u2581is",
]
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}"
    "{% if not (loop.last and message.role == 'assistant') %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)
WORDS = ["Snow", "is", "white", "duck", "cold", "It", "the", "and"]


def pieces() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: words with their space before them, single bytes for what there is no piece for."""
    special = ["<unk>", "<s>", "</s>", "[answer]"]
    words = [*(f"\u2581{word}" for word in WORDS), *WORDS]
    letters = ["\u2581", *map(chr, range(0x21, 0x7F)), "\u65e5", "\u2581\u2581"]
    vocab = [(piece, 0.0) for piece in [*special, *(f"<0x{byte:02X}>" for byte in range(256))]]
    vocab += [(piece, -1.0 if piece in words else -9.0) for piece in dict.fromkeys([*words, *letters])]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer)


def of_bytes() -> PreTrainedTokenizerFast:
    """As GPT-2 has them: every byte a letter of an alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("w", "h"), ("i", "t"), ("\u0120", "wh"), ("\u0120wh", "it"), ("\u00f0", "\u0141")]
    vocab = {letter: number for number, letter in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


def words() -> PreTrainedTokenizerFast:
    """Words and their ends, as BERT has them: only decoding together says where spaces are."""
    vocab = {piece: number for number, piece in enumerate(["[UNK]", "snow", "is", "white", ".", "##s", "##ly", "cold"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken("<|\u00e9nd|>", special=True, normalized=False)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize("make", [pieces, of_bytes])
@pytest.mark.parametrize("text", SAMPLES)
def test_prompt_and_text_are_what_transformers_decodes_together(make: Callable[[], Any], text: str) -> None:
    """Wherever a text is parted into prompt and output, the output's text is the rest of the decoded whole."""
    tokenizer = make()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    whole, texts = tokenizer.decode(tokens), Detokenizer(TokenizerWrapper(tokenizer))
    for cut in range(1, len(tokens)):
        before = tokenizer.decode(tokens[:cut])
        if whole.startswith(before):  # not where half a character was cut off
            stream = texts.stream(tokens[:cut])
            seen = [stream.add(token) for token in tokens[cut:]]
            assert before + seen[-1] == whole
            assert all(whole.startswith(before + shorter) for shorter in seen)


def test_words_that_only_decoding_joins() -> None:
    """Where tokens have no bytes of their own a text is what decoding adds to the tokens before it."""
    tokenizer = words()
    tokens = tokenizer.encode("snows is whitely cold", add_special_tokens=False)
    for cut in range(1, len(tokens)):
        stream = Detokenizer(tokenizer).stream(tokens[:cut])
        for token in tokens[cut:]:
            stream.add(token)
        assert tokenizer.decode(tokens[:cut]) + stream.close() == "snows is whitely cold"


@pytest.mark.parametrize("make", [pieces, of_bytes])
def test_every_token_has_its_bytes(make: Callable[[], Any]) -> None:
    """The bytes of a text's tokens are the text's; parts of a character and special tokens have theirs, and an id
    beyond the vocabulary has none."""
    tokenizer = make()
    texts = Detokenizer(TokenizerWrapper(tokenizer))
    for text in SAMPLES[:3]:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        data = b"".join(map(texts.bytes_of, tokens))
        assert data.decode().lstrip(" ") == text.lstrip(" ")
    assert texts.bytes_of(tokenizer.convert_tokens_to_ids("<|\u00e9nd|>")) == "<|\u00e9nd|>".encode()
    assert texts.bytes_of(len(tokenizer) + 7) == b""
    every = [texts.bytes_of(token) for token in range(len(tokenizer))]
    assert {bytes([byte]) for byte in range(256)} <= set(every)


@pytest.mark.parametrize("make", [pieces, of_bytes])
def test_any_tokens_in_a_row_are_what_transformers_decodes(make: Callable[[], Any]) -> None:
    """Models write tokens that no tokenizer would: what comes of them is the decoder's text, U+FFFD for U+FFFD."""
    tokenizer = make()
    texts, draw = Detokenizer(TokenizerWrapper(tokenizer)), random.Random(3)
    plain = [token for token in range(len(tokenizer) - 1) if texts.bytes_of(token).isascii()]
    for _ in range(200):
        tokens = [plain[5], *draw.choices(plain, k=8), plain[-1]]
        stream = texts.stream()
        for token in tokens:
            stream.add(token)
        assert stream.close().removeprefix(" ") == tokenizer.decode(tokens).removeprefix(" ")


# -- with a model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def answered() -> Callable[..., Choice]:
    """``answered(**line)``: the completion of a line on a model that says `` white. duck is`` after any token."""
    tokenizer = pieces()
    said = tokenizer.convert_tokens_to_ids(["\u2581white", ".", "\u2581duck", "\u2581is", "</s>"])
    size = len(tokenizer)
    table = [[0.0] * size for _ in range(size)]
    for token in range(size):
        place = said.index(token) + 1 if token in said[:-2] else 0
        table[token][said[place]] = 50.0
    table[said[2]][said[4]] = 60.0
    wrapped = TokenizerWrapper(tokenizer, eos_token_ids=[said[-1]])
    model = measure("markov", MarkovModel(table), wrapped, {})

    def complete(**line: Any) -> Choice:
        checked = check_line(orjson.dumps({"logprobs": True, "max_tokens": 9, **line}))
        job: Job = checked.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))
        engine = Engine(model)
        engine.add(Preparer(model).prepare(job))
        while engine.has_work:
            for finished in engine.step():
                assert finished.error is None
                return TextAssembler(wrapped).assemble(finished.sequences[0])
        raise AssertionError("nothing came")

    return complete


ASKED = [{"role": "user", "content": "What is snow"}]


def test_a_prompt_and_its_text_read_on(answered: Any) -> None:
    """A completion keeps its first space, and so does what goes on from a prefill: both read on from what was given."""
    assert answered(prompt="Snow is").text == " white. duck"
    assert answered(messages=ASKED, prefill_response="Snow is").text == " white. duck"


def test_an_answer_by_itself_begins_with_its_word(answered: Any) -> None:
    """A chat's answer is shown without the space that tokenizers of pieces put before a word; its tokens have it."""
    found = answered(messages=ASKED)
    assert found.text == "white. duck"
    assert [entry["token"] for entry in found.logprobs] == [" white", ".", " duck"]
    assert bytes(found.logprobs[0]["bytes"]) == b" white"


@pytest.mark.parametrize("line", [{"prompt": "Snow is"}, {"messages": ASKED, "prefill_response": "Snow is"}])
def test_a_stop_string_with_a_space_matches_as_the_first_word(line: dict[str, Any], answered: Any) -> None:
    """The first word has its space like any other."""
    found = answered(**line, stop=[" white"])
    assert (found.text, found.stop_string) == ("", " white")
    found = answered(**line, stop=[" duck"])
    assert (found.text, found.stop_string) == (" white.", " duck")
