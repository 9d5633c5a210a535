"""The bytes that each token of a tokenizer stands for, and texts that grow token by token. No MLX.

A text is what its tokens' bytes say: the first space is kept, a byte that is no part of a character is U+FFFD, and a
character that is not complete yet waits for its other bytes. ``decode`` of a tokenizer cannot say that: it drops the
first space of many texts, and gives U+FFFD for half a character.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence as Items
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
WORD_START = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BYTE_FALLBACK_DECODERS = frozenset({"ByteFallback", "Metaspace"})
PROBE = "Hello, world: na\u00efve \u65e5\u672c \U0001f642\n"
"""What a tokenizer of an unknown kind must give back, byte for byte, to be of a known one."""
CONTEXT = 8
"""Tokens before a text that are decoded with it where tokens have no bytes of their own."""
LONGEST_CHARACTER = 4
"""Bytes, and so tokens, that a character has at most."""


class TextStream(Protocol):
    """The text of a growing row of tokens, never with half a character in it."""

    text: str

    def add(self, *tokens: int) -> str:
        """Take in tokens; the text so far, which no later token can change."""

    def close(self) -> str:
        """The whole text. The bytes of a character that was never completed are left out."""


class Detokenizer:
    """Tokens of one tokenizer as bytes. May be used from several threads: what it keeps can only be written once more.

    Two kinds of tokenizers give their tokens' bytes away: those of bytes (GPT-2's alphabet) and those of pieces with
    single bytes beside them (SentencePiece). Of any other a token is what ``decode`` makes of it in its place.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._pieces = getattr(tokenizer, "convert_ids_to_tokens", None)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = {int(token): str(text) for token, text in added.items()}
        self._known: dict[int, bytes] = {}
        self._rule = self._rule_of(tokenizer)

    @property
    def exact(self) -> bool:
        """Whether tokens have bytes of their own, which joined are the text."""
        return self._rule is not None

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token; none for an id beyond the tokenizer's vocabulary."""
        known = self._known.get(token)
        if known is None:
            known = self._decode([token]).encode() if self._rule is None else self._by(self._rule, token)
            self._known[token] = known
        return known

    def stream(self, before: Items[int] = ()) -> TextStream:
        """An empty text that goes on from the tokens ``before``."""
        if self._rule is None:
            return _DecodedStream(self._decode, list(before[-CONTEXT:]))
        return _ByteStream(self.bytes_of)

    def text(self, tokens: Items[int], before: Items[int] = ()) -> str:
        """The whole text of tokens that go on from those ``before``, as a stream gives it at its end."""
        stream = self.stream(before)
        stream.add(*tokens)
        return stream.close()

    def _by(self, rule: Callable[[str], bytes], token: int) -> bytes:
        if token in self._added and rule is _of_alphabet:
            return self._added[token].encode()
        try:
            piece = self._pieces(token) if self._pieces is not None else None
        except (IndexError, KeyError, OverflowError):  # models pad their vocabulary, and tokenizers do not
            piece = None
        if piece is None:
            return b""
        return piece if isinstance(piece, bytes) else rule(piece)

    def _rule_of(self, tokenizer: Any) -> Callable[[str], bytes] | None:
        if self._pieces is None:
            return None
        kinds = _decoders(tokenizer)
        if "ByteLevel" in kinds:
            return _of_alphabet
        if kinds & BYTE_FALLBACK_DECODERS:
            return _of_pieces
        for rule in (_of_alphabet, _of_pieces):
            if self._fits(tokenizer, rule):
                return rule
        return None

    def _fits(self, tokenizer: Any, rule: Callable[[str], bytes]) -> bool:
        try:
            tokens = tokenizer.encode(PROBE, add_special_tokens=False)
            written = b"".join(self._by(rule, token) for token in tokens)
        except Exception:  # of code that came with a model
            return False
        return written.removeprefix(b" ") == PROBE.encode()


def _decoders(tokenizer: Any) -> set[str]:
    """The types of decoders that a tokenizer of the ``tokenizers`` library chains."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    stated = json.loads(decoder.__getstate__())
    return {part.get("type") for part in (stated, *stated.get("decoders", ()))}


def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet, a visible character for each byte: its own where it has one, else the next from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


ALPHABET = _alphabet()


def _of_alphabet(piece: str) -> bytes:
    try:
        return bytes(ALPHABET[letter] for letter in piece)
    except KeyError:
        return piece.encode()


def _of_pieces(piece: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(WORD_START, " ").encode()


class _ByteStream:
    """Bytes to text, as far as characters are complete."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        # Keeps the bytes of an unfinished character to itself.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""

    def add(self, *tokens: int) -> str:
        self.text += self._decoder.decode(b"".join(map(self._bytes_of, tokens)))
        return self.text

    def close(self) -> str:
        # The beginning of a character is one U+FFFD, and is left out; Python also waits for more of a surrogate, which
        # is no character however it goes on.
        rest = self._decoder.getstate()[0].decode(errors="replace")
        self.text += rest if len(rest) > 1 else ""
        self._decoder.reset()
        return self.text


class _DecodedStream:
    """What ``decode`` adds for each token to the text of those before it; ``tokens`` are those before the first."""

    def __init__(self, decode: Callable[[list[int]], str], tokens: list[int]) -> None:
        self._decode = decode
        self._tokens = tokens
        self._start, self._settled = 0, len(tokens)
        self.text = ""

    def add(self, *tokens: int) -> str:
        for token in tokens:
            self._tokens.append(token)
            more = self._more()
            if not more.endswith(REPLACEMENT) or len(self._tokens) - self._settled >= LONGEST_CHARACTER:
                self.text += more
                self._start, self._settled = self._settled, len(self._tokens)
        return self.text

    def close(self) -> str:
        if self._settled < len(self._tokens):
            self.text += self._more().removesuffix(REPLACEMENT)
            self._settled = len(self._tokens)
        return self.text

    def _more(self) -> str:
        before = self._decode(self._tokens[self._start : self._settled]) if self._start < self._settled else ""
        return self._decode(self._tokens[self._start :])[len(before) :]
