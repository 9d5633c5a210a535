"""Judging texts by what is expected of them. No foreign code runs, and each judgement takes bounded time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from jobs.errors import LineError, RefusedError
from jobs.expectations.expect import JINJA, JSON, REGEX

Judge = Callable[[str, Mapping[str, Any]], bool]
"""Whether a text is as expected; the other argument is what else a condition may ask for: ``reasoning``,
``stop_reason``, and the columns of the line's row, which come first."""

KEPT = 64
"""So many judges are kept for lines to come."""


class Judges:
    """The judges of the expectations at hand, each made once. Used by one thread."""

    def __init__(self) -> None:
        self._known: dict[bytes, Judge] = {}

    def of(self, expect: Any) -> Judge:
        """The judge of an expectation.

        Raises:
            LineError: a package that it needs is missing here.
        """
        key = orjson.dumps(expect)
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = judge_of(expect)
        return self._known[key]


def judge_of(expect: Any) -> Judge:
    """The judge of an expectation that :func:`check_expect` has taken.

    Raises:
        LineError: a package that it needs is missing here.
    """
    try:
        if expect == JSON:
            return _is_json
        if isinstance(expect, dict):
            return _schema(expect)
        if expect.startswith(REGEX):
            return _regex(expect.removeprefix(REGEX))
        return _condition(expect.removeprefix(JINJA))
    except ImportError as error:
        raise LineError("unsupported", "expect", f"cannot be judged here: {error}; pip install it") from None


def _is_json(text: str, _about: Mapping[str, Any]) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _schema(schema: dict[str, Any]) -> Judge:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    from jobs.expectations.regex import Regex, searched

    known: dict[str, Regex | None] = {}

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Any:
        if not isinstance(instance, str):
            return
        if wanted not in known:
            try:
                known[wanted] = Regex(searched(wanted))
            except ValueError:
                known[wanted] = None
        found = known[wanted]
        if found is None or not found.matches(instance):
            yield ValidationError("does not match")

    # A registry of nothing: what a schema refers to is in itself, and is never fetched.
    extended = extend(Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    validator = extended(schema, registry=Registry())

    def judge(text: str, _about: Mapping[str, Any]) -> bool:
        try:
            return bool(validator.is_valid(orjson.loads(text)))
        except (orjson.JSONDecodeError, RecursionError, Unresolvable):
            return False

    return judge


def _regex(pattern: str) -> Judge:
    from jobs.expectations.regex import Regex

    wanted = Regex(pattern)
    return lambda text, _about: wanted.matches(text)


def _condition(source: str) -> Judge:
    from jobs.templates.sandbox import Compiled, RowError, Sandbox

    condition = Compiled(Sandbox(), f"{{{{ {source} }}}}", "expect")

    def judge(text: str, about: Mapping[str, Any]) -> bool:
        row = {**about, "completion": text}
        if "json" in condition.names:
            try:
                row["json"] = orjson.loads(text)
            except orjson.JSONDecodeError:
                row["json"] = None
        try:
            return bool(condition.value(row))
        except (RowError, RefusedError):
            return False  # it asks for what this text, or this row, has not

    return judge
