"""Results as flat lines of JSON, and as CSV: a row's columns, and what came of it beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import orjson

from jobs.templates.values import unspelled
from submit.results.tables.cells import ALL, json_cells, json_names, read_record, result_cells, result_names, row_cells
from submit.results.tables.columns import Facts

if TYPE_CHECKING:
    from submit.results.read import StoredRecord


def flat_renderer(facts: Facts, *, keys: bool = False) -> Callable[[StoredRecord], bytes]:
    """Each row as an object: its columns, then those of the result, and the ``keys`` of a text that is one."""
    names = result_names(frozenset(facts.known or ()), judged=facts.judged, choices=facts.choices, lists=facts.lists)

    def render(stored: StoredRecord) -> bytes:
        rows = _rows(stored, facts, names, keys)
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)

    return render


def _rows(stored: StoredRecord, facts: Facts, names: dict[str, str], keys: bool) -> Iterator[dict[str, Any]]:
    record = read_record(stored.raw)
    cells = row_cells(record)
    for name in facts.floats:
        if name in cells:
            cells[name] = unspelled(cells[name])
    if facts.known is None:
        several = facts.choices or record.choices is not None
        judged = facts.judged or record.judged is not None
        lists = facts.lists or record.listed
        names = result_names(cells, judged=judged, choices=several, lists=lists)
    for result in result_cells(record):
        found = dict(zip(ALL, result, strict=True))
        row = {**cells, **{shown: found[name] for name, shown in names.items()}}
        said = json_cells(result[0]) if keys else {}
        yield row | {shown: said[key] for key, shown in json_names(said, row).items()}


class CsvRenderer:
    """Each row as a line of CSV, under a head of all columns: lists and objects are JSON, no value is an empty cell."""

    def __init__(self, facts: Facts) -> None:
        self._columns = facts.known or ()
        names = result_names(frozenset(self._columns), judged=facts.judged, choices=facts.choices, lists=facts.lists)
        self._places = [ALL.index(name) for name in names]
        self._keys = facts.keys
        keys = json_names(self._keys, (*self._columns, *names.values())).values()
        self.head = _csv([(*self._columns, *names.values(), *keys)])

    def __call__(self, stored: StoredRecord) -> bytes:
        record = read_record(stored.raw)
        cells = row_cells(record)
        own = [_cell(cells.get(name)) for name in self._columns]
        return _csv(self._row(own, result) for result in result_cells(record))

    def _row(self, own: list[Any], result: tuple[Any, ...]) -> list[Any]:
        said = json_cells(result[0]) if self._keys else {}
        found = (*(result[place] for place in self._places), *(said.get(key) for key in self._keys))
        return [*own, *map(_cell, found)]


def _csv(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value
