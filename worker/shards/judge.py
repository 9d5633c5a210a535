"""Judging texts by what is expected of them. No foreign code runs, and each judgement takes bounded time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from jobs.errors import LineError, RefusedError
from jobs.expectations.expect import JINJA, JSON, REGEX
from jobs.expectations.schema import plain_schema

Judge = Callable[[str, Mapping[str, Any]], bool]
"""Whether a text is as expected; the other argument is what else a condition may ask for: ``reasoning``,
``stop_reason``, and the columns of the line's row."""

KEPT = 64
"""So many judges are kept for lines to come."""
BASE_STEPS, STEPS_A_CHARACTER = 20_000, 50
"""How often a schema may look at the values of a text, each time by one keyword."""


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
    from jsonschema.exceptions import UndefinedTypeCheck, UnknownType
    from referencing.exceptions import Unresolvable

    steps = _Steps()
    validator = _validator(plain_schema(schema), steps)

    def judge(text: str, _about: Mapping[str, Any]) -> bool:
        steps.begin(len(text))
        try:
            return bool(validator.is_valid(orjson.loads(text)))
        except (orjson.JSONDecodeError, RecursionError, Unresolvable, StepsError, UndefinedTypeCheck, UnknownType):
            return False

    return judge


class StepsError(Exception):
    """A schema looks at a text more often than its length explains."""


class _Steps:
    """What is left for the text at hand: a schema whose references double at each turn would take for ever."""

    def __init__(self) -> None:
        self._left = 0

    def begin(self, length: int) -> None:
        """Begin a text of so many characters."""
        self._left = BASE_STEPS + STEPS_A_CHARACTER * length

    def counted(self, keyword: Callable[..., Any]) -> Callable[..., Any]:
        """A keyword of schemas whose every look is a step."""

        def look(*given: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise StepsError
            return keyword(*given)

        return look


def _validator(schema: Any, steps: _Steps) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend
    from referencing import Registry

    from jobs.expectations.regex import Regex, searched

    known: dict[str, Regex] = {}

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Any:
        if not isinstance(instance, str):
            return
        if wanted not in known:
            known[wanted] = Regex(searched(wanted))
        if not known[wanted].matches(instance):
            yield ValidationError("does not match")

    def unique_items(_validator: Any, wanted: bool, instance: Any, _schema: Any) -> Any:
        if wanted and isinstance(instance, list) and len(set(map(_same, instance))) < len(instance):
            yield ValidationError("has an item twice")

    own = {"pattern": pattern, "uniqueItems": unique_items}
    keywords = {name: steps.counted(look) for name, look in {**Draft202012Validator.VALIDATORS, **own}.items()}
    # A registry of nothing: what a schema refers to is in itself, and is never fetched.
    return extend(Draft202012Validator, keywords)(schema, registry=Registry())  # type: ignore[no-untyped-call]


def _same(value: Any) -> str:
    """A text that is the same for values that are equal to JSON: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(_whole_numbers(value), sort_keys=True)


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [_whole_numbers(part) for part in value]
    if isinstance(value, dict):
        return {name: _whole_numbers(part) for name, part in value.items()}
    return value


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
