"""Error records for the lines that a cancelled or expired batch left without a record."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from jobs.batch import Batch
from jobs.errors import LineError
from jobs.lines.line import Defaults, check_line
from jobs.lines.line_id import readable_id
from jobs.record import error_record
from jobs.shard import ShardLine

MESSAGES = {
    "cancelled": "the batch was cancelled before this line was finished",
    "expired": "the batch expired before this line was finished",
}


def unrun_records(batch: Batch, lines: Iterable[ShardLine], known: Container[int]) -> Iterator[tuple[int, bytes]]:
    """Error records of a shard's lines: (index, record); those in ``known`` have one already."""
    defaults = Defaults(batch.defaults)
    for line in lines:
        if line.index not in known:
            yield line.index, _record(batch, line, defaults)


def _record(batch: Batch, line: ShardLine, defaults: Defaults) -> bytes:
    try:
        job = check_line(line.raw).job(index=line.index, line=line.line, batch_id=batch.id, defaults=defaults)
    except LineError:
        job = None  # somebody wrote it to Redis past the submitter's checks
    return error_record(
        line_id=job.id if job is not None else readable_id(line.raw) or f"line-{line.line}",
        index=line.index,
        batch_id=batch.id,
        code=batch.status,
        message=MESSAGES[batch.status],
        attempt=0,
        finished_at=batch.ended_at or 0.0,
        model=None if job is None else job.model,
        adapter_path=None if job is None else job.adapter_path,
        endpoint=None if job is None else job.endpoint,
        metadata=None if job is None else job.metadata,
    )
