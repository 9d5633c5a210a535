"""Which rows of a table become lines: those that pass a condition, from an offset on, so many, or a sample of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from jobs.errors import LineError
from submit.data.order import TableOrder
from submit.data.tables.table import Row, Table

Passes = Callable[[dict[str, Any]], bool]
"""Whether a row is wanted; raises LineError where that cannot be said."""


def selected(table: Table, order: TableOrder, passes: Passes | None) -> Iterator[Row]:
    """The rows that are wanted, in the table's order. A sample reads the table twice, and keeps a number for each of
    its rows.

    Raises:
        RefusedError: the table cannot be read.
    """
    if order.sample is None:
        yield from _range(table, order, passes)
        return
    chosen = _sample(_range(table, order, passes), order.sample, order.sample_seed)
    for place, row in enumerate(_range(table, order, passes)):
        if place in chosen:
            yield row
            chosen.discard(place)
            if not chosen:
                return


def _range(table: Table, order: TableOrder, passes: Passes | None) -> Iterator[Row]:
    rows = table.rows() if passes is None else _passing(table.rows(), passes)
    end = None if order.limit is None else order.offset + order.limit
    return islice(rows, order.offset, end)


def _passing(rows: Iterator[Row], passes: Passes) -> Iterator[Row]:
    for number, row in rows:
        if isinstance(row, LineError):
            yield number, row
            continue
        try:
            wanted = passes(row)
        except LineError as error:
            yield number, error
            continue
        if wanted:
            yield number, row


def _sample(rows: Iterator[Row], size: int, seed: int) -> set[int]:
    """The places of a sample without repetition: a row's draw depends on the seed and its place alone."""
    import random

    draw = random.Random(seed).random
    chosen: list[tuple[float, int]] = []
    for place, _ in enumerate(rows):
        drawn = (-draw(), -place)
        if len(chosen) < size:
            heapq.heappush(chosen, drawn)
        elif drawn > chosen[0]:
            heapq.heapreplace(chosen, drawn)
    return {-place for _, place in chosen}
