"""Shards that this worker refuses: they go back, and fail only when no live worker takes them.

A worker of an older version does not know a newer field; what Redis keeps of a shard may be damaged, or in a form newer
than the worker. Neither is a reason to throw a batch's shard away. It goes to the end of its queue, and once the whole
queue has gone by in vain the worker leaves it alone for a while. Each refusal is noted with the shard: when all live
workers of the queue have refused it, its lines get error records that say so. Where not even that can be done, as when
nobody can tell which lines they are, the shard stays, and the log and `promptmill status` say why.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jobs.attempt import Attempt
from jobs.errors import LineError, RefusedError
from jobs.lines.line import Defaults
from jobs.redis.connect import refusing
from jobs.shard import Group, ShardLine, decode_lines
from jobs.store.keys import BatchKeys
from jobs.store.lost_lines import lost_lines
from jobs.store.store import Store
from worker.rq.entries import ShardJob, is_listed
from worker.rq.worker import Lease, ShardWorker

if TYPE_CHECKING:
    from redis import Redis

    from jobs.batch import Batch
    from worker.shards.claimed import HeldShard

log = logging.getLogger("promptmill.worker")

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""For which a queue is left alone that has nothing but what this worker refuses, by how often it had nothing else."""
UNSTORED_S, UNSTORED_MOST_S = 60.0, 600.0
"""Before a shard is generated again whose records could not be stored, doubled each time."""
UNSTORED = "its records cannot be stored in Redis; the worker's log says why"
SAID_BATCHES, SAID_LETTERS = 50, 300
NAMED_WORKERS = 4
REFUSALS_S = 30 * 86400
MOST_UNSTORED = 1000


@dataclass(frozen=True, slots=True)
class Contents:
    """The lines of a shard and what its batch gives to them; ``refusal`` is why this worker takes none of them."""

    lines: list[ShardLine]
    defaults: Defaults
    refusal: LineError | None = None


