"""A constraint: what the whole text of a line must be. It is a value; the grammar library is not needed for it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Kind = Literal["json", "regex", "choice", "grammar"]

WHITESPACE = " "
"""What may stand between the tokens of JSON, once: without a bound a model may write blanks until max_tokens."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """``text`` is a JSON schema (``{"type":"object"}`` for any JSON object), a regular expression, a JSON array of the
    choices, or a Lark grammar. With ``lenient`` keywords of a schema that cannot be enforced are warnings."""

    kind: Kind
    text: str
    lenient: bool = False
    field: str = dataclasses.field(default="", compare=False)
    """The field of the line that gives it, for messages."""
    of_call: bool = dataclasses.field(default=False, compare=False)
    """Whether it is of the arguments of a call that must be made, and not of the text."""

    def grammar(self) -> str:
        """The constraint as llguidance takes it: a JSON object with one grammar, always the same for equal ones."""
        rule: Mapping[str, Any]
        match self.kind:
            case "json":
                # Whatever the schema itself says to the library gives way: the last of equal names counts.
                said = {"whitespace_pattern": WHITESPACE, "lenient": self.lenient}
                rule = {"json_schema": orjson.Fragment(_told(self.text, said))}
            case "choice":
                rule = {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(quoted, orjson.loads(self.text)))}
            case "regex":
                rule = {"lark_grammar": f"start: /{_slashed(self.text)}/"}
            case "grammar":
                rule = {"lark_grammar": _with_bounded_blanks(self.text)}
        return orjson.dumps({"grammars": [rule]}).decode()


def json_constraint(schema: Mapping[str, Any], *, lenient: bool = False, field: str = "") -> Constraint:
    """The text is one JSON value of ``schema``.

    Raises:
        ValueError: it is nested deeper than JSON is written (254 levels).
    """
    return Constraint("json", orjson.dumps(schema).decode(), lenient, field)


def quoted(text: str) -> str:
    """A text as a string of a Lark grammar, which are JSON's without DEL."""
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def _told(schema: str, said: Mapping[str, Any]) -> str:
    """The JSON text of a schema that tells the library what is ``said``."""
    before = schema.removesuffix("}")
    comma = "" if before.strip() == "{" else ","
    return f'{before}{comma}"x-guidance":{orjson.dumps(said).decode()}}}'


_OF_LARK = re.compile(r'"(?:\\.|[^"\\\n])*"?|//[^\n]*|/(?:\\.|[^/\\\n])*/?|(%json\s*)')
"""What a schema in a grammar begins with, and what only looks like it: strings, comments and regular expressions."""


def _with_bounded_blanks(grammar: str) -> str:
    """A Lark grammar whose schemas bound the blanks in JSON as others do, where they say nothing of it themselves."""
    pieces, at, kept = [], 0, 0
    while (found := _OF_LARK.search(grammar, at)) is not None:
        at = found.end()
        if found[1] is None:
            continue
        try:
            schema, end = json.JSONDecoder().raw_decode(grammar, at)
        except (ValueError, RecursionError):  # the library says what is wrong with it
            break
        if schema is True or (isinstance(schema, dict) and "x-guidance" not in schema):
            text = "{}" if schema is True else grammar[at:end]
            pieces += [grammar[kept:at], _told(text, {"whitespace_pattern": WHITESPACE})]
            kept = end
        at = end
    return "".join([*pieces, grammar[kept:]])


_TO_ESCAPE = re.compile(r"\\.|/|\n", re.DOTALL)
_ESCAPED = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}


def _slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes in one line of a Lark grammar."""
    return _TO_ESCAPE.sub(lambda found: _ESCAPED.get(found[0], found[0]), pattern)
