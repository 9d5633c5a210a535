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
            raise ValueError(_why(error))

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, self._grammar, log_level=0)
        written = list(text.encode("utf-8", "replace"))
        return bool(matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting())


def _why(error: str) -> str:
    """What the library says is wrong, without the drawing of where."""
    lines = error.splitlines()
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])


def searched(pattern: str) -> str:
    """The expression whose whole text holds a match of ``pattern`` somewhere, as schemas mean theirs."""
    return "|".join(map(_anywhere, _branches(pattern)))


def _anywhere(branch: str) -> str:
    begins = branch.startswith("^")
    ends = branch.endswith("$") and (len(branch) - len(branch[:-1].rstrip("\\"))) % 2 == 1
    inner = branch[begins : len(branch) - ends]
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


def _branches(pattern: str) -> list[str]:
    """What an expression has between its outermost ``|``: each begins and ends as its own anchors say."""
    branches, depth, in_set, start, at = [], 0, False, 0, 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at += 1
        elif in_set:
            in_set = character != "]"
        elif character == "[":
            in_set = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            branches.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*branches, pattern[start:]]


@functools.cache
def _bytes() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
