"""The tokens of one model as the grammar library reads them, and sets of tokens as bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence as Items
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]
"""``[words]``: a bit per token, the lowest of word 0 for token 0; set: the token may be drawn."""

WORD = 32
"""Bits of a word."""
COMPLETE = b"<complete>"
"""A token of the library's own behind those of the model: it may come where a text is complete."""
LONGEST_BLANK = 4
"""Bytes of a token that may stand between a thought and the value after it."""
BLANKS = b" \t\r\n"
LONGEST = 255
"""Bytes of a token that the library takes; longer ones, of which some models have a few, never come in a value."""
REMEMBERED = 4096
"""Texts whose tokens are kept: what grammars leave no choice about is tokenised in every step."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or is too much for the library."""


@contextmanager
def no_panics() -> Iterator[None]:
    """What the library does not expect of itself becomes an error like any other: it would end the thread.

    Raises:
        GrammarError: it happened.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise GrammarError(f"the grammar library fails: {error}") from error


class Vocabulary:
    """``tokens`` are the bytes of each of the model's logits, none for ids that the tokenizer does not have.

    ``special`` ids are no text: a grammar gets them only by name. ``encode`` gives a text's tokens: of texts that
    a grammar leaves no choice about, the usual ones are taken. Any thread; the table takes up to a second to make.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Items[bytes], special: Iterable[int], encode: Callable[[str], list[int]]) -> None:
        from llguidance import LLExecutor, LLTokenizer

        width = len(tokens)
        self.width = width
        self.words = -(-width // WORD)
        self._text_tokens = encode
        # Under the names that the library looks for.
        self.tokens = [*(data if len(data) <= LONGEST else b"" for data in tokens), COMPLETE]
        self.eos_token_id = width
        self.special_token_ids = sorted({*special, width})
        self._remembered = lru_cache(REMEMBERED)(self._encode)
        self.blanks = self.mask_of(
            token
            for token, data in enumerate(tokens)
            if 0 < len(data) <= LONGEST_BLANK and not data.strip(BLANKS) and token not in self.special_token_ids
        )
        with no_panics():
            self.table: Any = LLTokenizer(cast("Any", self), n_vocab=width + 1, eos_token=width)
        self._executor = LLExecutor()

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text; whatever the tokenizer makes of it, their bytes are the text's."""
        return self._remembered(text)

    def _encode(self, text: str) -> list[int]:
        tokens = self._text_tokens(text)
        if b"".join(self.tokens[token] for token in tokens) == text.encode():
            return tokens
        return self.greedy(text)

    def greedy(self, text: str) -> list[int]:
        """Tokens with the bytes of a text, each the longest there is."""
        return list(self.table.greedy_tokenize(text))

    def mask_of(self, tokens: Iterable[int]) -> Mask:
        """The bits of these tokens."""
        bits = np.zeros(self.words * WORD, dtype=np.uint8)
        bits[list(tokens)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def compute(self, matchers: Items[Any]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """What each grammar allows next, ``[matchers, words]``, and ``[matchers]``, whether a text is complete there.

        Other threads of Python run meanwhile.

        Raises:
            GrammarError: the library fails.
        """
        from llguidance.numpy import fill_next_token_bitmask_par

        found = np.zeros((len(matchers), -(-(self.width + 1) // WORD)), dtype=np.int32)
        with no_panics():
            fill_next_token_bitmask_par(self._executor, [(one, index) for index, one in enumerate(matchers)], found)
        bits = found.view(np.uint32)
        word, bit = divmod(self.width, WORD)
        own = np.uint32(1 << bit)
        complete = (bits[:, word] & own) != 0
        bits[:, word] &= ~own
        return bits[:, : self.words], complete
