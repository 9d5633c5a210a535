"""Lark grammars, put together rule by rule, with the control tokens of one tokenizer in them. No MLX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from jobs.guided.constraint import WHITESPACE

NEVER = re.compile("(?!)")


class Spelling:
    """How texts with control tokens are written in a grammar: the tokens by their ids, all else as text. ``special``
    are the ids that a grammar gets only by name."""

    def __init__(self, tokenizer: Any, special: Iterable[int]) -> None:
        added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        wanted = frozenset(special)
        self._ids = {str(token): number for number, token in added.items() if number in wanted and str(token)}
        names = sorted(self._ids, key=len, reverse=True)
        self._tokens = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else NEVER

    def is_token(self, text: str) -> bool:
        """Whether a text is one control token."""
        return text in self._ids

    def of(self, text: str) -> str:
        """A text as symbols of a rule."""
        pieces = self._tokens.split(text) if self._ids else [text]
        return " ".join(self._piece(piece) for piece in pieces if piece)

    def _piece(self, piece: str) -> str:
        return f"<[{self._ids[piece]}]>" if piece in self._ids else quoted(piece)


class Rules:
    """A grammar that grows. Each method that takes a body gives back the name of what it has added."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling
        self._lines: list[str] = []
        self._names: dict[str, str] = {}

    def rule(self, body: str) -> str:
        """A rule of this body; equal bodies are one rule."""
        return self._named(body, "r")

    def terminal(self, pattern: str) -> str:
        """What matches a regular expression, as one piece: no token may end it before it does itself."""
        return self._named(_slashed(pattern), "T")

    def terminal_but(self, pattern: str, other: str) -> str:
        """What matches a regular expression and not another one."""
        return self._named(f"{_slashed(pattern)} & ~{_slashed(other)}", "T")

    def json(self, schema: Mapping[str, Any]) -> str:
        """A JSON value of a schema."""
        guided = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
        return self.rule("%json " + orjson.dumps(guided).decode())

    def text(self, start: str) -> str:
        """The grammar, whose text is ``start``."""
        lark = "\n".join([f"start: {start}", *self._lines]) + "\n"
        return orjson.dumps({"grammars": [{"lark_grammar": lark}]}).decode()

    def _named(self, body: str, kind: str) -> str:
        if body not in self._names:
            self._names[body] = f"{kind}{len(self._names)}"
            self._lines.append(f"{self._names[body]}: {body}")
        return self._names[body]


def quoted(text: str) -> str:
    """A text as a string of a Lark grammar, which are JSON's."""
    return orjson.dumps(text).decode()


def one_of(bodies: Iterable[str]) -> str:
    return "(" + " | ".join(bodies) + ")"


def _slashed(pattern: str) -> str:
    """A regular expression as a grammar has it; slashes in it are escaped already."""
    return "/" + pattern.replace("\n", r"\n") + "/"
