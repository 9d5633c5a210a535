"""Orphans: shards of a running batch that are in no queue and on no worker; they are queued again.

A shard goes from its queue to the list of what was just taken, to the registry of leases, and back to its queue, each
time in one step. But RQ's own tools take it out of there (`rq empty`, a plain `rq worker`, cancelled or failed jobs),
and a key may be lost. One process of a pool looks for such shards every few seconds and puts them back.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import orjson

from jobs.batch import PRIORITIES, Batch, queue_name
from jobs.errors import PromptmillError
from jobs.redis.connect import foreign_data, refusing, replies
from jobs.redis.rq_jobs import RqJobs
from jobs.shard import Group
from jobs.store.keys import BATCHES, ORPHANS_LOOK, UPLOADING, BatchKeys
from jobs.store.retry import group_of
from jobs.store.shard_table import ShardRow, parse_row
from jobs.store.store import Store

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger("promptmill.jobs")

LOOK_S = 15.0
"""How often a pool looks: it reads all queues."""
CONFIRM_S = 5.0
"""A shard that is nowhere for less than this may be on its way: RQ's tools move a job in several steps."""
PUT_BACK_S = 45.0
"""Two looks, and what they may be late: after this long an orphan is back."""
MARKS_S = 3600
CHUNK = 1000
"""Shards in one script."""
MOST_PUT_BACK = 5000
"""Shards that one look puts back: more than workers do until the next, and whoever looks has other things to do."""
READ_AT_ONCE = 5000
"""Entries of a queue in one reply."""


