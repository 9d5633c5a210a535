"""Arguments as formats write them that are not JSON: values as they are in XML, or in Gemma's objects. No MLX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from worker.engine.tools.lark import Rules, one_of, quoted
from worker.engine.tools.schemas import DEEPEST, Property, Schema, SchemaReader

OF_NUMBERS = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}
)
OF_STRINGS = frozenset({"type", "enum", "const"})
OF_ARRAYS = frozenset({"type", "items", "minItems", "maxItems"})
BOUNDS = OF_NUMBERS - {"type", "format"}
INTEGER = "-?(0|[1-9][0-9]{0,14})"
"""Parsers read numbers by way of floats, which hold all integers of fifteen digits and no infinite ones."""
NUMBER = INTEGER + r"(\.[0-9]{1,15})?"
XML_TEXT = r"([^<]|<+[^\/<]|<+\/([^pft<]|p[^a<]|f[^u<]|t[^o<]))*<*"
"""A text that holds the end of no element of a call. Parsers look for the first one there is."""
NAME = re.compile(r"\w+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Style:
    """How a format writes values: texts between ``quote``, of characters that match ``text``; ``flat``: no values
    within values."""

    quote: str
    text: str
    flat: bool = False


XML = Style("", XML_TEXT)
GEMMA4 = Style('<|"|>', r"([^<\x00]|<[^<|\x00])*")
GEMMA_FLAT = Style("<escape>", r"[^{}<]*", flat=True)


class Writer:
    """Writes the rules of one tool's arguments in a style."""

    def __init__(self, rules: Rules, style: Style, reader: SchemaReader) -> None:
        self._rules = rules
        self._style = style
        self._reader = reader

    # -- XML ----------------------------------------------------------------------------------------------------------

    def elements(self, schema: Schema) -> str:
        """The properties of an object in their order, each an element."""
        parts = []
        for one in self._reader.properties(schema):
            if re.search(r"[\s<>]", one.name):
                raise self._reader.unsupported(one.where, "has a name with spaces or angles")
            head = self._rules.spelling.of(f"<parameter={one.name}>\n")
            parts.append(f"({head} {self._element_value(one)})" + ("" if one.required else "?"))
        return self._rules.rule(" ".join(parts)) if parts else ""

    def _element_value(self, one: Property) -> str:
        end = self._rules.spelling.of("\n</parameter>\n")
        kind = self._reader.kind(one.schema, one.where)
        if kind == "string":
            self._reader.only(one.schema, OF_STRINGS, one.where)
            choices = self._reader.choices(one.schema)
            if choices is not None:
                return f"{self._texts(choices)} {end}"
            # In one piece: where the text ends is seen only at the end of its end.
            null = r"[nN][uU][lL][lL]" + "\n<\\/parameter>\n"
            return self._rules.terminal_but(self._style.text + "\n<\\/parameter>\n", null)
        if kind in ("object", "array"):
            return f"{self._rules.json(self._reader.json(one.schema))} {end}"
        return f"{self._scalar(one.schema, kind, one.where)} {end}"

    # -- Gemma's objects ----------------------------------------------------------------------------------------------

    def members(self, schema: Schema, where: str | None = None, depth: int = 0) -> str:
        """The properties of an object in their order, between braces."""
        rest: list[tuple[str, bool]] = []
        for one in self._reader.properties(schema, where):
            if not NAME.fullmatch(one.name):
                raise self._reader.unsupported(one.where, "has a name with other characters than letters and digits")
            value = self._value(one.schema, one.where, depth + 1)
            rest.append((f"{self._rules.spelling.of(one.name + ':')} {value}", one.required))
        return f'"{{" {_in_order(self._rules, rest)} "}}"'

    def _value(self, schema: Schema, where: str, depth: int) -> str:
        schema = self._reader.resolved(schema, where)
        kind = self._reader.kind(schema, where)
        if kind == "string":
            self._reader.only(schema, OF_STRINGS, where)
            quote = self._rules.spelling.of(self._style.quote)
            choices = self._reader.choices(schema)
            text = self._texts(choices) if choices is not None else self._rules.terminal(self._style.text)
            return f"{quote} {text} {quote}"
        if kind not in ("object", "array"):
            return self._scalar(schema, kind, where)
        if self._style.flat or depth > DEEPEST:
            raise self._reader.unsupported(where, f"is an {kind}" if self._style.flat else "is nested too deeply")
        if kind == "object":
            return self._rules.rule(self.members(schema, where, depth))
        self._reader.only(schema, OF_ARRAYS, where)
        item = self._value(schema.get("items", True), f"{where}.items", depth + 1)
        return self._rules.rule(_array(item, int(schema.get("minItems", 0)), schema.get("maxItems")))

    # -- both ---------------------------------------------------------------------------------------------------------

    def _texts(self, choices: Iterable[Any]) -> str:
        """One of some texts."""
        return one_of(quoted(choice) if choice else '""' for choice in choices if isinstance(choice, str))

    def _scalar(self, schema: Schema, kind: str, where: str) -> str:
        self._reader.only(schema, OF_NUMBERS, where)
        choices = self._reader.choices(schema)
        if choices is not None:
            return one_of(quoted(orjson.dumps(choice).decode()) for choice in choices)
        if kind in ("integer", "number"):
            if BOUNDS & schema.keys():
                return self._rules.json({key: value for key, value in schema.items() if key in OF_NUMBERS})
            return self._rules.terminal(INTEGER if kind == "integer" else NUMBER)
        if kind == "boolean":
            return '("true" | "false")'
        if kind == "null":
            return '"null"'
        raise self._reader.unsupported(where, f"has the type {kind!r}")


def _in_order(rules: Rules, members: list[tuple[str, bool]]) -> str:
    """Members with commas between those that are there. ``(body, required)`` of each."""
    follows = ""  # what may come behind a member, with its comma
    begins = ""  # the same where no member is before it
    for body, required in reversed(members):
        after = rules.rule(f'"," {body} {follows}'.rstrip()) if follows or not required else f'"," {body}'
        first = f"{body} {follows}".rstrip()
        if required:
            follows, begins = after, first
        else:
            follows = rules.rule(f"({after} | {follows})" if follows else f"{after}?")
            begins = rules.rule(f"({first} | {begins})" if begins else f"({first})?")
    return begins


def _array(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return '"[" "]"'
    bound = f"{max(least - 1, 0)}," + ("" if most is None else str(most - 1))
    items = f'{item} ("," {item}){{{bound}}}'
    return f'"[" {items} "]"' if least else f'"[" ({items})? "]"'
