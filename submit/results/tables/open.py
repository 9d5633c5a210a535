"""Opening a table of results: its columns are settled first, from the batch or from its records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.store.store import Store
from submit.data.extras import require
from submit.results.destination import Destination
from submit.results.output import Output
from submit.results.read import ordered_records
from submit.results.tables.cells import TableRecord, json_cells, result_cells, result_names, row_cells
from submit.results.tables.columns import Facts, facts_of, seen_columns, seen_types, stored_types
from submit.results.tables.text import CsvRenderer, flat_renderer

if TYPE_CHECKING:
    from submit.results.formats import Render
    from submit.results.read import StoredRecord
    from submit.results.tables.arrow import ArrowRows
    from submit.results.tables.parquet import ParquetOutput


def table_output(destination: Destination, store: Store, batch: Batch) -> Output | ParquetOutput:
    """Where the records of a batch go as a table.

    Raises:
        RefusedError: the file cannot be written, or a package is missing.
    """
    if destination.fmt == "parquet":
        return _parquet(destination, store, batch)
    render, head = text_renderer(destination, store, batch)
    return Output(destination, render, head=head)


def table_blocks(
    destination: Destination, store: Store, batch: Batch, records: Iterable[StoredRecord]
) -> Iterator[bytes]:
    """The records of a batch as the bytes of a table, in blocks: memory does not grow with it.

    Raises:
        RefusedError: a package is missing, or there are more columns than a table may have.
    """
    if destination.fmt == "parquet":
        rows = arrow_rows(store, batch, _facts(destination, store, batch))
        from submit.results.tables.parquet import parquet_blocks

        return parquet_blocks(records, rows)
    render, head = text_renderer(destination, store, batch)
    return chain([head] if head else [], map(render, records))


def text_renderer(destination: Destination, store: Store, batch: Batch) -> tuple[Render, bytes]:
    """How rows of text are written, and what stands before them."""
    facts = _facts(destination, store, batch)
    if destination.fmt == "flat":
        return flat_renderer(facts, keys=destination.json_columns), b""
    render = CsvRenderer(facts)
    return render, render.head


def _facts(destination: Destination, store: Store, batch: Batch) -> Facts:
    """What decides on the columns: of a table that has a head, all that its records have."""
    facts = facts_of(batch)
    if destination.whole and (facts.known is None or destination.json_columns):
        records = ordered_records(store.connection, batch.id)
        return seen_columns(records, facts, keys=destination.json_columns)
    return facts


def _parquet(destination: Destination, store: Store, batch: Batch) -> ParquetOutput:
    if destination.out is None:
        raise RefusedError("--format parquet needs a file: give one with -o")
    require("pyarrow", "Parquet")
    from submit.results.tables.parquet import ParquetOutput

    return ParquetOutput(destination, arrow_rows(store, batch, _facts(destination, store, batch)))


def arrow_rows(store: Store, batch: Batch, facts: Facts | None = None) -> ArrowRows:
    """What makes batches of Arrow of a batch's records.

    Raises:
        RefusedError: pyarrow is missing.
    """
    require("pyarrow", "a table of Arrow")
    from submit.results.tables.arrow import ArrowRows

    facts = facts or facts_of(batch)
    if facts.known is None:
        facts = seen_columns(ordered_records(store.connection, batch.id), facts)
    columns = facts.known or ()
    stored = stored_types(batch)
    known = {} if stored is None else {field.name: field.type for field in stored}
    rest = [name for name in columns if name not in known]
    records = partial(ordered_records, store.connection, batch.id)
    seen = seen_types(records(), rest, lambda record: [row_cells(record)]) if rest else {}
    types = {name: known[name] if name in known else seen[name] for name in columns}
    keys = seen_types(records(), facts.keys, _json_rows) if facts.keys else {}
    return ArrowRows(types, result_names(types, judged=facts.judged, choices=facts.choices, lists=facts.lists), keys)


def _json_rows(record: TableRecord) -> list[dict[str, Any]]:
    return [json_cells(result[0]) for result in result_cells(record)]


def files_of(destination: Destination, output: object) -> list[str]:
    """The names of the files that a table was written to."""
    assert destination.out is not None
    names: list[str] = getattr(output, "files", [destination.out.name])
    return names


def columns_of(store: Store, batch: Batch, output: object) -> list[tuple[str, str]]:
    """The columns of a table that was written, with their types where it has any."""
    schema = getattr(output, "schema", None)
    if schema is not None:
        return [(field.name, str(field.type)) for field in schema]
    facts = facts_of(batch)
    if facts.known is None:
        facts = seen_columns(ordered_records(store.connection, batch.id), facts)
    own = facts.known or ()
    names = result_names(frozenset(own), judged=facts.judged, choices=facts.choices, lists=facts.lists)
    return [(name, "") for name in (*own, *names.values())]
