"""The columns of a table of results: those of the rows, as the batch remembers them or as its records have them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.batch import Batch
from jobs.errors import RefusedError
from submit.data.order import TableOrder
from submit.data.tables.table import MOST_COLUMNS
from submit.results.tables.cells import LISTS, TableRecord, json_cells, read_record, result_cells, row_cells

if TYPE_CHECKING:
    import pyarrow as pa

    from submit.results.read import StoredRecord

SAMPLE_ROWS = 5000


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides on the columns: those that rows keep as far as the batch knows (None: it does not), whether texts
    are judged, and whether lines have several."""

    known: tuple[str, ...] | None
    judged: bool
    choices: bool
    keys: tuple[str, ...] = ()
    """Of texts that are JSON objects, where these are to be columns."""
    floats: tuple[str, ...] = ()
    """Columns of rows in which numbers that JSON does not have are texts."""
    lists: tuple[str, ...] = ()
    """Those of LISTS that there are."""


def facts_of(batch: Batch) -> Facts:
    """What a batch tells of its columns."""
    order = TableOrder.from_dict(batch.dataset.get("order", {}))
    template = order.template or {}
    judged = "expect" in batch.defaults or "expect" in template
    several = (batch.defaults.get("n") or 1) > 1 or "n" in template
    asked = {**batch.defaults, **template}
    lists = tuple(name for name in LISTS if asked.get(name) not in (None, False))
    columns, floats = tuple(batch.dataset.get("columns", ())), tuple(batch.dataset.get("floats", ()))
    if not columns or "metadata" in template or order.template is None:
        return Facts(None, judged, several, floats=floats, lists=lists)
    known = _kept(columns, order.keep, frozenset(batch.dataset.get("binary", ())))
    return Facts(known, judged, several, floats=floats, lists=lists)


def _kept(columns: tuple[str, ...], keep: str | None, binary: frozenset[str]) -> tuple[str, ...]:
    if keep in (None, "all"):
        return tuple(name for name in columns if name not in binary)
    named = {name.strip() for name in str(keep).split(",")} if keep != "none" else set()
    return tuple(name for name in columns if name in named)


def seen_columns(records: Iterable[StoredRecord], facts: Facts, *, keys: bool = False) -> Facts:
    """The same with the columns that the records have, and whether any has several texts; also the ``keys`` of texts
    that are JSON objects.

    Raises:
        RefusedError: they are too many for a table.
    """
    names: dict[str, None] = dict.fromkeys(facts.known or ())
    found: dict[str, None] = {}
    several, judged, lists = facts.choices, facts.judged, frozenset(facts.lists)
    for stored in records:
        record = read_record(stored.raw)
        names |= dict.fromkeys(row_cells(record))
        if keys:
            for result in result_cells(record):
                found |= dict.fromkeys(json_cells(result[0]))
        if len(names) + len(found) > MOST_COLUMNS:
            raise RefusedError(f"the table would have more than {MOST_COLUMNS:,} columns: take --format native")
        several |= record.choices is not None
        judged |= record.judged is not None
        lists |= frozenset(record.listed)
    having = tuple(name for name in LISTS if name in lists)
    return replace(facts, known=tuple(names), judged=judged, choices=several, keys=tuple(found), lists=having)


def stored_types(batch: Batch) -> pa.Schema | None:
    """The types of the columns of the table that a batch was made of, where that had any."""
    import pyarrow as pa

    types = batch.dataset.get("types")
    return None if types is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(types)))


def seen_types(
    records: Iterable[StoredRecord], names: Iterable[str], cells: Callable[[TableRecord], list[dict[str, Any]]]
) -> dict[str, pa.DataType]:
    """The types of columns by what is in them: one that holds values of unlike kinds is of JSON texts."""
    import pyarrow as pa

    from submit.data.tables.arrow_types import written_type

    found: dict[str, pa.DataType] = dict.fromkeys(names, pa.null())
    for some in _chunks(records):
        rows = [row for stored in some for row in cells(read_record(stored.raw))]
        for name, before in found.items():
            if before != pa.string():
                found[name] = _merged(before, [row.get(name) for row in rows])
    return {name: pa.string() if kind == pa.null() else written_type(kind) for name, kind in found.items()}


def _chunks(records: Iterable[StoredRecord]) -> Iterator[list[StoredRecord]]:
    chunk: list[StoredRecord] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == SAMPLE_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _merged(before: pa.DataType, values: list[Any]) -> pa.DataType:
    import pyarrow as pa

    try:
        seen = pa.array(values).type
        fields = [pa.schema([("x", kind)]) for kind in (before, seen)]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pa.ArrowException, TypeError, OverflowError, ValueError):
        return pa.string()
