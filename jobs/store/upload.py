"""The submitter's side of the store: a batch is created, its shards are uploaded, and it is committed or discarded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import orjson
import zstandard

from jobs.batch import queue_name
from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.redis.rq_jobs import RqJobs
from jobs.shard import COMPRESSION_LEVEL, Group, ShardLine, encode_lines
from jobs.store.attempts import FinishedLine
from jobs.store.keys import BATCHES, EXPIRING, KEEPING, REQUESTS, STARTING, UPLOADING, WEBHOOKS, BatchKeys
from jobs.store.read_batch import MAX_GIVEN_BYTES, keys_of
from jobs.store.shard_records import pieces_of, stored
from jobs.store.shard_table import REJECTED_GROUP, TWIN_GROUP, ShardRow
from jobs.store.steps import Steps, step
from jobs.twin import Twin

if TYPE_CHECKING:
    from redis import Redis

UPLOAD_LEASE_S = 120.0
"""An upload whose submitter has shown no sign of life for this long is swept."""


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
    answers: str | None = None
    """Who waits for its records: each goes there when it is stored, and the batch is on no list."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """What it is to remember of the table its lines are made of."""


@dataclass(frozen=True, slots=True)
class UploadedShard:
    """A shard of one group: its number in the batch, its group's number and identity, its lines."""

    number: int
    group_number: int
    group: Group
    lines: Sequence[ShardLine]

    @property
    def row(self) -> ShardRow:
        return ShardRow(self.number, self.group_number, self.lines[0].index, len(self.lines))


