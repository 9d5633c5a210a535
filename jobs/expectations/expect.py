"""The field ``expect`` of a line: what its text is to be, checked before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

import orjson

from jobs.errors import LineError, RefusedError
from jobs.expectations.schema import wrong_schema

JSON, REGEX, JINJA = "json", "regex:", "jinja:"
MOST_BYTES = 64 << 10
MOST_RE_ASKS = 100
FORMS = "'json', a JSON schema, 'regex:...' or 'jinja:...'"
ABOUT = frozenset({"completion", "json", "reasoning", "stop_reason"})
"""What a condition may ask for besides the columns of the row."""


def check_expect(value: Any) -> str | dict[str, Any]:
    """An expectation that texts can be judged by.

    Raises:
        LineError: it is none; the message says what is.
    """
    if not isinstance(value, str | dict):
        raise LineError("invalid_type", "expect", f"must be {FORMS}")
    try:
        written = orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise LineError("invalid_schema", "expect", "is nested too deeply") from None
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


def check_columns(expect: Any, columns: Collection[str]) -> None:
    """See that the condition of a line asks for no columns but those that travel with it.

    Raises:
        LineError: it asks for another one, and would never be true.
    """
    if not isinstance(expect, str) or not expect.startswith(JINJA) or find_spec("jinja2") is None:
        return
    missing = sorted(_columns(expect.removeprefix(JINJA)) - set(columns))
    if missing:
        from jobs.params import did_you_mean

        known = f" ({', '.join(columns)})" if columns else ""
        raise LineError(
            "missing_field", "expect", f"asks for '{missing[0]}', which is none of the columns that travel with the "
            f"line{known:.300}{did_you_mean(missing[0], columns)}; --keep-columns says which do"
        )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _columns(source: str) -> frozenset[str]:
    """The columns that a condition cannot do without."""
    from jobs.templates.sandbox import Compiled, Sandbox

    condition = Compiled(Sandbox(), f"{{{{ {source} }}}}", "expect")
    return condition.names - condition.guarded - ABOUT


@functools.lru_cache(maxsize=64)  # lines of a file have the same one
def _wrong(written: bytes) -> tuple[str, str, str] | None:
    """What is wrong with an expectation: code, field and message."""
    value = orjson.loads(written)
    if value == JSON:
        return None
    if isinstance(value, dict):
        wrong = wrong_schema(value)
        return None if wrong is None else ("invalid_schema", "expect", wrong)
    if value.startswith(REGEX):
        return _wrong_regex(value.removeprefix(REGEX))
    if value.startswith(JINJA):
        return _wrong_condition(value.removeprefix(JINJA))
    return "out_of_range", "expect", f"must be {FORMS}, not {value!r:.60}"


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
