"""Results as flat lines of JSON, and as CSV: a row's columns, and what came of it beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from submit.results.tables.cells import ALL, read_record, result_cells, result_names, row_cells
from submit.results.tables.columns import Facts

if TYPE_CHECKING:
    from submit.results.formats import Render
    from submit.results.read import StoredRecord


def flat_renderer(facts: Facts) -> Render:
    """Each row as an object: its columns, then those of the result."""
    names = result_names(frozenset(facts.known or ()), judged=facts.judged, choices=facts.choices)

    def render(stored: StoredRecord) -> bytes:
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in _rows(stored, facts, names))

    return render


def _rows(stored: StoredRecord, facts: Facts, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    record = read_record(stored.raw)
    cells = row_cells(record)
    if facts.known is None:
        several = facts.choices or record.choices is not None
        judged = facts.judged or record.judged is not None
        names = result_names(cells, judged=judged, choices=several)
    for result in result_cells(record):
        found = dict(zip(ALL, result, strict=True))
        yield {**cells, **{shown: found[name] for name, shown in names.items()}}


class CsvRenderer:
    """Each row as a line of CSV, under a head of all columns: lists and objects are JSON, no value is an empty cell."""

    def __init__(self, facts: Facts) -> None:
        self._columns = facts.known or ()
        names = result_names(frozenset(self._columns), judged=facts.judged, choices=facts.choices)
        self._places = [ALL.index(name) for name in names]
        self.head = _csv([(*self._columns, *names.values())])

    def __call__(self, stored: StoredRecord) -> bytes:
        record = read_record(stored.raw)
        cells = row_cells(record)
        own = [_cell(cells.get(name)) for name in self._columns]
        return _csv([*own, *(_cell(result[place]) for place in self._places)] for result in result_cells(record))


def _csv(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value
