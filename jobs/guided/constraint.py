"""A constraint: what the whole text of a line must be. It is a value; the grammar library is not needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import orjson

Kind = Literal["json", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """``text`` is a JSON schema (``{"type": "object"}`` for any JSON object), a regular expression, a JSON array of
    the choices, or a Lark grammar. With ``lenient`` keywords of a schema that cannot be enforced are warnings."""

    kind: Kind
    text: str
    lenient: bool = False

    def grammar(self) -> str:
        """The constraint as llguidance takes it: a JSON object with one grammar, always the same for equal ones."""
        match self.kind:
            case "json":
                rule = {"json_schema": orjson.Fragment(self.text)}
            case "choice":
                rule = {"json_schema": {"enum": orjson.Fragment(self.text)}}
            case "regex":
                rule = {"lark_grammar": f"start: /{self.text}/"}
            case "grammar":
                rule = {"lark_grammar": self.text}
        return orjson.dumps({"grammars": [rule]}).decode()
