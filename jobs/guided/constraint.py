"""A constraint: what the whole text of a line must be. It is a value; the grammar library is not needed for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Kind = Literal["json", "regex", "choice", "grammar"]
KINDS: tuple[Kind, ...] = ("json", "regex", "choice", "grammar")

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

    def grammar(self) -> str:
        """The constraint as llguidance takes it: a JSON object with one grammar, always the same for equal ones."""
        rule: Mapping[str, Any]
        match self.kind:
            case "json":
                # Whatever the schema itself says to the library gives way: the last of equal names counts.
                said = orjson.dumps({"whitespace_pattern": WHITESPACE, "lenient": self.lenient}).decode()
                before = self.text.removesuffix("}")
                comma = "" if before == "{" else ","
                rule = {"json_schema": orjson.Fragment(f'{before}{comma}"x-guidance":{said}}}')}
            case "choice":
                rule = {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(_quoted, orjson.loads(self.text)))}
            case "regex":
                rule = {"lark_grammar": f"start: /{_slashed(self.text)}/"}
            case "grammar":
                rule = {"lark_grammar": self.text}
        return orjson.dumps({"grammars": [rule]}).decode()


def json_constraint(schema: Mapping[str, Any], *, lenient: bool = False, field: str = "") -> Constraint:
    """The text is one JSON value of ``schema``.

    Raises:
        ValueError: it is nested deeper than JSON is written (254 levels).
    """
    return Constraint("json", orjson.dumps(schema).decode(), lenient, field)


def _quoted(text: str) -> str:
    """A text as a string of a Lark grammar, which are JSON's."""
    return orjson.dumps(text).decode()


_TO_ESCAPE = re.compile(r"\\.|/|\n", re.DOTALL)
_ESCAPED = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}


def _slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes in one line of a Lark grammar."""
    return _TO_ESCAPE.sub(lambda found: _ESCAPED.get(found[0], found[0]), pattern)
