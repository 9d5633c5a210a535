"""Opening a table of results: its columns are settled first, from the batch or from its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.store.store import Store
from submit.data.extras import require
from submit.results.destination import Destination
from submit.results.output import Output
from submit.results.read import ordered_records
from submit.results.tables.cells import result_names
from submit.results.tables.columns import Facts, facts_of, seen_columns, seen_types, stored_types
from submit.results.tables.text import CsvRenderer, flat_renderer

if TYPE_CHECKING:
    from submit.results.tables.arrow import ArrowRows
    from submit.results.tables.parquet import ParquetOutput


def table_output(destination: Destination, store: Store, batch: Batch) -> Output | ParquetOutput:
    """Where the records of a batch go as a table.

    Raises:
        RefusedError: the file cannot be written, or a package is missing.
    """
    facts = facts_of(batch)
    if destination.fmt == "flat":
        return Output(destination, flat_renderer(facts))
    if facts.known is None:
        facts = seen_columns(ordered_records(store.connection, batch.id), facts)
    if destination.fmt == "csv":
        render = CsvRenderer(facts)
        return Output(destination, render, head=render.head)
    return _parquet(destination, store, batch, facts)


def _parquet(destination: Destination, store: Store, batch: Batch, facts: Facts) -> ParquetOutput:
    if destination.out is None:
        raise RefusedError("--format parquet needs a file: give one with -o")
    require("pyarrow", "Parquet")
    from submit.results.tables.parquet import ParquetOutput

    return ParquetOutput(destination, arrow_rows(store, batch, facts))


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
    seen = seen_types(ordered_records(store.connection, batch.id), rest) if rest else {}
    types = {name: known[name] if name in known else seen[name] for name in columns}
    return ArrowRows(types, result_names(types, judged=facts.judged, choices=facts.choices))
