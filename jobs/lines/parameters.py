"""Checks of parameters of generation, made from their table: the type, the range, and what to write instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from jobs.errors import LineError
from jobs.params import MAX_SEED, PARAMETERS, Parameter, shown


def _wrong_type(row: Parameter, wanted: str, value: Any) -> LineError:
    return LineError("invalid_type", row.name, f"must be {wanted}, not {shown(value)}{_instead(row, value)}")


def _outside(row: Parameter, value: Any) -> LineError:
    message = f"must be {row.range_text}, not {shown(value)}{_instead(row, value)}"
    return LineError("out_of_range", row.name, message)


def _instead(row: Parameter, value: Any) -> str:
    """``: `` and what to write instead of ``value``, or nothing where the range says enough."""
    words = ""
    if isinstance(value, str):
        words = "without the quotes" if _is_quoted(value[:20].strip().lower()) else ""
    elif value is None:
        words = row.null
    elif not isinstance(value, bool | list | dict):
        if value == 0 and row.zero:
            words = row.zero
        elif row.low is not None and value < row.low:
            words = row.below
        elif row.high is not None and value > row.high:
            words = row.above
        elif type(value) is int:
            words = row.number
    return f": {words}" if words else ""


def _is_quoted(word: str) -> bool:
    """Whether a text is a number or a truth value that was put in quotes."""
    try:
        return word in ("true", "false") or float(word) is not None
    except ValueError:
        return False


def _int_check(row: Parameter) -> Callable[[Any], int]:
    low = -math.inf if row.low is None else row.low
    high = math.inf if row.high is None else row.high

    def check(value: Any) -> int:
        if type(value) is not int:
            if type(value) is not float or not value.is_integer():
                raise _wrong_type(row, "an integer", value)
            value = int(value)
        if not low <= value <= high:
            raise _outside(row, value)
        return cast("int", value)

    return check


def _float_check(row: Parameter) -> Callable[[Any], float]:
    low = -math.inf if row.low is None else row.low
    high = math.inf if row.high is None else row.high

    def check(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise _wrong_type(row, "a number", value)
        if type(value) is int and abs(value) > MAX_SEED:
            raise _outside(row, value)
        if not low <= value <= high or (row.open_low and value == low) or not math.isfinite(value):
            raise _outside(row, value)
        return float(value)

    return check


def _bool_check(row: Parameter) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if type(value) is not bool:
            raise _wrong_type(row, "true or false", value)
        return value

    return check


def _strings_check(row: Parameter) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise _wrong_type(row, "a string or a list of strings", value)
        for item in items:
            if not isinstance(item, str):
                raise LineError("invalid_type", row.name, f"must hold strings alone, not {shown(item)}")
        if not all(items):
            raise LineError("out_of_range", row.name, "must not hold an empty string")
        if row.high is not None and len(items) > row.high:
            raise LineError("out_of_range", row.name, f"must hold at most {int(row.high)} strings, not {len(items)}")
        return tuple(items)

    return check


def _bias_check(row: Parameter) -> Callable[[Any], dict[int, float]]:
    number = _float_check(row)

    def check(value: Any) -> dict[int, float]:
        if not isinstance(value, dict):
            raise _wrong_type(row, "an object of token ids and numbers", value)
        checked = {}
        for key, bias in value.items():
            token = str(key).removesuffix(".0")
            if not token.isascii() or not token.isdigit() or len(token) > 10:
                raise LineError("invalid_type", row.name, f"keys must be token ids, not {shown(key)}")
            checked[int(token)] = number(bias)
        return checked

    return check


_CHECKS_BY_KIND: Mapping[str, Callable[[Parameter], Callable[[Any], Any]]] = {
    "int": _int_check,
    "float": _float_check,
    "bool": _bool_check,
    "strings": _strings_check,
    "bias": _bias_check,
}

CHECKS: Mapping[str, Callable[[Any], Any]] = {name: _CHECKS_BY_KIND[row.kind](row) for name, row in PARAMETERS.items()}
"""Of each parameter the function that takes a value and gives it normalised, or raises a LineError: ``invalid_type`` or
``out_of_range``, naming the field, the range and the value."""
