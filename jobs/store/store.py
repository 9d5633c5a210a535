"""The storage layer: batches, shards and records in Redis, and RQ's jobs beside them.

Writers: a submitter creates a batch, uploads shards and commits; a worker claims a shard, writes records
under its fence and finishes it. Readers: :mod:`submit.results.read`. A batch's end before its time is in
:mod:`jobs.store.cancel`, its second life in :mod:`jobs.store.retry`. Nothing else knows the keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import orjson

from jobs.attempt import Attempt, Standing, Verdict
from jobs.batch import ID_CUT, Batch, queue_name
from jobs.errors import BatchNotFoundError, BatchPausedError, RefusedError, StaleAttemptError
from jobs.redis.connect import refusing, replies
from jobs.redis.rq_jobs import RqJobs
from jobs.shard import MAX_PAYLOAD_BYTES, Group
from jobs.store.compaction import Compaction, compact
from jobs.store.keys import BATCHES, EXPIRING, KEEPING, STARTING, UPLOADING, WEBHOOKS, BatchKeys
from jobs.store.read_batch import MAX_GIVEN_BYTES, keys_of, read_batch, read_batches
from jobs.store.shard_records import PIECE_BYTES, pieces_of, stored
from jobs.store.steps import BEGIN, CLAIM, COMMIT, FAIL, REJECT, RELEASE, SWEEP, TAKE, WRITE

if TYPE_CHECKING:
    from redis import Redis

__all__ = [
    "REJECTED_GROUP",
    "UPLOAD_LEASE_S",
    "FinishedLine",
    "NewBatch",
    "Store",
    "UploadedShard",
]

UPLOAD_LEASE_S = 120.0
"""An upload whose submitter has shown no sign of life for this long is swept."""

REJECTED_GROUP = -1
"""The group number of shards that hold records of lines refused at submission."""

MAX_JOB_ID_BYTES = 64
"""An RQ job's id is its batch's, 28 characters, and a number."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a submitter says of a batch before it uploads it."""

    id: str
    name: str | None
    source: str
    priority: str
    defaults: Mapping[str, Any]
    metadata: Mapping[str, Any]
    pool: str | None = None
    schedule: str | None = None
    webhook: str | None = None
    keep_s: float | None = None


@dataclass(frozen=True, slots=True)
class UploadedShard:
    """A shard ready for Redis: its number in the batch, its group's number and identity, its packed lines."""

    number: int
    group_number: int
    group: Group
    first_index: int
    lines: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class FinishedLine:
    """A line's record (JSON bytes) with what the batch counts of it."""

    index: int
    ok: bool
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    record: bytes


