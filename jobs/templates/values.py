"""Values of cells as text and as JSON: what a template writes of a list, a date or an empty cell."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from jobs.templates.budget import measured

MICROSECOND = timedelta(microseconds=1)
NOT_IN_JSON = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Numbers that JSON does not have, as Python writes them and as they travel."""


def text_of(value: Any) -> str:
    """A value as a template writes it: nothing for an empty cell or a number that is none, JSON for lists and objects,
    ISO 8601 for dates.

    Raises:
        BudgetError: it is too large.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json_of(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return "" if is_gap(value) else str(value)


def json_of(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON, compact unless ``indent`` says otherwise.

    Raises:
        BudgetError: it is too large.
    """
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(measured(value), default=plain, option=option).decode()


def plain(value: Any) -> Any:
    """What JSON has no type for, as something that it has: decimals and UUIDs as text, durations as microseconds,
    numpy's numbers as Python's.

    Raises:
        TypeError: there is no such thing.
    """
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, timedelta):
        return value // MICROSECOND
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    for convert in ("tolist", "item"):
        if callable(method := getattr(value, convert, None)):
            return method()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def spelled(value: Any) -> Any:
    """A value in which numbers that JSON does not have are texts: ``NaN``, ``Infinity``, ``-Infinity``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else NOT_IN_JSON[str(value)]
    if isinstance(value, list | tuple):
        return [spelled(part) for part in value]
    if isinstance(value, dict):
        return {name: spelled(part) for name, part in value.items()}
    return value


def unspelled(value: Any) -> Any:
    """The same with null in their places, of a value of numbers."""
    if isinstance(value, str):
        return None if value in NOT_IN_JSON.values() else value
    if isinstance(value, list):
        return [unspelled(part) for part in value]
    if isinstance(value, dict):
        return {name: unspelled(part) for name, part in value.items()}
    return value


def is_gap(value: Any) -> bool:
    """Whether a cell is empty: null, or a number that is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))
