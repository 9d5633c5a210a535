"""Tables in memory: data frames, tables of Arrow, data sets of ``datasets``, and rows as dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.errors import LineError, RefusedError
from submit.data.extras import require
from submit.data.tables.json_table import checked_row
from submit.data.tables.table import Row, Table

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "the rows given"
BATCH_ROWS = 512


class Rows:
    """Rows given as dicts. ``types`` and ``columns`` are not known: rows may differ."""

    columns: tuple[str, ...] | None = None
    types: bytes | None = None
    size: int | None = None
    bytes_read = 0

    def __init__(self, items: Iterable[Any], name: str = NAME) -> None:
        self.name = name
        self._items = items

    @property
    def once(self) -> bool:
        """Whether they can be read one time only."""
        return iter(self._items) is self._items

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(self._items, 1):
            if not isinstance(item, Mapping):
                yield number, LineError("invalid_type", None, f"must be a dict, not {type(item).__name__}")
            elif (other := next((name for name in item if not isinstance(name, str)), None)) is not None:
                yield number, LineError("invalid_type", None, f"names of columns are texts, not {other!r:.40}")
            else:
                yield number, checked_row(item if isinstance(item, dict) else dict(item))

    def digest(self) -> str:
        """Nothing: rows in memory have no name."""
        return ""

    def close(self) -> None:
        """Nothing stays open."""


def is_frame(given: Any) -> bool:
    """Whether an object is a table with columns: a data frame, a table of Arrow, a data set."""
    if hasattr(given, "__arrow_c_stream__"):
        return hasattr(given, "columns") or hasattr(given, "schema")  # a series has neither
    return _is_dataset(given)


def _is_dataset(given: Any) -> bool:
    return hasattr(given, "with_format") and hasattr(given, "features") and callable(getattr(given, "iter", None))


def table_of(given: Any) -> Table:
    """The table of an object.

    Raises:
        RefusedError: it is none.
    """
    if is_frame(given):
        require("pyarrow", "a data frame")
        return _frame(given)
    if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise RefusedError(f"rows are a path, a data frame or an iterable of dicts, not one {type(given).__name__}")
    return Rows(given)


def _frame(given: Any) -> Table:
    import pyarrow as pa

    from submit.data.tables.arrow_table import ArrowTable, explained

    read: Callable[[], Iterator[pa.RecordBatch]]
    with explained(NAME, "no table of Arrow can be made of them"):
        if _is_dataset(given):
            schema, read = _dataset(given)
        elif type(given).__module__.partition(".")[0] == "pandas":
            whole = pa.Table.from_pandas(given, preserve_index=False)
            schema, read = whole.schema, lambda: iter(whole.to_batches(BATCH_ROWS))
        elif isinstance(given, pa.Table):
            schema, read = given.schema, lambda: iter(given.to_batches(BATCH_ROWS))
        else:
            stream = pa.RecordBatchReader.from_stream(given)
            schema, read = stream.schema, lambda: _small(pa.RecordBatchReader.from_stream(given))

    class Frame(ArrowTable):
        """A table in memory, which has no digest."""

        def digest(self) -> str:
            return ""

    return Frame(NAME, schema.remove_metadata(), lambda columns: (batch.select(columns) for batch in read()))


def _small(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _dataset(given: Any) -> tuple[pa.Schema, Callable[[], Iterator[pa.RecordBatch]]]:
    """The schema and the batches of a data set of ``datasets``, in its order."""
    if given.features is None:
        raise RefusedError("the data set does not know its columns: give them, or its rows as dicts")
    arrow = given.with_format("arrow")

    def read() -> Iterator[pa.RecordBatch]:
        for table in arrow.iter(BATCH_ROWS):
            yield from table.to_batches()

    return given.features.arrow_schema, read