class Store:
    """Batches in one Redis. ``connection`` replies with bytes; ``now`` gives seconds since the epoch.

    ``server_time`` gives the same by the server's clock: what several machines compare must come from one of them.
    """

    def __init__(
        self,
        connection: Redis,
        *,
        now: Callable[[], float] = time.time,
        server_time: Callable[[], float] | None = None,
    ) -> None:
        self.connection = connection
        self.now = now
        self.server_time = server_time or self._server_time
        self._commit = connection.register_script(COMMIT)
        self._reject = connection.register_script(REJECT)
        self._sweep = connection.register_script(SWEEP)
        self._take = connection.register_script(TAKE)
        self._claim = connection.register_script(CLAIM)
        self._begin = connection.register_script(BEGIN)
        self._fail = connection.register_script(FAIL)
        self._write = connection.register_script(WRITE)
        self._release = connection.register_script(RELEASE)

    def _server_time(self) -> float:
        seconds, micros = self.connection.time()
        return seconds + micros / 1e6

    # --- the submitter's side ---

    def create(self, batch: NewBatch) -> None:
        """Begin an upload: the batch exists as ``validating`` and nothing of it can run.

        Raises:
            RefusedError: its defaults and metadata are too large.
        """
        keys, now = BatchKeys(batch.id), self.now()
        defaults, metadata = orjson.dumps(dict(batch.defaults)), orjson.dumps(dict(batch.metadata))
        if len(defaults) + len(metadata) > MAX_GIVEN_BYTES:
            raise RefusedError(
                f"the batch's defaults and metadata have {len(defaults) + len(metadata)} bytes; at most "
                f"{MAX_GIVEN_BYTES} are taken: give in the lines what is so long"
            )
        with self.connection.pipeline() as pipe:
            pipe.hset(
                keys.info,
                mapping={
                    "status": "validating",
                    "name": batch.name or "",
                    "source": batch.source,
                    "priority": batch.priority,
                    "pool": batch.pool or "",
                    "schedule": batch.schedule or "",
                    "webhook": batch.webhook or "",
                    "keep_s": "" if batch.keep_s is None else repr(batch.keep_s),
                    "defaults": defaults,
                    "metadata": metadata,
                    "shards_done": 0,
                    "created_at": repr(now),
                    "validating_at": repr(now),
                },
            )
            pipe.zadd(UPLOADING, {batch.id: self.server_time()})
            pipe.execute()

    def upload(self, batch: NewBatch, shards: Sequence[UploadedShard]) -> None:
        """Store shards and their RQ jobs; the jobs stay out of the queues until :meth:`commit`.

        Sent twice it leaves what it leaves sent once: the client sends again when it lost the connection.
        """
        keys = BatchKeys(batch.id)
        by_queue: dict[str, list[UploadedShard]] = {}
        for shard in shards:
            by_queue.setdefault(queue_name(shard.group.key, batch.priority, batch.pool), []).append(shard)
        alive_at = self.server_time()
        with self.connection.pipeline(transaction=False) as pipe:
            if shards:
                # The table goes first: whatever else arrives, discard() finds by it.
                rows = (_row(shard.number, shard.group_number, shard.first_index, shard.lines) for shard in shards)
                pipe.zadd(keys.table, {row: shard.number for row, shard in zip(rows, shards, strict=True)})
                pipe.mset({keys.payload(shard.number): shard.payload for shard in shards})
            for queue, queued in by_queue.items():
                pipe.sadd(keys.queues, queue)
                pipe.zadd(keys.pending(queue), {keys.job_id(shard.number): shard.number for shard in queued})
                jobs = RqJobs(self.connection, queue, batch.id)
                for shard in queued:
                    jobs.save(pipe, shard.number, shard.lines)
            pipe.zadd(UPLOADING, {batch.id: alive_at}, xx=True)
            pipe.execute()

    def upload_rejected(self, batch_id: str, number: int, records: Sequence[FinishedLine]) -> None:
        """Store the error records of lines refused at submission, as a shard that is done already."""
        keys = BatchKeys(batch_id)
        row = _row(number, REJECTED_GROUP, records[0].index, len(records))
        arguments: list[Any] = [number, row, len(records), *(line.index for line in records)]
        for piece in pieces_of((line.index, stored(line.record)) for line in records):
            arguments += piece
        self._reject(keys=[keys.info, keys.table, keys.finished, keys.compacted(number)], args=arguments)
        self.connection.zadd(UPLOADING, {batch_id: self.server_time()}, xx=True)

    def commit(
        self,
        batch_id: str,
        *,
        total: int,
        shards: int,
        groups: Iterable[Group],
        digest: str = "",
        start_at: float | None = None,
        expires_in: float | None = None,
    ) -> bool:
        """Make an uploaded batch live, all of it in one step. False: it was swept meanwhile.

        It begins ``start_at`` a time of the server's clock, or at once, and ends ``expires_in`` seconds from then.
        """
        keys, now = BatchKeys(batch_id), self.now()
        fields: list[str | bytes | int] = ["total", total, "shards", shards, "digest", digest]
        fields += ["models", orjson.dumps(sorted({group.model for group in groups}))]
        times = ["" if seconds is None else repr(seconds) for seconds in (start_at, expires_in)]
        arguments = [batch_id, repr(now), keys.pending(""), *times, *fields]
        wanted = [keys.info, UPLOADING, keys.queues, "rq:queues", BATCHES, EXPIRING, STARTING]
        return bool(self._commit(keys=wanted, args=arguments))

    def discard(self, batch_id: str, shards: int = 0) -> None:
        """Remove a batch and all it left: uploads given up, batches purged.

        ``shards`` is for a submitter, which knows how many there may be: a sweep at the same moment may have
        removed the table that names them.
        """
        # Should the client die in between, what is left is still listed, and the table still names it.
        doomed = list(keys_of(self.connection, batch_id, shards))[::-1]
        with self.connection.pipeline(transaction=False) as pipe:
            for listed in (BATCHES, EXPIRING, STARTING, KEEPING, WEBHOOKS):
                pipe.zrem(listed, batch_id)
            for start in range(0, len(doomed), 500):
                pipe.unlink(*doomed[start : start + 500])
            pipe.zrem(UPLOADING, batch_id)
            pipe.execute()

    def sweep(self) -> list[str]:
        """Discard uploads whose submitter died; the ids of those swept.

        Raises:
            RefusedError: the list of uploads is something else.
        """
        silent = self.server_time() - UPLOAD_LEASE_S
        with refusing(UPLOADING):
            stale = cast("list[bytes]", self.connection.zrangebyscore(UPLOADING, 0, silent))
        swept = []
        for item in stale:
            try:
                batch_id = item.decode()
                # Its submitter may have come back to life since: then it is left alone.
                with refusing(f"upload '{batch_id}'"):
                    if self._sweep(keys=[BatchKeys(batch_id).info, UPLOADING], args=[batch_id, repr(silent)]):
                        self.discard(batch_id)
                        swept.append(batch_id)
            except (RefusedError, ValueError, TypeError, LookupError):  # no upload of ours: no longer listed
                self.connection.zrem(UPLOADING, item)
        return swept

    # --- the worker's side ---

    def take(self, queues: Sequence[str]) -> tuple[str, str] | None:
        """The next job, from the first of ``queues`` that has one: (queue, RQ job id).

        An entry that can be no id ends in ``...``, and is gone from the queue already.
        """
        found = self._take(keys=[f"rq:queue:{queue}" for queue in queues], args=[MAX_JOB_ID_BYTES])
        if not found:
            return None
        position, job_id, removed = cast("tuple[int, bytes, int]", found)
        return queues[position - 1], job_id.decode(errors="replace") + ("..." if removed else "")

    def payload(self, batch_id: str, number: int) -> bytes | None:
        """A shard's packed lines; None when the batch was purged.

        Raises:
            RefusedError: it is no payload of a shard; nothing larger than one is loaded.
        """
        key = BatchKeys(batch_id).payload(number)
        with refusing(f"shard {batch_id}-{number}"):
            size = self.connection.strlen(key)
            if size > MAX_PAYLOAD_BYTES:
                raise RefusedError(f"its payload has {size} bytes; at most {MAX_PAYLOAD_BYTES} are taken")
            return cast("bytes", self.connection.getrange(key, 0, MAX_PAYLOAD_BYTES)) or None

    def claim(self, batch_id: str, number: int, life: str = "") -> Attempt | None:
        """Begin an attempt at a shard; None when it is done or its batch no longer runs.

        ``life`` names the claiming worker's process for as long as it lives: lines that it has under way from an
        earlier claim stay so, and those of any other are taken for interrupted by its death.

        Raises:
            BatchPausedError: its batch is held back; nothing was changed.
            RefusedError: what Redis keeps of the batch is not ours.
        """
        keys = BatchKeys(batch_id)
        wanted = [keys.info, keys.fences, keys.tries(number), keys.compacted(number)]
        wanted += [keys.records(number), keys.flights(number)]
        with refusing(f"shard {batch_id}-{number}"):
            reply = cast("list[Any]", self._claim(keys=wanted, args=[number, repr(self.now()), life]))
        if reply == [0]:
            return None
        if reply == [-1]:
            raise BatchPausedError(f"batch {batch_id} is paused")
        fence, finished, flat = reply
        counts = {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
        return Attempt(
            batch_id,
            number,
            fence,
            frozenset(map(int, finished)),
            {int(name): count for name, count in counts.items() if name.isdigit()},
            {int(name[1:]): count for name, count in counts.items() if name.startswith("d")},
            {int(name[1:]): count for name, count in counts.items() if name.startswith("b")},
            {int(name[1:]): count for name, count in counts.items() if name.startswith("s")},
            frozenset(int(name[1:]) for name in counts if name.startswith("a")),
        )

    def begin(
        self,
        attempt: Attempt,
        indices: Iterable[int],
        life: str,
        connection: Redis,
        *,
        alone: Iterable[int] = (),
        back: Iterable[int] = (),
    ) -> bool:
        """Note that lines of a shard begin, some of them with nothing beside them: should the worker die in them, they
        are known. Those that go ``back`` do not begin after all. False: the attempt is stale.

        ``connection`` is the calling thread's own.
        """
        keys = BatchKeys(attempt.batch_id)
        chosen = ((indices, life), (alone, f"{life} alone"), (back, ""))
        notes = [item for lines, value in chosen for index in lines for item in (index, value)]
        wanted = [keys.fences, keys.flights(attempt.number)]
        return bool(self._begin(keys=wanted, args=[attempt.number, attempt.fence, *notes], client=connection))

    def fail(self, attempt: Attempt, index: int) -> int:
        """Note that an attempt at a line failed; how many have.

        Raises:
            StaleAttemptError: the lease was taken over; nothing was changed.
            RefusedError: what Redis keeps of the shard is not ours.
        """
        keys = BatchKeys(attempt.batch_id)
        wanted = [keys.fences, keys.flights(attempt.number), keys.tries(attempt.number)]
        before = attempt.tries.get(index, 0)
        with refusing(_shard(attempt)):
            failed = self._fail(keys=wanted, args=[attempt.number, attempt.fence, index, before])
        if not failed:
            raise _stale(attempt)
        return int(cast("int", failed))

    def release(self, attempt: Attempt, verdict: Verdict = Verdict.INNOCENT) -> bool:
        """Hand an attempt back: later writes of it are stale.

        False: it was stale already, and nothing was changed: the shard is another attempt's.
        """
        keys = BatchKeys(attempt.batch_id)
        number = attempt.number
        wanted = [keys.fences, keys.flights(number), keys.tries(number), keys.records(number)]
        return bool(self._release(keys=wanted, args=[number, attempt.fence, int(verdict)]))

    def standing(self, attempts: Sequence[Attempt], connection: Redis) -> list[Standing]:
        """How it stands with each attempt; ``connection`` is the calling thread's own."""
        with connection.pipeline(transaction=False) as pipe:
            for attempt in attempts:
                keys = BatchKeys(attempt.batch_id)
                pipe.hmget(keys.info, "status", "paused_at")
                pipe.hget(keys.fences, str(attempt.number))
            found = replies(pipe)
        return [
            Standing.LOST
            if not isinstance(info, list) or info[0] != b"in_progress" or not _holds(attempt, fence)
            else Standing.OURS
            if info[1] is None
            else Standing.PAUSED
            for info, fence, attempt in zip(found[::2], found[1::2], attempts, strict=True)
        ]

    def write(self, attempt: Attempt, lines: Sequence[FinishedLine]) -> None:
        """Store records of finished lines. Many or long ones take several steps; sent again, none is stored twice.

        Raises:
            StaleAttemptError: the lease was taken over; nothing more was stored.
            RefusedError: what Redis keeps of the shard is not ours.
        """
        keys = BatchKeys(attempt.batch_id)
        number = attempt.number
        wanted = [keys.info, keys.fences, keys.records(number), keys.finished, keys.flights(number)]
        wanted.append(keys.compacted(number))
        for arguments in _bounded(lines):
            with refusing(_shard(attempt)):
                taken = self._write(keys=wanted, args=[number, attempt.fence, *arguments])
            if not taken:
                raise _stale(attempt)

    def finish(
        self, attempt: Attempt, lines: int, *, own: Mapping[int, bytes] | None = None, piece_bytes: int = PIECE_BYTES
    ) -> bool:
        """Compact a shard of ``lines`` lines once each has its record; False while one is missing.

        ``own`` are records that this attempt has stored, by index and as they lie in Redis: they are not read again.

        Raises:
            StaleAttemptError: the lease was taken over; nothing was changed.
            RefusedError: what Redis keeps of the shard is not ours.
        """
        with refusing(_shard(attempt)):
            done = compact(self.connection, attempt, lines, self.now(), own or {}, piece_bytes)
        if done is Compaction.STALE:
            raise _stale(attempt)
        return done is Compaction.DONE

    def unfinished(self, attempt: Attempt) -> bool:
        """Whether a shard still waits for records of this attempt: it is neither another's nor done.

        Raises:
            RefusedError: what Redis keeps of the shard is not ours.
        """
        keys = BatchKeys(attempt.batch_id)
        with refusing(_shard(attempt)), self.connection.pipeline(transaction=False) as pipe:
            pipe.hget(keys.fences, str(attempt.number))
            pipe.exists(keys.compacted(attempt.number))
            fence, done = pipe.execute()
        return _holds(attempt, fence) and not done

    # --- what both read ---

    def batch(self, batch_id: str) -> Batch:
        """The batch of this id.

        Raises:
            BatchNotFoundError: there is none.
            RefusedError: what Redis keeps under its name is no batch.
        """
        return read_batch(self.connection, batch_id)

    def batches(self) -> list[Batch]:
        """All live batches, oldest first; what is listed and is no batch is left out."""
        listed = cast("list[bytes]", self.connection.zrange(BATCHES, 0, -1))
        return read_batches(self.connection, [item.decode(errors="replace") for item in listed])

    def find(self, name: str) -> Batch:
        """The batch of this id, else the newest of this name, else the only one whose id this is with a cut in it.

        Raises:
            BatchNotFoundError: there is none.
            RefusedError: the short id is that of several.
        """
        try:
            return self.batch(name)
        except BatchNotFoundError:
            batches = self.batches()
            for batch in reversed(batches):
                if batch.name == name:
                    return batch
            head, cut, tail = name.replace("\u2026", ID_CUT).partition(ID_CUT)
            short = cut and head.startswith("b_") and len(tail) >= LEAST_TAIL
            meant = [batch for batch in batches if short and batch.id.startswith(head) and batch.id.endswith(tail)]
            if len(meant) > 1:
                raise RefusedError(f"'{name}' is short for {len(meant)} batches; give the whole id") from None
            if meant:
                return meant[0]
            raise


LEAST_TAIL = 5
"""So many letters of an id say which one is meant, where its middle is left out."""


def _holds(attempt: Attempt, fence: Any) -> bool:
    """Whether a shard's fence, as Redis gives it, is the attempt's."""
    return bool(fence == b"%d" % attempt.fence)


def _shard(attempt: Attempt) -> str:
    return f"shard {attempt.batch_id}-{attempt.number}"


def _stale(attempt: Attempt) -> StaleAttemptError:
    return StaleAttemptError(
        f"{_shard(attempt)} is no longer this attempt's: it was taken over, or its batch has ended"
    )


def _bounded(lines: Sequence[FinishedLine]) -> Iterator[list[Any]]:
    """What :data:`WRITE` takes of some lines, as many at a time as fit into :data:`PIECE_BYTES`, or a longer one."""
    arguments: list[Any] = []
    size = 0
    for line in lines:
        record = stored(line.record)
        if arguments and size + len(record) > PIECE_BYTES:
            yield arguments
            arguments, size = [], 0
        arguments += [line.index, int(line.ok), line.prompt_tokens, line.completion_tokens, line.cached_tokens, record]
        size += len(record)
    yield arguments  # a stale attempt is told of even where there is nothing to store


def _row(number: int, group: int, first_index: int, lines: int) -> bytes:
    return orjson.dumps([number, group, first_index, lines])