class Uploads(Steps):
    """Uploads of batches; see :class:`jobs.store.store.Store`."""

    def __init__(self, connection: Redis, **clocks: Any) -> None:
        super().__init__(connection, **clocks)
        self._commit = step(connection, "jobs.store.lua.upload", "commit")
        self._sweep = step(connection, "jobs.store.lua.upload", "give_up")

    def create(self, batch: NewBatch) -> None:
        """Begin an upload: the batch exists as ``validating`` and nothing of it can run.

        Raises:
            RefusedError: its defaults and metadata are too large.
        """
        with self.connection.pipeline() as pipe:
            pipe.hset(BatchKeys(batch.id).info, mapping=self._fields(batch, "validating"))
            pipe.zadd(UPLOADING, {batch.id: self.server_time()})
            pipe.execute()

    def refuse(
        self, batch: NewBatch, total: int, problems: Sequence[Mapping[str, Any]], *, status: str = "failed"
    ) -> None:
        """Keep a batch that failed, or was cancelled, before it began: with what is wrong with it, in place of an
        upload.

        Raises:
            RefusedError: as :meth:`create`.
        """
        keys, now = BatchKeys(batch.id), self.now()
        with self.connection.pipeline() as pipe:
            pipe.hset(keys.info, mapping=self._fields(batch, status) | {"total": total, f"{status}_at": repr(now)})
            pipe.set(keys.problems, orjson.dumps(list(problems)))
            pipe.zrem(UPLOADING, batch.id)
            pipe.zadd(BATCHES, {batch.id: now})
            if batch.keep_s is not None:
                pipe.zadd(KEEPING, {batch.id: self.server_time() + batch.keep_s})
            pipe.execute()

    def _fields(self, batch: NewBatch, status: str) -> dict[Any, Any]:
        """The hash of a new batch."""
        given = {"defaults": batch.defaults, "metadata": batch.metadata, "dataset": batch.dataset}
        written: dict[Any, Any] = {
            name: orjson.dumps(dict(value)) for name, value in given.items() if value or name != "dataset"
        }
        if (size := sum(map(len, written.values()))) > MAX_GIVEN_BYTES:
            raise RefusedError(
                f"the batch's defaults and metadata have {size} bytes; at most {MAX_GIVEN_BYTES} are taken: give in "
                "the lines what is so long"
            )
        now = repr(self.now())
        return {
            "status": status,
            "name": batch.name or "",
            "source": batch.source,
            "priority": batch.priority,
            "pool": batch.pool or "",
            "schedule": batch.schedule or "",
            "webhook": batch.webhook or "",
            "keep_s": "" if batch.keep_s is None else repr(batch.keep_s),
            "answers": batch.answers or "",
            **written,
            "shards_done": 0,
            "created_at": now,
            "validating_at": now,
        }

    def upload(self, batch: NewBatch, shards: Sequence[UploadedShard]) -> None:
        """Pack and store shards and their RQ jobs; the jobs stay out of the queues until :meth:`commit`.

        Sent twice it leaves what it leaves sent once: the client sends again when it lost the connection.
        """
        keys = BatchKeys(batch.id)
        by_queue: dict[str, list[UploadedShard]] = {}
        for shard in shards:
            by_queue.setdefault(queue_name(shard.group.key, batch.priority, batch.pool), []).append(shard)
        alive_at, compressor = self.server_time(), zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
        with self.connection.pipeline(transaction=False) as pipe:
            if shards:
                # The table goes first: whatever else arrives, discard() finds by it.
                pipe.zadd(keys.table, {shard.row.encoded(): shard.number for shard in shards})
                pipe.mset({keys.payload(shard.number): encode_lines(shard.lines, compressor) for shard in shards})
            for queue, queued in by_queue.items():
                pipe.sadd(keys.queues, queue)
                pipe.zadd(keys.pending(queue), {keys.job_id(shard.number): shard.number for shard in queued})
                jobs = RqJobs(self.connection, queue, batch.id)
                for shard in queued:
                    jobs.save(pipe, shard.number, len(shard.lines))
            pipe.zadd(UPLOADING, {batch.id: alive_at}, xx=True)
            pipe.execute()

    def upload_rejected(self, batch_id: str, number: int, records: Sequence[FinishedLine]) -> None:
        """Store the error records of lines refused at submission, as a shard that is done already."""
        keys = BatchKeys(batch_id)
        row = ShardRow(number, REJECTED_GROUP, records[0].index, len(records)).encoded()
        arguments: list[Any] = [number, row, len(records), *(line.index for line in records)]
        for piece in pieces_of((line.index, stored(line.record)) for line in records):
            arguments += piece
        self.step("upload.reject", [keys.info, keys.table, keys.finished, keys.compacted(number)], arguments)
        self.connection.zadd(UPLOADING, {batch_id: self.server_time()}, xx=True)

    def upload_twins(self, batch_id: str, number: int, twins: Sequence[Twin]) -> None:
        """Store the places of lines that are not run, as a shard that is done already."""
        keys = BatchKeys(batch_id)
        row = ShardRow(number, TWIN_GROUP, twins[0].index, len(twins)).encoded()
        arguments: list[Any] = [number, row, len(twins)]
        for piece in pieces_of((twin.index, twin.encoded()) for twin in twins):
            arguments += piece
        self.step("upload.twins", [keys.info, keys.table, keys.compacted(number)], arguments)
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
        listed: str = BATCHES,
    ) -> bool:
        """Make an uploaded batch live, all of it in one step. False: it was swept meanwhile.

        It begins ``start_at`` a time of the server's clock, or at once, and ends ``expires_in`` seconds from then.
        ``listed`` is the list that it goes to: :data:`jobs.store.keys.REQUESTS` where somebody waits for its records.
        """
        keys, now = BatchKeys(batch_id), self.now()
        fields: list[str | bytes | int] = ["total", total, "shards", shards, "digest", digest]
        fields += ["models", orjson.dumps(sorted({group.model for group in groups}))]
        times = ["" if seconds is None else repr(seconds) for seconds in (start_at, expires_in)]
        arguments = [batch_id, repr(now), keys.pending(""), *times, *fields]
        wanted = [keys.info, UPLOADING, keys.queues, "rq:queues", listed, EXPIRING, STARTING]
        return bool(self._commit(keys=wanted, args=arguments))

    def discard(self, batch_id: str, shards: int = 0) -> None:
        """Remove a batch and all it left: uploads given up, batches purged.

        ``shards`` is for a submitter, which knows how many there may be: a sweep at the same moment may have
        removed the table that names them.
        """
        # Should the client die in between, what is left is still listed, and the table still names it.
        doomed = list(keys_of(self.connection, batch_id, shards))[::-1]
        with self.connection.pipeline(transaction=False) as pipe:
            for listed in (BATCHES, REQUESTS, EXPIRING, STARTING, KEEPING, WEBHOOKS):
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
                # Its submitter may have come back since: then it is left alone.
                with refusing(f"upload '{batch_id}'"):
                    if self._sweep(keys=[BatchKeys(batch_id).info, UPLOADING], args=[batch_id, repr(silent)]):
                        self.discard(batch_id)
                        swept.append(batch_id)
            except (RefusedError, ValueError, TypeError, LookupError):  # no upload of ours: no longer listed
                self.connection.zrem(UPLOADING, item)
        return swept
