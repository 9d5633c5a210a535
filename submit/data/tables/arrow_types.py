"""Types of Arrow as tables need them: which cells can be shown, and how they become values of Python."""

from __future__ import annotations

import functools
from typing import Any

import pyarrow as pa

types = pa.types


def is_binary(kind: pa.DataType) -> bool:
    """Whether cells of this type are, or hold, bytes that are no text, or what no JSON holds."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_binary(kind.storage_type)
    if types.is_dictionary(kind):
        return is_binary(kind.value_type)
    if types.is_nested(kind):
        return types.is_union(kind) or any(is_binary(kind.field(at).type) for at in range(kind.num_fields))
    shown = (
        types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_interval, types.is_binary_view
    )  # fmt: skip
    return any(check(kind) for check in shown)


def holds_floats(kind: pa.DataType) -> bool:
    """Whether cells of this type are, or hold, floating-point numbers."""
    if isinstance(kind, pa.BaseExtensionType):
        return holds_floats(kind.storage_type)
    if types.is_dictionary(kind):
        return holds_floats(kind.value_type)
    if types.is_nested(kind):
        return any(holds_floats(kind.field(at).type) for at in range(kind.num_fields))
    return bool(types.is_floating(kind))


@functools.lru_cache(maxsize=1024)  # a table is read in many batches of the same types
def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type by which cells are read: extensions as what they are stored as, times to the microsecond, which is what
    Python has."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(plain_type(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    return kind


def written_type(kind: pa.DataType) -> pa.DataType:
    """The type by which a column comes back: extensions as what they are stored as, views and runs as lists and values,
    and JSON texts where objects without keys are in it, which Parquet cannot write."""
    if isinstance(kind, pa.BaseExtensionType):
        return written_type(kind.storage_type)
    if types.is_run_end_encoded(kind):
        return written_type(kind.value_type)
    if types.is_list_view(kind):
        return written_type(pa.list_(kind.value_type))
    if types.is_large_list_view(kind):
        return written_type(pa.large_list(kind.value_type))
    return pa.string() if _has_no_keys(kind) else kind


def _has_no_keys(kind: pa.DataType) -> bool:
    if types.is_struct(kind) and kind.num_fields == 0:
        return True
    return types.is_nested(kind) and any(_has_no_keys(kind.field(at).type) for at in range(kind.num_fields))


def cells_of(column: pa.Array) -> list[Any]:
    """The cells of a column as values of Python."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    plain = plain_type(column.type)
    cells: list[Any] = (column if plain == column.type else column.cast(plain, safe=False)).to_pylist()
    return cells
