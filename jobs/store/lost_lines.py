"""Lines whose prompts Redis has lost: each ends in an error record that says so.

Which lines a shard has stands in its payload alone, beside the index of its first and their number. Mostly that is
enough; where shards of several models, or lines refused at submission, lie in between, it has what no other has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import orjson

from jobs.attempt import Attempt
from jobs.batch import Batch
from jobs.errors import RefusedError, StaleAttemptError
from jobs.record import error_record
from jobs.shard import decode_lines
from jobs.store.keys import BatchKeys
from jobs.store.shard_records import ShardRecords
from jobs.store.store import FinishedLine, Store

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["end_lost_lines", "lost_lines"]

MESSAGE = "Redis has lost this line's prompt, and its id with it: submit the line again"
WRITTEN_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard, and the range in which all its lines are: up to the next shard of its group."""

    number: int
    first: int
    lines: int
    span: range


def end_lost_lines(store: Store, batch: Batch, attempt: Attempt, worker: str) -> None:
    """End the lines of a shard without prompts in error records, and the shard; nothing happens when it was taken over.

    Raises:
        RefusedError: what Redis keeps of the batch does not say which lines these are.
    """
    indices, now = lost_lines(store.connection, batch, attempt.number), store.now()
    open_lines = [
        FinishedLine(index, False, 0, 0, 0, _record(batch.id, index, worker, now))
        for index in indices
        if index not in attempt.finished
    ]
    with contextlib.suppress(StaleAttemptError):
        for start in range(0, len(open_lines), WRITTEN_AT_ONCE):
            store.write(attempt, open_lines[start : start + WRITTEN_AT_ONCE])
        store.finish(attempt, len(indices))


def _record(batch_id: str, index: int, worker: str, now: float) -> bytes:
    return error_record(
        line_id=f"line-{index + 1}",
        index=index,
        batch_id=batch_id,
        code="internal_error",
        message=MESSAGE,
        finished_at=now,
        worker=worker,
    )


def lost_lines(connection: Redis, batch: Batch, number: int) -> list[int]:
    """The indices of the lines of a shard whose payload is gone.

    Raises:
        RefusedError: what Redis keeps of the batch does not tell.
    """
    shards = _shards(connection, batch)
    if number not in shards:
        raise RefusedError(f"the table of batch {batch.id} has lost shard {number}")
    shard = shards[number]
    if len(shard.span) == shard.lines:
        return list(shard.span)
    others = [other for other in shards.values() if other.number != number]
    known, lost = _known(connection, batch.id, [other for other in others if _overlap(other.span, shard.span)])
    if lost:  # what they have depends on all that they lie among
        known, lost = _known(connection, batch.id, others)
    found = _shared_out([shard, *lost], known)[number]
    if len(found) != shard.lines:
        raise RefusedError(f"which lines shard {number} of batch {batch.id} had cannot be told any more")
    return found


def _shards(connection: Redis, batch: Batch) -> dict[int, _Shard]:
    """All shards of a batch by number."""
    rows = cast("list[bytes]", connection.zrange(BatchKeys(batch.id).table, 0, -1))
    try:
        table = [tuple(map(int, orjson.loads(row))) for row in rows]
        shards, next_first = dict[int, _Shard](), dict[int, int]()
        for number, group, first, lines in sorted(table, key=lambda row: row[2], reverse=True):
            shards[number] = _Shard(number, first, lines, range(first, next_first.get(group, batch.total)))
            next_first[group] = first
    except (TypeError, ValueError):
        raise RefusedError(f"the table of batch {batch.id} is damaged") from None
    return shards


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _known(connection: Redis, batch_id: str, shards: Iterable[_Shard]) -> tuple[set[int], list[_Shard]]:
    """The lines that these shards have; and those of them whose payloads are lost too."""
    keys, known, lost = BatchKeys(batch_id), set[int](), list[_Shard]()
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


def _shared_out(shards: list[_Shard], known: set[int]) -> dict[int, list[int]]:
    """The lines that are nobody else's, each given to one of some shards: to the one that begins with it, else to the
    one whose range ends first."""
    given: dict[int, list[int]] = {shard.number: [] for shard in shards}
    for index in range(min(shard.span.start for shard in shards), max(shard.span.stop for shard in shards)):
        open_ones = [shard for shard in shards if index in shard.span and len(given[shard.number]) < shard.lines]
        if index not in known and open_ones:
            taker = min(open_ones, key=lambda shard: (shard.first != index, shard.span.stop))
            given[taker.number].append(index)
    return given
