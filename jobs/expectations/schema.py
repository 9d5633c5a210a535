"""JSON schemas that texts are judged by: what is wrong with one, and what is judged of it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

REMOVED = ("patternProperties",)
"""Keywords of schemas that would search with expressions that may take for ever."""
VALUES = ("const", "enum", "default", "examples")
"""Keywords whose values are no schemas."""
NAMED = ("properties", "$defs", "definitions", "dependentSchemas", "dependentRequired")
"""Keywords whose value has names of the user's own."""


def wrong_schema(schema: dict[str, Any]) -> str | None:
    """What is wrong with a schema; None where texts can be judged by it."""
    parts = list(_schemas(schema))
    one_document = not any("$id" in part for part in parts[1:])
    for part in parts:
        if (name := next((name for name in REMOVED if name in part), None)) is not None:
            return f"'{name}' is not taken in a schema that texts are judged by"
        for keyword in ("$ref", "$dynamicRef"):
            reference = part.get(keyword, "#")
            if not isinstance(reference, str):
                continue
            if not reference.startswith("#"):
                return f"refers to {reference!r:.80}: a schema stands alone ('#/$defs/...')"
            if one_document and reference.startswith("#/") and not _leads(schema, reference):
                return f"refers to {reference!r:.80}, which is not in it"
        if (said := _wrong_pattern(part.get("pattern"))) is not None:
            return said
    if find_spec("jsonschema") is None:
        return None  # the worker checks it
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    try:
        # Its own check of patterns is by Python's expressions, which are others.
        Draft202012Validator.check_schema(plain_schema(schema), format_checker=FormatChecker(()))  # type: ignore[call-arg]
    except SchemaError as error:
        place = "".join(f"/{part}" for part in error.absolute_path) or "the schema"
        return f"{place}: {error.message:.200}"
    except RecursionError:
        return "is nested too deeply"
    return None


def plain_schema(value: Any, *, names: bool = False) -> Any:
    """A schema without ``$schema``: with it a part of one would be judged by other rules than the whole. ``names``:
    its keys are the user's."""
    if isinstance(value, list):
        return [plain_schema(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: part if name in VALUES and not names else plain_schema(part, names=name in NAMED and not names)
        for name, part in value.items()
        if names or name != "$schema"
    }


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas in one, itself among them."""
    waiting = [(schema, False)]
    while waiting:
        part, names = waiting.pop()
        if isinstance(part, list):
            waiting += [(one, False) for one in part]
        elif isinstance(part, dict):
            if not names:
                yield part
            waiting += [(one, name in NAMED and not names) for name, one in part.items() if names or name not in VALUES]


def _leads(schema: Any, reference: str) -> bool:
    """Whether a pointer such as ``#/$defs/a`` leads to something."""
    from urllib.parse import unquote

    part = schema
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict) and name in part:
            part = part[name]
        elif isinstance(part, list) and name.isdecimal() and int(name) < len(part):
            part = part[int(name)]
        else:
            return False
    return True


def _wrong_pattern(pattern: Any) -> str | None:
    if not isinstance(pattern, str) or find_spec("llguidance") is None:
        return None  # the worker checks it
    from jobs.expectations.regex import Regex, searched

    try:
        Regex(searched(pattern))
    except ValueError as error:
        return f"the pattern {pattern!r:.80} cannot be judged by: {error!s:.200}"
    return None
