"""Tables of Arrow: Parquet, Feather and IPC files, and tables in memory, read in batches of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import LineError, RefusedError
from jobs.lines.line import MAX_LINE_BYTES
from submit.data.tables.arrow_types import cells_of, holds_floats, is_binary, written_type
from submit.data.tables.json_table import total_size
from submit.data.tables.table import MOST_COLUMNS, Row, digest_of_files

BATCH_ROWS = 512
BATCH_BYTES = 32 << 20
"""A batch that is larger is taken row by row."""
WORST_BYTES = 1 << 30
"""What a batch of Parquet may take at the worst."""
BOMB_BYTES = 256 << 20
BOMB_RATIO = 1000
"""A column's chunk that unpacks to so much, and is so many times smaller on disk, is taken for an attack."""
FOOTER_BYTES = 64 << 20

Batches = Callable[[], Iterator[pa.RecordBatch]]


class ArrowTable:
    """Rows of record batches of one schema. ``read`` gives them, from the beginning each time."""

    def __init__(self, name: str, schema: pa.Schema, read: Callable[[list[str]], Iterator[pa.RecordBatch]]) -> None:
        if len(schema.names) > MOST_COLUMNS:
            raise RefusedError(f"{name}: has {len(schema.names):,} columns; at most {MOST_COLUMNS:,} are taken")
        if len(set(schema.names)) < len(schema.names):
            twice = next(column for column in schema.names if schema.names.count(column) > 1)
            raise RefusedError(f"{name}: has two columns '{twice:.80}'; columns have names of their own")
        self.name = name
        self._read = read
        self.columns: tuple[str, ...] | None = tuple(schema.names)
        self.binary = frozenset(field.name for field in schema if is_binary(field.type))
        """Columns that no text can show."""
        self.floats = frozenset(field.name for field in schema if holds_floats(field.type))
        """Columns that may hold numbers which JSON has not."""
        self.types: bytes | None = _readable(schema, self.binary).serialize().to_pybytes()
        self.wanted: list[str] = [column for column in schema.names if column not in self.binary]
        """The columns that are read."""
        self.size: int | None = None
        self.bytes_read = 0

    def rows(self) -> Iterator[Row]:
        number = 0
        with explained(self.name):
            for batch in self._read(self.wanted):
                for part in _parts(batch):
                    if isinstance(part, LineError):
                        number += 1
                        yield number, part
                        continue
                    for cells in _rows(part, self.wanted, self.name):
                        number += 1
                        yield number, cells

    def digest(self) -> str:
        """Names the content: the batches as they are read."""
        import hashlib

        total = hashlib.blake2b(self.types or b"", digest_size=16)
        with explained(self.name):
            for batch in self._read(self.wanted):
                total.update(batch.serialize())
        return total.hexdigest()

    def close(self) -> None:
        """Nothing stays open."""


class ArrowFiles(ArrowTable):
    """The same of files."""

    def __init__(self, paths: Sequence[str], name: str, schema: pa.Schema, one: Callable[..., Any]) -> None:
        super().__init__(name, schema, self._of_all)
        self._paths, self._one = list(paths), one
        self.size = total_size(self._paths)

    def _of_all(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        self.bytes_read = 0
        for path in self._paths:
            size = total_size([path]) or 0
            before = self.bytes_read
            for done, batch in self._one(path, columns, self.name):
                self.bytes_read = before + int(size * done)
                yield batch
            self.bytes_read = before + size

    def digest(self) -> str:
        return digest_of_files(self._paths)


def _readable(schema: pa.Schema, binary: frozenset[str]) -> pa.Schema:
    """The schema of what comes back: no binary columns, no metadata."""
    return pa.schema([(field.name, written_type(field.type)) for field in schema if field.name not in binary])


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | LineError]:
    """A batch, or its rows where it is large: one that is longer than a line may be is none."""
    if batch.nbytes <= BATCH_BYTES:
        yield batch
        return
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        if row.nbytes > MAX_LINE_BYTES:
            message = f"the row has {row.nbytes:,} bytes; at most {MAX_LINE_BYTES:,} are taken"
            yield LineError("out_of_range", _longest(row), message)
        else:
            yield row


def _longest(row: pa.RecordBatch) -> str:
    sizes = {name: column.nbytes for name, column in zip(row.schema.names, row.columns, strict=True)}
    longest: str = max(sizes, key=lambda name: sizes[name])
    return longest


def _rows(batch: pa.RecordBatch, columns: list[str], name: str) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(batch.num_rows))
        return
    cells = [_cells(batch, column, name) for column in columns]
    for row in zip(*cells, strict=True):
        yield dict(zip(columns, row, strict=True))


def _cells(batch: pa.RecordBatch, column: str, name: str) -> list[Any]:
    try:
        return cells_of(batch.column(column))
    except OverflowError:
        raise RefusedError(
            f"{name}: the column '{column:.80}' holds a time outside the years 1 to 9999, or a duration as long; leave "
            "it out with --keep-columns"
        ) from None


# --- files ---


def parquet_table(paths: Sequence[str], name: str) -> ArrowFiles:
    """The table of files of Parquet that have the same columns.

    Raises:
        RefusedError: one is damaged, or has other columns.
    """
    schema = _same_schema(paths, _parquet_schema)
    return ArrowFiles(paths, name, schema, _parquet_batches)