class Refusals:
    """What is refused here. Thread: main, where a method says nothing else.

    ``put_off(queue, seconds)`` has nothing taken from a queue for a while. ``reasons`` has why shards of batches went
    back last, for the published state: replaced whole.
    """

    def __init__(
        self,
        store: Store,
        rq: ShardWorker,
        put_off: Callable[[str, float], Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        pauses: Sequence[float] = PAUSES_S,
    ) -> None:
        self._store, self._rq, self._put_off, self._clock, self._pauses = store, rq, put_off, clock, pauses
        self.reasons: dict[str, str] = {}
        self._passed: Counter[str] = Counter()
        self._rounds: Counter[str] = Counter()
        self._not_stored: dict[str, tuple[float, float]] = {}
        self._failed: deque[str] = deque(maxlen=SAID_BATCHES)

    def contents(self, shard: ShardJob, batch: Batch, group: Group) -> Contents | None:
        """What a claimed shard holds, with what makes this worker refuse all of it; None: Redis has lost its prompts.

        Raises:
            RefusedError: not even which lines they are can be known.
        """
        # So much as error records need of lines whose batch is not understood.
        least = Defaults({"model": group.model, "adapter_path": group.adapter_path})
        try:
            payload = self._store.payload(batch.id, shard.number)
            if payload is None:
                return None
            lines = decode_lines(payload)
        except RefusedError as error:
            try:
                indices = lost_lines(self._store.connection, batch, shard.number)
            except RefusedError:
                raise error from None
            unread = [ShardLine(index, index + 1, b"") for index in indices]
            return Contents(unread, least, LineError("internal_error", None, str(error)))
        if shard.refusal is not None:
            return Contents(lines, least, LineError("internal_error", None, f"the shard's job: {shard.refusal}"))
        try:
            return Contents(lines, Defaults(batch.defaults))
        except LineError as error:
            return Contents(lines, least, error)

    def takes(self, held: HeldShard, refusal: LineError | None) -> bool:
        """Whether this worker goes on with a shard that it has claimed. False: it has gone back.

        Lines that every live worker refused are in ``held.refused`` then, with what their error records say.
        """
        refused = _refused_lines(held) if refusal is None else {line.index: refusal for line in held.todo()}
        if refused:
            error, attempt = next(iter(refused.values())), held.attempt
            workers = self._rq.served_by(held.queue)
            field = "" if error.field is None else f"'{error.field}' "
            if not self._refused_by_all(attempt, workers.values()):
                self._go_back(held.queue, held.lease, attempt, f"{field}{error.message}")
                return False
            held.refused = {index: _final(found, workers, attempt.batch_id) for index, found in refused.items()}
            self._say_failed(attempt.batch_id, next(iter(held.refused.values())))
        self._passed.pop(held.queue, None)
        self._rounds.pop(held.queue, None)
        self.reasons = {batch_id: why for batch_id, why in self.reasons.items() if batch_id != held.attempt.batch_id}
        return True

    def _refused_by_all(self, attempt: Attempt, workers: Collection[str]) -> bool:
        """Note that this worker refuses a shard; whether all of ``workers`` have, as far as can be known."""
        try:
            return note_refusal(self._store.connection, attempt.batch_id, attempt.number, self._rq.instance, workers)
        except RefusedError as error:
            log.warning("who refuses a shard cannot be noted: %s", error, extra={"action": "refuse_shard"})
            return False

    def leave(self, shard: ShardJob, lease: Lease, attempt: Attempt | None, error: Exception) -> None:
        """A shard that cannot be begun at all: it goes back. One that its batch does not have is somebody else's
        entry, and is removed."""
        if is_listed(self._store.connection, shard.batch_id, shard.number):
            self._go_back(shard.queue, lease, attempt, str(error))
            return
        log.warning("refused shard %s: %s", lease.job_id, error, extra={"action": "refuse_shard"})
        self._rq.acknowledge(lease, 0.0)

    def not_stored(self, held: HeldShard) -> None:
        """Redis has something else where a shard's records go: it is not generated again at once. Thread: writer."""
        seconds = self._not_stored.get(held.job_id, (0.0, UNSTORED_S / 2))[1] * 2
        if len(self._not_stored) >= MOST_UNSTORED:
            del self._not_stored[next(iter(self._not_stored))]
        self._not_stored[held.job_id] = (self._clock() + seconds, min(seconds, UNSTORED_MOST_S / 2))
        self._keep(held.attempt.batch_id, UNSTORED)

    def waits(self, shard: ShardJob, lease: Lease) -> bool:
        """Whether it is too early for another try at storing a shard's records; it has gone back then."""
        until = self._not_stored.get(lease.job_id, (0.0, 0.0))[0]
        if until <= self._clock():
            return False
        self._go_back(shard.queue, lease, None, self.reasons.get(shard.batch_id, UNSTORED))
        return True

    def _go_back(self, queue: str, lease: Lease, attempt: Attempt | None, why: str) -> None:
        batch_id = lease.job_id.rpartition("-")[0]
        self._say(batch_id, why)
        if attempt is not None:
            with contextlib.suppress(RefusedError), refusing(lease.job_id):
                self._store.release(attempt)
        self._rq.hand_back(lease, queue, front=False)
        self._passed[queue] += 1
        if self._passed[queue] >= self._rq.waiting([queue]).get(queue, 0):
            self._put_off(queue, self._pauses[min(self._rounds[queue], len(self._pauses) - 1)])
            self._rounds[queue] += 1
            self._passed[queue] = 0

    def _say(self, batch_id: str, why: str) -> None:
        if self.reasons.get(batch_id) != why[:SAID_LETTERS]:
            message = "a shard of %s goes back, for this worker refuses it: %s"
            log.warning(message, batch_id, why, extra={"action": "refuse_shard"})
        self._keep(batch_id, why)

    def _say_failed(self, batch_id: str, error: LineError) -> None:
        if batch_id not in self._failed:  # once, not for each shard
            log.warning("lines of %s fail: %s", batch_id, error.message, extra={"action": "refuse_shard"})
            self._failed.append(batch_id)

    def _keep(self, batch_id: str, why: str) -> None:
        others = [item for item in self.reasons.items() if item[0] != batch_id]
        self.reasons = dict([*others, (batch_id, why[:SAID_LETTERS])][-SAID_BATCHES:])


def note_refusal(connection: Redis, batch_id: str, number: int, worker: str, workers: Collection[str]) -> bool:
    """Remember that ``worker`` refuses a shard; whether all of ``workers`` have."""
    key = BatchKeys(batch_id).refusals(number)
    with refusing(f"shard {batch_id}-{number}"), connection.pipeline() as pipe:
        pipe.sadd(key, worker)
        pipe.expire(key, REFUSALS_S)  # the batch may be gone by now
        pipe.smismember(key, [worker, *workers])
        return all(cast("list[int]", pipe.execute()[-1]))


def _refused_lines(held: HeldShard) -> dict[int, LineError]:
    refused = {}
    for line in held.todo():
        try:
            held.job(line)
        except LineError as error:
            refused[line.index] = error
    return refused


def _final(error: LineError, workers: Iterable[str], batch_id: str) -> LineError:
    """The error of a line that no live worker takes."""
    names = sorted(workers)
    more = f" and {len(names) - NAMED_WORKERS} more" if len(names) > NAMED_WORKERS else ""
    asked = f"no live worker takes it ({', '.join(names[:NAMED_WORKERS])}{more})"
    remedy = f"upgrade the workers to the version of what submits, then `promptmill retry {batch_id}`"
    if error.code == "internal_error":  # it may be damaged
        return LineError(error.code, None, f"{error.message}; {asked}: {remedy}, or submit the line again")
    # Without its own remedy, which is for somebody who mistyped a field.
    return LineError(error.code, error.field, f"{error.message.partition('; ')[0]}; {asked}: {remedy}")
