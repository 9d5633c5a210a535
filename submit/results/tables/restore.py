"""Values of JSON back as the types that their columns had: dates, decimals, numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import pyarrow as pa


def array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column of values as JSON has them, with the type that it had before.

    Raises:
        ArrowInvalid, ArrowTypeError: a value does not fit the type.
    """
    import pyarrow as pa

    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind):
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([_text(value) for value in values], kind)
    if types.is_dictionary(kind):
        return array_of(values, kind.value_type).dictionary_encode().cast(kind)
    convert = _converter(kind)
    if convert is not None:
        values = [None if value is None else convert(value) for value in values]
    return pa.array(values, kind)


def _text(value: Any) -> str | None:
    """A text; JSON of what is none, in a column of unlike values."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What makes a value of this type of one of JSON; None where it is one already."""
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind):
        return datetime.fromisoformat
    if types.is_date(kind):
        return date.fromisoformat
    if types.is_time(kind):
        return time.fromisoformat
    if types.is_duration(kind):
        return lambda microseconds: timedelta(microseconds=microseconds)
    if types.is_floating(kind):
        return _float
    if types.is_decimal(kind):
        return Decimal
    if types.is_dictionary(kind):
        return _converter(kind.value_type)
    if types.is_struct(kind):
        return _of_struct(kind)
    if types.is_map(kind):
        key, item = _converter(kind.key_type), _converter(kind.item_type)
        return lambda pairs: [(_by(key, name), _by(item, value)) for name, value in pairs]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _converter(kind.value_type)
        return inner and (lambda parts: [_by(inner, part) for part in parts])
    return None


def _by(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _of_struct(kind: pa.StructType) -> Callable[[Any], Any] | None:
    inner = {field.name: convert for field in kind if (convert := _converter(field.type)) is not None}
    if not inner:
        return None

    def restored(value: dict[str, Any]) -> dict[str, Any]:
        return {name: inner[name](part) if name in inner and part is not None else part for name, part in value.items()}

    return restored
