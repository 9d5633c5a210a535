"""Running a batch's failed lines once more, in the same batch, under their ids and indices.

The steps are in the folder ``lua/retry``. ``begin`` makes the batch live again and every earlier attempt stale.
``reopen`` takes one shard's failures back, so that each of its lines either has its record or waits; ``unpack`` puts
its other records aside for that, some at a time. ``send`` queues all reopened shards at once. Whoever retries gives a
sign of life with each step: :func:`resume` goes on for one that died, and a step sent twice changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from jobs.batch import Batch, queue_name
from jobs.errors import PromptmillError, RefusedError
from jobs.lines.line import Defaults, check_line
from jobs.record_head import head_of
from jobs.redis.connect import refusing
from jobs.redis.rq_jobs import RqJobs
from jobs.shard import Group, decode_lines
from jobs.store.keys import EXPIRING, KEEPING, UPLOADING, WEBHOOKS, BatchKeys
from jobs.store.shard_records import ShardRecords, loaded, portions, stored
from jobs.store.shard_table import read_rows
from jobs.store.store import UPLOAD_LEASE_S, Store

log = logging.getLogger("promptmill.jobs")

OVER, MOVED = -1, -2
"""What ``reopen`` says where it does nothing."""


def retry(store: Store, batch_id: str) -> int:
    """Have a batch's failed lines run again; how many wait now. Lines refused at submission are left alone.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is not done, or was cancelled meanwhile; or what Redis keeps of it is damaged.
    """
    batch = store.batch(batch_id)
    if batch.done and batch.failed == batch.rejected:
        return 0
    keys = BatchKeys(batch_id)
    wanted = [keys.info, UPLOADING, EXPIRING, keys.queues, keys.fences, KEEPING, WEBHOOKS]
    if not store.step("retry.begin", wanted, [batch_id, repr(store.server_time())]):
        raise RefusedError(f"batch {batch_id} is {batch.status}: retry it when it is done")
    which = (cast("bytes | None", store.connection.hget(keys.info, "retried_at")) or b"").decode()
    try:
        with refusing(f"batch '{batch_id}'"):
            _reopen_all(store, batch, which)
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedError(f"what Redis keeps of batch '{batch_id}' is damaged: {error}") from None
    waiting = store.batch(batch_id)
    arguments = [batch_id, repr(store.now()), keys.pending(""), which]
    if not store.step("retry.send", [keys.info, UPLOADING, keys.queues, "rq:queues"], arguments):
        latest = store.batch(batch_id)
        if latest.ended:
            raise RefusedError(f"batch {batch_id} {latest.fate} while it was retried; retry it again")
    return waiting.total - waiting.finished


def resume(store: Store) -> list[str]:
    """Go on with retries whose client has been silent for the time of an upload's lease; their batches' ids.

    One that cannot be read ends nobody who looks after all of them: it is looked at again after that time. What is no
    batch at all is taken off the list.
    """
    silent, resumed = store.server_time() - UPLOAD_LEASE_S, []
    for item in cast("list[bytes]", store.connection.zrangebyscore(UPLOADING, 0, silent)):
        try:
            batch = store.batch(item.decode())
        except (RefusedError, ValueError) as error:
            log.warning("%.80r is no upload or retry: %s", item, error, extra={"action": "refuse_retry"})
            store.connection.zrem(UPLOADING, item)
            continue
        if batch.status != "in_progress":
            continue
        try:
            with refusing(f"batch '{batch.id}'"):
                retry(store, batch.id)
            resumed.append(batch.id)
        except PromptmillError as error:
            message = "the retry of %s cannot go on: %s; cancel it, and retry it once that is mended"
            log.warning(message, batch.id, error, extra={"action": "retry_stuck"})
    return resumed


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard with lines to run: its queue, its lines, its failures' attempts by index, and how many other records it
    has. ``packed`` says that it is done."""

    number: int
    queue: str
    lines: int
    failures: dict[int, int]
    others: int
    packed: bool


def _reopen_all(store: Store, batch: Batch, which: str) -> None:
    """Reopen the shards that have a failed line, or are not done, for the retry ``which``."""
    keys, queues = BatchKeys(batch.id), dict[int, str]()
    for row in read_rows(store.connection, batch.id):
        number, group = row.number, row.group
        reply = MOVED if row.runs else 0
        while reply == MOVED:
            packed, failures, others = _outcomes(store, batch.id, number)
            if packed and not (failures and store.connection.exists(keys.payload(number))):
                break  # lines whose prompts are lost stay failed
            if group not in queues:
                queues[group] = queue_name(group_of(store, batch, number).key, batch.priority, batch.pool)
            reply = _reopen(store, batch.id, _Shard(number, queues[group], row.lines, failures, others, packed), which)
        if reply == OVER:
            return  # the next step finds out why


def _outcomes(store: Store, batch_id: str, number: int) -> tuple[bool, dict[int, int], int]:
    """Whether a shard is done, its failures' attempts by index, and how many other records it has."""
    packed, failures, others = False, dict[int, int](), 0
    for part in ShardRecords(store.connection, batch_id).parts(number):
        packed = not part.live
        for index, value in part.records:
            head = head_of(loaded(value))
            if head.error is None:
                others += 1
            else:
                failures[index] = head.attempt
    return packed, failures, others


def group_of(store: Store, batch: Batch, number: int) -> Group:
    """What all lines of a shard share, read from its first one.

    Raises:
        RefusedError, IndexError: its prompts are not in Redis, or are none of ours.
    """
    payload = store.payload(batch.id, number)
    if payload is None:
        raise RefusedError(f"the prompts of batch {batch.id} are no longer in Redis: submit them again")
    line = decode_lines(payload)[0]  # IndexError: it is none of ours
    defaults = Defaults(batch.defaults)
    job = check_line(line.raw).job(index=line.index, line=line.line, batch_id=batch.id, defaults=defaults)
    return Group(job.model, job.adapter_path)


def _reopen(store: Store, batch_id: str, shard: _Shard, which: str) -> int:
    """One shard of the retry ``which``: what ``reopen`` says."""
    keys, number = BatchKeys(batch_id), shard.number
    job_id = keys.job_id(number)
    if shard.packed:
        records = ShardRecords(store.connection, batch_id).all(number)
        others = ((index, stored(raw)) for index, raw in records if index not in shard.failures)
        for portion in portions(others):
            unpacked = [batch_id, repr(store.server_time()), which, *chain.from_iterable(portion)]
            if store.step("retry.unpack", [keys.info, UPLOADING, keys.reopened(number)], unpacked) == OVER:
                return OVER
    wanted = [keys.info, UPLOADING, keys.finished, keys.retried, keys.compacted(number), keys.records(number)]
    wanted += [keys.tries(number), keys.refusals(number), keys.pending(shard.queue)]
    wanted += [keys.queues, f"rq:executions:{job_id}", keys.flights(number), keys.reopened(number)]
    aside = shard.others if shard.packed else ""
    arguments: list[Any] = [batch_id, repr(store.server_time()), number, job_id, which, aside]
    for index, attempt in shard.failures.items():
        arguments += [index, attempt]
    reply: int = store.step("retry.reopen", wanted, arguments)
    if reply >= 0:
        with store.connection.pipeline(transaction=False) as pipe:
            RqJobs(store.connection, shard.queue, batch_id).save(pipe, number, shard.lines)
            pipe.execute()
    return reply
