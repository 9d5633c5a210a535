"""Results as Parquet: written beside their place and moved there whole, in one file or in shards; or as a stream."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from submit.results.destination import Destination
from submit.results.output import explained
from submit.results.summary import Tally
from submit.results.tables.arrow import ArrowRows
from submit.results.tables.cells import read_record

if TYPE_CHECKING:
    from submit.results.read import StoredRecord

GROUP_BYTES = 32 << 20
"""Of a row group, as it lies in memory."""
STREAMED_GROUP_BYTES = 8 << 20
"""Of one that is sent: several downloads may run at once."""


class ParquetOutput:
    """Where records go. Used as :class:`submit.results.output.Output`; nothing shows before the end of the block."""

    def __init__(self, destination: Destination, rows: ArrowRows) -> None:
        assert destination.out is not None
        self.tally = Tally(destination)
        self._rows, self.schema = rows, rows.schema
        self._files = _Shards(destination.out, destination.shard_bytes, rows.schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            if kind is None:
                if (batch := self._rows.rest()) is not None:
                    self._files.write(batch)
                self._files.finish()
        finally:
            self._files.abandon()

    @property
    def files(self) -> list[str]:
        """The names of the files, once they are written."""
        return self._files.names

    def flush(self) -> None:
        """Nothing shows before the end: a file of Parquet is whole or none."""

    def put(self, record: StoredRecord) -> None:
        """Write one record, and count it."""
        read = read_record(record.raw)
        self.tally.add(record, read)
        if (batch := self._rows.put(read, len(record.raw))) is not None:
            self._files.write(batch)


class _Shards:
    """The files of a table: one, or as many as their size says, named when all are written.

    A thread compresses and writes a row group while the next one is collected.
    """

    def __init__(self, out: Path, most: int | None, schema: pa.Schema) -> None:
        self._real = Path(os.path.realpath(out))
        self._most, self._schema = most, schema
        self._hidden: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._stream: Any = None
        self._group: list[pa.RecordBatch] = []
        self._group_bytes = 0
        self.names = [self._real.name]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet")
        self._writing: Future[None] | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        self._group.append(batch)
        self._group_bytes += batch.nbytes
        if self._group_bytes >= min(GROUP_BYTES, self._most or GROUP_BYTES):
            self._end_group()

    def _end_group(self) -> None:
        self._wait()
        group, self._group, self._group_bytes = self._group, [], 0
        self._writing = self._thread.submit(self._write_group, group)

    def _wait(self) -> None:
        """Wait for the row group that is being written.

        Raises:
            RefusedError, PromptmillError: it cannot be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write_group(self, group: list[pa.RecordBatch]) -> None:
        with explained(self._real):
            if self._writer is None:
                hidden = self._real.with_name(f".{self._real.name}.{os.getpid()}.{len(self._hidden)}.tmp")
                self._stream = hidden.open("wb")
                self._hidden.append(hidden)
                self._writer = pq.ParquetWriter(self._stream, self._schema, compression="zstd")
            table = pa.Table.from_batches(group, self._schema)
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
            if self._most is not None and self._stream.tell() >= self._most:
                self._end_file()

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._writer = None

    def finish(self) -> None:
        """Move everything to its place; shards of an earlier time go away."""
        self._wait()
        if self._group or not self._hidden:
            self._end_group()
        self._wait()
        with explained(self._real):
            self._end_file()
            if self._most is None:
                self._hidden.pop().replace(self._real)
                return
            count = len(self._hidden)
            names = [_shard(self._real, number, count) for number in range(count)]
            for hidden, place in zip(self._hidden, names, strict=True):
                hidden.replace(place)
            self._hidden = []
            self.names = [place.name for place in names]
            for old in earlier_shards(self._real):
                if old not in names:
                    old.unlink()

    def abandon(self) -> None:
        self._thread.shutdown()
        with contextlib.suppress(Exception):  # an error is on its way already
            self._end_file()
        for hidden in self._hidden:
            hidden.unlink(missing_ok=True)
        self._hidden = []


def _shard(out: Path, number: int, count: int) -> Path:
    return out.with_name(f"{out.stem}-{number:05d}-of-{count:05d}{out.suffix}")


def earlier_shards(out: Path) -> list[Path]:
    """The shards of OUT that lie there."""
    name = re.compile(re.escape(out.stem) + r"-\d{5}-of-\d{5}" + re.escape(out.suffix))
    return sorted(path for path in out.parent.iterdir() if name.fullmatch(path.name))


def parquet_blocks(records: Iterable[StoredRecord], rows: ArrowRows) -> Iterator[bytes]:
    """The bytes of one file with these records, a row group at a time."""
    sink = _Sink()
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        for record in records:
            batch = rows.put(read_record(record.raw), len(record.raw))
            if batch is None:
                continue
            waiting.append(batch)
            if sum(batch.nbytes for batch in waiting) >= STREAMED_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
                yield sink.take()
        if (batch := rows.rest()) is not None:
            waiting.append(batch)
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    yield sink.take()


class _Sink(io.RawIOBase):
    """A file that is written to and keeps nothing but what was not taken yet."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
