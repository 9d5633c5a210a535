"""Schemas of tools' parameters, as far as formats that do not write arguments as JSON must read them. No MLX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import LineError

Schema = Mapping[str, Any]
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"}
)
OF_OBJECTS = frozenset(
    {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "$id", "strict"}
)
DEEPEST = 24
"""References and levels within one another that are followed."""


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an object: ``where`` is its place in the line."""

    name: str
    schema: Schema
    required: bool
    where: str


def narrowed(schema: Schema | None) -> dict[str, Any]:
    """The parameters of a tool as an object that has no properties but its own, where nothing speaks against that, and
    so on within it: whatever is one of these is one of those that the schema allows."""
    found: dict[str, Any] = _narrow({"type": "object", **(schema or {})}, 0)
    return found


def _narrow(schema: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return schema
    given = dict(schema)
    known = given.get("properties", {})
    if isinstance(known, Mapping) and known:
        given["properties"] = {name: _narrow(value, depth + 1) for name, value in known.items()}
    if "items" in given:
        given["items"] = _narrow(given["items"], depth + 1)
    plain = given.keys() <= OF_OBJECTS | ANNOTATIONS and set(given.get("required", ())) <= set(known)
    own = given.get("type") == "object" and (known or depth == 0)
    return {**given, "additionalProperties": False} if own and plain and "additionalProperties" not in given else given


class SchemaReader:
    """Reads the parameters of one tool, which are at ``where`` in the line, for a format named ``shown``."""

    def __init__(self, root: Schema, where: str, shown: str) -> None:
        self._root = root
        self._where = where
        self._shown = shown

    def properties(self, schema: Schema, where: str | None = None) -> Iterator[Property]:
        """The properties of an object in their order.

        Raises:
            LineError: ``unsupported`` for what says more of the object than that.
        """
        place = where or self._where
        self.only(schema, OF_OBJECTS, place)
        known: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", ())
        if missing := next((name for name in required if name not in known), None):
            raise self.unsupported(f"{place}.required", f"names {missing!r}, which is none of the properties")
        for name, value in known.items():
            yield Property(name, self.resolved(value, place), name in required, f"{place}.properties.{name}")

    def resolved(self, schema: Any, where: str, depth: int = 0) -> Schema:
        """A schema, or what it refers to within the parameters."""
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise self.unsupported(where, "is no schema")
        if "$ref" not in schema:
            return schema
        found: Any = self._root
        for step in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if found is None or depth > DEEPEST:
            raise self.unsupported(where, f"refers to {schema['$ref']!r}, which is not followed")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**self.resolved(found, where, depth + 1), **rest}

    def json(self, schema: Schema) -> dict[str, Any]:
        """A schema that can be read by itself."""
        kept = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
        return {**kept, **schema}

    def kind(self, schema: Schema, where: str) -> str:
        """The one type of a schema.

        Raises:
            LineError: ``unsupported`` where it has none, or several.
        """
        kind = schema.get("type")
        if isinstance(kind, list) and len(kind) == 1:
            kind = kind[0]
        if kind is None:
            values = schema.get("enum", [schema["const"]] if "const" in schema else [])
            if values and all(isinstance(value, str) for value in values):
                return "string"
            if "properties" in schema:
                return "object"
        if not isinstance(kind, str):
            raise self.unsupported(where, "must have one 'type'")
        return kind

    def choices(self, schema: Schema) -> list[Any] | None:
        """The values that a schema lists; None where it lists none."""
        return [schema["const"]] if "const" in schema else schema.get("enum")

    def only(self, schema: Schema, known: frozenset[str], where: str) -> None:
        """See that a schema says no more than ``known`` keywords do.

        Raises:
            LineError: ``unsupported``, naming the keyword.
        """
        if more := next((key for key in schema if key not in known | ANNOTATIONS), None):
            raise self.unsupported(f"{where}.{more}", "is a keyword that")

    def unsupported(self, where: str, message: str) -> LineError:
        rest = "cannot be enforced" if message.endswith("that") else "and so cannot be enforced"
        remedy = "leave it out, or give 'tool_choice': \"auto\""
        return LineError(
            "unsupported", where, f"{message} {rest} in the model's format of calls ({self._shown}); {remedy}"
        )
