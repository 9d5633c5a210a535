"""The field ``expect`` of a line: what its text is to be, checked before anything runs."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import orjson

from jobs.errors import LineError, RefusedError

JSON, REGEX, JINJA = "json", "regex:", "jinja:"
MOST_BYTES = 64 << 10
MOST_RE_ASKS = 100
FORMS = "'json', a JSON schema, 'regex:...' or 'jinja:...'"
REMOVED = ("patternProperties",)
"""Keywords of schemas that would search with expressions that may take for ever."""


def check_expect(value: Any) -> str | dict[str, Any]:
    """An expectation that texts can be judged by.

    Raises:
        LineError: it is none; the message says what is.
    """
    if not isinstance(value, str | dict):
        raise LineError("invalid_type", "expect", f"must be {FORMS}")
    written = orjson.dumps(value)
    if len(written) > MOST_BYTES:
        raise LineError("out_of_range", "expect", f"has {len(written)} bytes; at most {MOST_BYTES} are taken")
    if (wrong := _wrong(written)) is not None:
        raise LineError(*wrong)
    return value


def check_re_ask(value: Any) -> int:
    """How often a line is asked again whose text is not as expected.

    Raises:
        LineError: it is no number, or too large.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise LineError("invalid_type", "re_ask", "must be an integer")
    if not 0 <= value <= MOST_RE_ASKS:
        raise LineError("out_of_range", "re_ask", f"must be 0..{MOST_RE_ASKS}")
    return value


@functools.lru_cache(maxsize=64)  # lines of a file have the same one
def _wrong(written: bytes) -> tuple[str, str, str] | None:
    """What is wrong with an expectation: code, field and message."""
    value = orjson.loads(written)
    if value == JSON:
        return None
    if isinstance(value, dict):
        return _wrong_schema(value)
    if value.startswith(REGEX):
        return _wrong_regex(value.removeprefix(REGEX))
    if value.startswith(JINJA):
        return _wrong_condition(value.removeprefix(JINJA))
    return "out_of_range", "expect", f"must be {FORMS}, not {value!r:.60}"


def _wrong_schema(schema: dict[str, Any]) -> tuple[str, str, str] | None:
    for part in _parts(schema):
        if (name := next((name for name in REMOVED if name in part), None)) is not None:
            return "invalid_schema", "expect", f"'{name}' is not taken in a schema that texts are judged by"
        reference = part.get("$ref", "#")
        if isinstance(reference, str) and not reference.startswith("#"):
            return "invalid_schema", "expect", f"refers to {reference!r:.80}: a schema stands alone ('#/$defs/...')"
    if find_spec("jsonschema") is None:
        return None  # the worker checks it
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "".join(f"/{part}" for part in error.absolute_path) or "the schema"
        return "invalid_schema", "expect", f"{place}: {error.message:.200}"
    except RecursionError:
        return "invalid_schema", "expect", "is nested too deeply"
    return None


def _parts(value: Any) -> list[dict[str, Any]]:
    """All objects in a value, itself among them."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found.append(part)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return found


def _wrong_regex(pattern: str) -> tuple[str, str, str] | None:
    if find_spec("llguidance") is None:
        return None  # the worker checks it
    from jobs.expectations.regex import Regex

    try:
        Regex(pattern)
    except ValueError as error:
        return "out_of_range", "expect", f"is no regular expression that is taken: {error!s:.200}"
    return None


def _wrong_condition(source: str) -> tuple[str, str, str] | None:
    if find_spec("jinja2") is None:
        return None  # the worker checks it
    from jobs.templates.sandbox import Compiled, Sandbox

    if "{{" in source or "{%" in source:
        return "out_of_range", "expect", "a condition is written without braces, such as 'jinja:answer in completion'"
    try:
        Compiled(Sandbox(), f"{{{{ {source} }}}}", "expect")
    except RefusedError as error:
        return "out_of_range", "expect", str(error).removeprefix("expect: ")
    return None
