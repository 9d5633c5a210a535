"""Places in a JSON schema: the sub-schemas of one, and JSON pointers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

Schema = Mapping[str, Any]

LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
ONES = (
    "items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "extends",
)  # fmt: skip
KNOWN = frozenset({*LISTS, *MAPS, *ONES, "const", "default", "enum", "example", "examples", "x-guidance"})
"""Of others the values may be schemas, or hold some."""
DEFINITIONS = ("$defs", "definitions")


def pointer(*keys: str | int) -> str:
    """A JSON pointer: ``/properties/a~1b``. The root's is empty."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def children(schema: Schema, *, everywhere: bool = False) -> Iterator[tuple[str, Any]]:
    """The sub-schemas of a schema, each with the pointer from there; definitions come last, and with
    ``everywhere`` after them what '$ref' may lead to in places that are none of JSON Schema's."""
    for key in (*LISTS, *ONES, *MAPS):
        value = schema.get(key)
        if isinstance(value, dict) and key in ONES:
            yield pointer(key), value
        elif isinstance(value, list) and (key in LISTS or key == "items"):
            yield from ((pointer(key, number), one) for number, one in enumerate(value))
        elif isinstance(value, dict) and key in MAPS:
            yield from ((pointer(key, name), one) for name, one in value.items())
    if everywhere:
        for key, value in schema.items():
            if key not in KNOWN and isinstance(value, dict):
                yield pointer(key), value


def schemas(root: Schema, *, everywhere: bool = False) -> Iterator[tuple[str, Schema]]:
    """The schema itself and all in it that are objects, each with its pointer, parents first."""
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        where, schema = waiting.pop()
        if isinstance(schema, dict):
            yield where, schema
            below = list(children(schema, everywhere=everywhere))
            waiting.extend((where + place, one) for place, one in reversed(below))


def alone(root: Schema, schema: Any) -> Any:
    """A sub-schema as a schema of its own, with the definitions and the draft of the whole."""
    if not isinstance(schema, dict):
        return schema
    kept = {key: root[key] for key in ("$schema", *DEFINITIONS) if key in root}
    return {**kept, **schema}


def depth_of(value: Any) -> int:
    """How deeply a JSON value is nested: 0 for a number, 1 for ``[]``."""
    deepest, waiting = 0, [(1, value)]
    while waiting:
        depth, item = waiting.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
            waiting.extend((depth + 1, one) for one in (item.values() if isinstance(item, dict) else item))
    return deepest


def shown_value(value: Any) -> str:
    """A value of a schema as messages show it, in 60 characters at most."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
