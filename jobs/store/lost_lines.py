"""Lines whose prompts Redis has lost: each ends in an error record that says so.

Which lines a shard has stands in its payload alone, beside the index of its first and their number. Mostly that is
enough; where shards of several models, or lines refused at submission, lie in between, it has what no other has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

from jobs.attempt import Attempt
from jobs.batch import Batch
from jobs.errors import RefusedError, StaleAttemptError
from jobs.record import error_record
from jobs.shard import decode_lines
from jobs.store.keys import BatchKeys
from jobs.store.shard_records import ShardRecords
from jobs.store.shard_table import ShardRow, read_rows
from jobs.store.store import FinishedLine, Store

if TYPE_CHECKING:
    from redis import Redis

MESSAGE = "Redis has lost this line's prompt, and its id with it: submit the line again"
WRITTEN_AT_ONCE = 500


def end_lost_lines(store: Store, batch: Batch, attempt: Attempt, worker: str) -> None:
    """End the lines of a shard without prompts in error records, and the shard; nothing happens when it was taken over.

    Raises:
        RefusedError: what Redis keeps of the batch does not say which lines these are.
    """
    indices, now = lost_lines(store.connection, batch, attempt.number), store.now()
    record = partial(error_record, batch_id=batch.id, code="internal_error", message=MESSAGE, worker=worker)
    open_lines = [
        FinishedLine(index, False, 0, 0, 0, record(line_id=f"line-{index + 1}", index=index, finished_at=now))
        for index in indices
        if index not in attempt.finished
    ]
    with contextlib.suppress(StaleAttemptError):
        for start in range(0, len(open_lines), WRITTEN_AT_ONCE):
            store.write(attempt, open_lines[start : start + WRITTEN_AT_ONCE])
        store.finish(attempt, len(indices))


def lost_lines(connection: Redis, batch: Batch, number: int) -> list[int]:
    """The indices of the lines of a shard whose payload is gone.

    Raises:
        RefusedError: what Redis keeps of the batch does not tell.
    """
    spans = _spans(read_rows(connection, batch.id), batch.total)
    shard = next((row for row in spans if row.number == number), None)
    if shard is None:
        raise RefusedError(f"the table of batch {batch.id} has lost shard {number}")
    span = spans[shard]
    if len(span) == shard.lines:
        return list(span)
    others = [other for other in spans if other != shard]
    known, lost = _known(connection, batch.id, [other for other in others if _overlap(spans[other], span)])
    if lost:  # what they have depends on all that they lie among
        known, lost = _known(connection, batch.id, others)
    found = _shared_out({row: spans[row] for row in (shard, *lost)}, known)[shard]
    if len(found) != shard.lines:
        raise RefusedError(f"which lines shard {number} of batch {batch.id} had cannot be told any more")
    return found


def _spans(rows: Iterable[ShardRow], total: int) -> dict[ShardRow, range]:
    """The range in which all lines of a shard are: up to the next shard of its group."""
    spans, next_first = dict[ShardRow, range](), dict[int, int]()
    for row in sorted(rows, key=lambda row: row.first, reverse=True):
        spans[row] = range(row.first, next_first.get(row.group, total))
        next_first[row.group] = row.first
    return spans


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _known(connection: Redis, batch_id: str, shards: Iterable[ShardRow]) -> tuple[set[int], list[ShardRow]]:
    """The lines that these shards have; and those of them whose payloads are lost too."""
    keys, known, lost = BatchKeys(batch_id), set[int](), list[ShardRow]()
    records = ShardRecords(connection, batch_id)
    for shard in shards:
        payload = cast("bytes | None", connection.get(keys.payload(shard.number)))
        if payload is not None:
            known.update(line.index for line in decode_lines(payload))
        elif connection.exists(keys.compacted(shard.number)):
            known.update(index for index, _ in records.all(shard.number))
        else:
            lost.append(shard)
    return known, lost


def _shared_out(spans: Mapping[ShardRow, range], known: set[int]) -> dict[ShardRow, list[int]]:
    """The lines that are nobody else's, each given to one of some shards: to the one that begins with it, else to the
    one whose range ends first."""
    given: dict[ShardRow, list[int]] = {shard: [] for shard in spans}
    for index in range(min(span.start for span in spans.values()), max(span.stop for span in spans.values())):
        open_ones = [shard for shard, span in spans.items() if index in span and len(given[shard]) < shard.lines]
        if index not in known and open_ones:
            taker = min(open_ones, key=lambda shard: (shard.first != index, spans[shard].stop))
            given[taker].append(index)
    return given
