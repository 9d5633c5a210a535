"""The table of ``docs/faults.md``: a row per case, noted as the cases run.

``python -m tests.e2e.faults.table ROWS FILE`` writes it.
"""

from __future__ import annotations

import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

import orjson

from tests.e2e.faults.auditor import Audit, audit
from tests.e2e.faults.pool import Pool, Submitted

ROWS = "FAULTS_TABLE"
COLUMNS = ("fault", "phase", "lines", "records", "duplicates", "generated again", "at most", "seconds to recovery")
HEAD = """# The fault matrix, as it ran

Made on {date} by `make faults`: real worker processes, a real server with an append-only file, the real command line.
The engine is a stub whose texts follow from the prompts and which logs every line it generates, but for the rows "real
engine". Leases last {lease} s (30 s in production). Killed workers pretend to be of another host, so that nobody can
see that their processes are gone.

Checked in each case, by what a user sees:

- each line has exactly one record, in the results or in the errors, with its id and index, in the order of the input;
- each text is the line's own, and the record is of the worker that began the line last: none is of a stale attempt;
- at most the lines then in flight were generated again ("at most" says how many that were; of a line that was in flight
  at two deaths, the first tokens that it generates alone are not counted);
- `promptmill status` counts what the files hold, lines and tokens;
- nothing is left in the queue's books.

"Seconds to recovery" is from the fault to the next line that another worker begins of the lost worker's shards.

"""


class Case:
    """One case: the audits of its batches, and its row."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def check(self, batch: Submitted, *, most_regenerated: int | None = None, **wanted: Any) -> Audit:
        """Audit a batch that is done; nothing may be wrong with it."""
        pool = self._pool
        out, errors = pool.results(batch)
        source = pool.write(batch.lines)
        found = audit(
            source, batch.lines, out, errors, pool.status(batch), pool.events(),
            batch=batch.id, most_regenerated=most_regenerated, **wanted,
        )  # fmt: skip
        assert found.wrong == [], "\n".join(found.wrong[:20])
        return found

    def note(
        self, fault: str, phase: str, *found: Audit, most: int | None = None, recovery: float | None = None
    ) -> None:
        """Add the row to the table."""
        columns = zip(*((one.lines, one.records, one.duplicates) for one in found), strict=True)
        # Without a bound nobody counted.
        again = None if most is None else sum(one.regenerated for one in found)
        row = [fault, phase, *map(sum, columns), again, most, recovery, self._pool.lease]
        append(row)


def append(row: list[Any]) -> None:
    """Note a row where a table is being made: its cells, and the lease's seconds."""
    if (path := os.environ.get(ROWS)) is not None:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, orjson.dumps(row) + b"\n")
        os.close(file)


def markdown(rows: list[list[Any]], today: str) -> str:
    """The page."""
    cells = [["" if value is None else str(value) for value in row[: len(COLUMNS)]] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(COLUMNS), ["---"] * len(COLUMNS), *cells]]
    return HEAD.format(date=today, lease=rows[0][-1]) + "\n".join(lines) + "\n"


def main() -> int:
    rows, page = map(Path, sys.argv[1:3])
    page.parent.mkdir(exist_ok=True)
    found = [orjson.loads(row) for row in rows.read_bytes().splitlines()]
    page.write_text(markdown(found, date.today().isoformat()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