def _open_parquet(path: str) -> pq.ParquetFile:
    _check_footer(path)
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _check_footer(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        end = file.read(8)
    if size < 12 or end[4:] not in (b"PAR1", b"PARE"):
        raise RefusedError(f"{path}: is no whole file of Parquet: its end is missing; copy it again")
    footer = int.from_bytes(end[:4], "little")
    if footer > FOOTER_BYTES:
        raise RefusedError(f"{path}: says of itself that its description has {footer:,} bytes, more than is taken")


def _parquet_schema(path: str) -> pa.Schema:
    with _open_parquet(path) as file:
        if file.metadata.num_columns > MOST_COLUMNS:
            raise RefusedError(f"{path}: has {file.metadata.num_columns:,} columns; at most {MOST_COLUMNS:,} are taken")
        return file.schema_arrow


def _parquet_batches(path: str, columns: list[str], name: str) -> Iterator[tuple[float, pa.RecordBatch]]:
    with _open_parquet(path) as file:
        total, done = max(file.metadata.num_rows, 1), 0
        for group in range(file.metadata.num_row_groups):
            rows = _batch_rows(file.metadata.row_group(group), set(columns), name)
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                done += batch.num_rows
                yield done / total, batch


def _batch_rows(group: Any, columns: set[str], name: str) -> int:
    """How many rows of a group to read at a time: a long value that many rows share is written out for each.

    Raises:
        RefusedError: a column unpacks to far more than it takes.
    """
    rows = BATCH_ROWS
    for at in range(group.num_columns):
        column = group.column(at)
        if column.path_in_schema.partition(".")[0] not in columns:
            continue
        packed, size = column.total_compressed_size, column.total_uncompressed_size
        if size > BOMB_BYTES and size > packed * BOMB_RATIO:
            raise RefusedError(
                f"{name}: the column '{column.path_in_schema:.80}' unpacks to {size:,} bytes, more than {BOMB_RATIO:,} "
                "times what it takes in the file: that is no data"
            )
        if (average := size // max(group.num_rows, 1)) > MAX_LINE_BYTES:
            raise RefusedError(
                f"{name}: the cells of '{column.path_in_schema:.80}' have {average:,} bytes on average; a line takes "
                f"{MAX_LINE_BYTES:,} at the most"
            )
        if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY":
            longest = min(size, MAX_LINE_BYTES)
            rows = min(rows, max(WORST_BYTES // max(longest, 1), 1))
    return rows


def arrow_table(paths: Sequence[str], name: str) -> ArrowFiles:
    """The table of files of Arrow IPC: Feather, and streams.

    Raises:
        RefusedError: one is damaged, or has other columns.
    """
    return ArrowFiles(paths, name, _same_schema(paths, _ipc_schema), _ipc_batches)


@contextlib.contextmanager
def _ipc(path: str) -> Iterator[Any]:
    with pa.memory_map(path) as source:
        start = source.read(6)
        source.seek(0)
        if start.startswith(b"FEA1"):
            raise RefusedError(f"{path}: is Feather of the first version; write it anew with pyarrow.feather")
        yield pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)


def _ipc_schema(path: str) -> pa.Schema:
    with _ipc(path) as reader:
        return reader.schema


def _ipc_batches(path: str, columns: list[str], name: str) -> Iterator[tuple[float, pa.RecordBatch]]:
    with _ipc(path) as reader:
        whole = getattr(reader, "num_record_batches", None)
        batches: Iterable[pa.RecordBatch] = reader if whole is None else (reader.get_batch(at) for at in range(whole))
        for at, batch in enumerate(batches, 1):
            batch.validate(full=False)
            chosen = batch.select(columns)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield (at / whole if whole else 0.0), chosen.slice(start, BATCH_ROWS)


def _same_schema(paths: Sequence[str], schema_of: Callable[[str], pa.Schema]) -> pa.Schema:
    first: pa.Schema | None = None
    for path in paths:
        with explained(path):
            schema = schema_of(path).remove_metadata()
        if first is None:
            first = schema
        elif schema != first:
            other = next(
                (name for name in (*first.names, *schema.names) if _type(first, name) != _type(schema, name)), "?"
            )
            raise RefusedError(
                f"{path}: the column '{other:.80}' is {_type(schema, other)} there, and {_type(first, other)} in "
                f"{paths[0]}"
            )
    assert first is not None
    return first


def _type(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "missing"


@contextlib.contextmanager
def explained(name: str, what: str = "is damaged, or no such file") -> Iterator[None]:
    """Turn errors of Arrow and of the system about a table into one that says what to do, and ``what`` it is.

    Raises:
        RefusedError: in place of them.
    """
    try:
        yield
    except MemoryError:
        raise RefusedError(f"{name}: takes more memory than there is; write it with smaller row groups") from None
    except (pa.ArrowException, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, LineError | RefusedError):
            raise
        raise RefusedError(f"{name}: {what}: {error!s:.300}") from None
    except OSError as error:
        if error.errno is None:  # Arrow's own about what it reads
            raise RefusedError(f"{name}: {what}: {error!s:.300}") from None
        raise RefusedError(f"{name}: cannot be read: {error.strerror}") from None
