"""Regular expressions in time that grows with the text alone: the engine of guided decoding, on bytes."""

from __future__ import annotations

import functools
from typing import Any


class Regex:
    """A regular expression as guided lines have it: no look-around, no back references.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, pattern: str) -> None:
        from llguidance import LLMatcher

        self._tokenizer, self._grammar = _bytes(), LLMatcher.grammar_from_regex(pattern)
        if error := LLMatcher(self._tokenizer, self._grammar, log_level=0).get_error():
            raise ValueError(error.splitlines()[0])

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, self._grammar, log_level=0)
        written = list(text.encode("utf-8", "replace"))
        return bool(matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting())


def searched(pattern: str) -> str:
    """The expression whose whole text holds a match of ``pattern`` somewhere, as schemas mean theirs."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[begins : len(pattern) - ends]
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


@functools.cache
def _bytes() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