@dataclass(frozen=True, slots=True)
class Orphans:
    """How many shards of a batch are in no queue, and how many lines they have; None where that was not looked at."""

    shards: int
    lines: int | None = None

    @property
    def back_within_s(self) -> float:
        """Seconds until all are back, while any worker or scheduler lives."""
        return PUT_BACK_S + LOOK_S * (self.shards // MOST_PUT_BACK)


@dataclass(slots=True)
class _Lost:
    """The orphans of a batch, the queues in which they were looked for, and those to which they go, by group."""

    rows: list[ShardRow]
    queues: set[str]
    go_to: dict[int, str]


def tend_orphans(store: Store) -> None:
    """Look for orphans and put them back, where nobody of the pool has looked a moment ago."""
    if store.connection.set(ORPHANS_LOOK, 1, nx=True, px=int(LOOK_S * 1000)):
        restore(store)


def restore(store: Store) -> int:
    """Note the shards that are in no queue, and put back those that were so a moment ago; how many these are."""
    put, running = 0, _running(store.connection)
    found = _search(store, running)
    if sound := [BatchKeys(batch_id).orphans for batch_id in running if batch_id not in found]:
        store.connection.unlink(*sound)
    for batch_id, lost in found.items():
        try:
            with refusing(f"batch '{batch_id}'"):
                put += _put_back(store, batch_id, lost, MOST_PUT_BACK - put)
        except PromptmillError as error:
            log.warning("shards of %s cannot be put back: %s", batch_id, error, extra={"action": "orphans_stuck"})
    return put


def find_orphans(store: Store, batch_id: str) -> Orphans | None:
    """The shards of a batch that are in no queue, looked for in all of them; None where there is none."""
    lost = _search(store, _running(store.connection, [batch_id])).get(batch_id)
    return Orphans(len(lost.rows), sum(row.lines for row in lost.rows)) if lost is not None and lost.rows else None


def known_orphans(connection: Redis, batch_ids: Sequence[str]) -> dict[str, Orphans]:
    """The shards that workers have found in no queue and not put back yet, of those of some batches that have any; no
    queue is read for it."""
    with connection.pipeline(transaction=False) as pipe:
        for batch_id in batch_ids:
            pipe.hlen(BatchKeys(batch_id).orphans)
        found = replies(pipe)
    counts = zip(batch_ids, found, strict=True)
    return {batch_id: Orphans(count) for batch_id, count in counts if isinstance(count, int) and count}


def remake_job(store: Store, batch_id: str, number: int, queue: str) -> bool:
    """Make the RQ job of a shard that is queued again, where its hash is lost; False where there is no such shard to
    run.

    Raises:
        RefusedError: what Redis keeps of the batch is not ours.
    """
    keys = BatchKeys(batch_id)
    with refusing(f"shard {batch_id}-{number}"), store.connection.pipeline(transaction=False) as pipe:
        pipe.hget(keys.info, "status")
        pipe.exists(keys.compacted(number))
        pipe.zrangebyscore(keys.table, number, number, start=0, num=1)
        status, done, rows = pipe.execute()
        if status != b"in_progress" or done or not rows:
            return False
        _save_jobs(store.connection, batch_id, queue, [parse_row(batch_id, rows[0])])
    return True


# --- finding ---


def _running(connection: Redis, batch_ids: Sequence[str] | None = None) -> list[str]:
    """Those of the batches that are neither done nor held back; without any named, of all."""
    if batch_ids is None:
        with refusing(BATCHES):
            listed = cast("list[bytes]", connection.zrange(BATCHES, 0, -1))
        batch_ids = [item.decode(errors="replace") for item in listed]
    with connection.pipeline(transaction=False) as pipe:
        for batch_id in batch_ids:
            pipe.hmget(BatchKeys(batch_id).info, "status", "paused_at", "starts_at")
        found = replies(pipe)
    return [batch_id for batch_id, state in zip(batch_ids, found, strict=True) if state == [b"in_progress", None, None]]


def _search(store: Store, batch_ids: Sequence[str]) -> dict[str, _Lost]:
    """The shards of running batches that are nowhere, by batch.

    Queues are read once for all batches, without holding the server up; what is missing there is looked for once more,
    in one step.
    """
    queues = _queues(store.connection, batch_ids)
    listed = _listed(store.connection, set().union(*queues.values()))
    found = {}
    for batch_id in batch_ids:
        try:
            with refusing(f"batch '{batch_id}'"):
                open_rows = _open_rows(store, batch_id)
                missing = [row for row in open_rows if BatchKeys(batch_id).job_id(row.number).encode() not in listed]
                if missing:
                    found[batch_id] = _confirmed(store, batch_id, missing, queues[batch_id], len(open_rows))
        except (PromptmillError, ValueError) as error:
            log.debug("no orphans of %s are looked for: %s", batch_id, error)
    return found


def _queues(connection: Redis, batch_ids: Sequence[str]) -> dict[str, set[str]]:
    with connection.pipeline(transaction=False) as pipe:
        for batch_id in batch_ids:
            pipe.smembers(BatchKeys(batch_id).queues)
        found = replies(pipe)
    named = ({item.decode(errors="replace") for item in reply} if isinstance(reply, set) else set() for reply in found)
    return dict(zip(batch_ids, named, strict=True))


def _listed(connection: Redis, queues: Iterable[str]) -> set[bytes]:
    """The ids of all jobs in some queues, taken from them, or under a lease."""
    return {job_id for queue in queues for job_id in _entries(connection, queue)}


def _entries(connection: Redis, queue: str) -> Iterator[bytes]:
    """In the order in which a job goes from one to the next."""
    from redis.exceptions import ResponseError

    try:
        yield from _from_the_end(connection, f"rq:queue:{queue}")
        yield from _from_the_end(connection, f"rq:queue:{queue}:intermediate")
        for entry in cast("list[bytes]", connection.zrange(f"rq:wip:{queue}", 0, -1)):
            yield entry.partition(b":")[0]
    except ResponseError as error:
        if not foreign_data(error):
            raise


def _from_the_end(connection: Redis, key: str) -> Iterator[bytes]:
    """A list's entries, the last ones first: what is taken from its front meanwhile hides none of them."""
    start = -1
    while part := cast("list[bytes]", connection.lrange(key, start - READ_AT_ONCE + 1, start)):
        yield from part
        start -= READ_AT_ONCE


def _open_rows(store: Store, batch_id: str) -> list[ShardRow]:
    """The rows of a batch's shards that are not done."""
    keys, rows = BatchKeys(batch_id), list[ShardRow]()
    for start in range(0, store.connection.zcard(keys.table), CHUNK):
        found = store.step("orphans.open_rows", [keys.table], [keys.compacted_prefix, start, start + CHUNK - 1])
        rows += [parse_row(batch_id, row) for row in found]
    return [row for row in rows if row.runs]


def _confirmed(store: Store, batch_id: str, missing: list[ShardRow], queues: set[str], open_shards: int) -> _Lost:
    """Those of the missing that are nowhere at one moment, their own queues looked at too: those that the batch names
    may be lost."""
    batch, keys, connection = store.batch(batch_id), BatchKeys(batch_id), store.connection
    groups = _groups(store, batch, missing)
    own = {queue_name(group.key, priority, batch.pool) for group in groups.values() for priority in PRIORITIES}
    looked_in, nowhere = queues | own, set[int]()
    for start in range(0, len(missing), CHUNK):
        numbers = [row.number for row in missing[start : start + CHUNK]]
        arguments = [batch_id, keys.compacted_prefix, _json(looked_in), _json(numbers)]
        nowhere.update(map(int, store.step("orphans.look", [keys.info, UPLOADING], arguments)))
    rows = [row for row in missing if row.number in nowhere]
    if rows:
        rows = _unrecorded(connection, batch_id, rows, open_shards)
    go_to = {number: queue_name(group.key, batch.priority, batch.pool) for number, group in groups.items()}
    # Of a shard whose prompts are lost any worker of the batch can say so.
    begins = queue_name("", batch.priority, batch.pool) + ":"
    otherwise = queue_name("".join(batch.models[:1]), batch.priority, batch.pool)
    other = min((queue for queue in queues if queue.startswith(begins)), default=otherwise)
    return _Lost(rows, looked_in, {row.group: go_to.get(row.group, other) for row in rows})


def _groups(store: Store, batch: Batch, rows: Iterable[ShardRow]) -> dict[int, Group]:
    """What the shards of each group share, as far as the prompts of one of them can be read."""
    groups = dict[int, Group]()
    for row in rows:
        if row.group not in groups:
            with contextlib.suppress(PromptmillError, IndexError):
                groups[row.group] = group_of(store, batch, row.number)
    return groups


def _unrecorded(connection: Redis, batch_id: str, rows: list[ShardRow], open_shards: int) -> list[ShardRow]:
    """Without those that are done and whose records were lost: they are counted, and would be counted twice."""
    keys = BatchKeys(batch_id)
    shards, done = (int(count or 0) for count in connection.hmget(keys.info, ["shards", "shards_done"]))
    if open_shards <= shards - done:
        return rows
    places = cast("list[bytes]", connection.lrange(keys.finished, 0, -1))
    again = cast("dict[bytes, bytes]", connection.hgetall(keys.retried))
    kept = (place for at, place in enumerate(places) if at >= int(again.get(place, 0)))
    recorded = Counter(int(place.partition(b":")[0]) for place in kept)
    return [row for row in rows if recorded[row.number] < row.lines]


def _json(values: Iterable[str | int]) -> bytes:
    return orjson.dumps([str(value) for value in values])


# --- putting back ---


def _put_back(store: Store, batch_id: str, lost: _Lost, most: int) -> int:
    keys, now, connection = BatchKeys(batch_id), store.server_time(), store.connection
    marks = cast("dict[bytes, bytes]", connection.hgetall(keys.orphans))
    since = {row.number: _marked(marks.get(b"%d" % row.number), now) for row in lost.rows}
    with connection.pipeline() as pipe:
        pipe.delete(keys.orphans)
        if since:
            pipe.hset(keys.orphans, mapping={str(number): repr(at) for number, at in since.items()})
            pipe.expire(keys.orphans, MARKS_S)
        pipe.execute()
    put, due = 0, dict[str, list[ShardRow]]()
    for row in [row for row in lost.rows if now - since[row.number] >= CONFIRM_S][:most]:
        due.setdefault(lost.go_to[row.group], []).append(row)
    wanted = [keys.info, UPLOADING, keys.queues, "rq:queues", keys.orphans]
    for queue, rows in due.items():
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            _save_jobs(connection, batch_id, queue, part)
            numbers = _json(row.number for row in part)
            arguments = [batch_id, keys.compacted_prefix, _json(lost.queues | {queue}), numbers]
            put += len(store.step("orphans.put_back", wanted, [*arguments, keys.pending(""), queue]))
    if put:
        log.warning("%d shards of %s were in no queue; queued again", put, batch_id, extra={"action": "orphans"})
    return put


def _marked(mark: bytes | None, now: float) -> float:
    """Since when a shard is in no queue; from ``now`` on where its mark says nothing, or what cannot be."""
    try:
        at = float(mark or now)
    except ValueError:
        return now
    return at if at <= now else now


def _save_jobs(connection: Redis, batch_id: str, queue: str, rows: Iterable[ShardRow]) -> None:
    """Make shards' jobs afresh: what RQ's tools have written into them, and when they shall expire, is gone."""
    jobs = RqJobs(connection, queue, batch_id)
    with connection.pipeline() as pipe:
        for row in rows:
            pipe.delete(f"rq:job:{BatchKeys(batch_id).job_id(row.number)}")
            jobs.save(pipe, row.number, row.lines)
        pipe.execute()
