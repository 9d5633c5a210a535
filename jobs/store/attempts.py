"""The worker's side of the store: a shard is claimed, its records are written under the attempt's fence, it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jobs.attempt import Attempt, Standing, Verdict
from jobs.errors import BatchPausedError, RefusedError, StaleAttemptError
from jobs.redis.connect import refusing, replies
from jobs.shard import MAX_PAYLOAD_BYTES
from jobs.store.keys import BatchKeys
from jobs.store.shard_records import PIECE_BYTES, Compaction, compact, portions, stored
from jobs.store.steps import Steps

if TYPE_CHECKING:
    from redis import Redis

MAX_JOB_ID_BYTES = 64
"""An RQ job's id is its batch's, 28 characters, and a number."""


@dataclass(frozen=True, slots=True)
class FinishedLine:
    """A line's record (JSON bytes) with what the batch counts of it."""

    index: int
    ok: bool
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    record: bytes
    scored_tokens: int = 0

    @property
    def counted(self) -> tuple[int, ...]:
        """Its index, 1 where it is completed, and its tokens: what stands before its record for the step ``write``."""
        tokens = self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.scored_tokens
        return self.index, int(self.ok), *tokens


class Attempts(Steps):
    """Attempts at shards; see :class:`jobs.store.store.Store`."""

    def take(self, queues: Sequence[str]) -> tuple[str, str] | None:
        """The next job, from the first of ``queues`` that has one: (queue, RQ job id).

        An entry that can be no id ends in ``...``, and is gone from the queue already.
        """
        found = self.step("attempt.take", [f"rq:queue:{queue}" for queue in queues], [MAX_JOB_ID_BYTES])
        if not found:
            return None
        position, job_id, removed = found
        return queues[position - 1], str(job_id, errors="replace") + ("..." if removed else "")

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

    def claim(self, batch_id: str, number: int, instance: str = "") -> Attempt | None:
        """Begin an attempt at a shard; None when it is done or its batch no longer runs.

        ``instance`` names the claiming worker instance, one process: lines that it has under way from an earlier claim
        stay so, and those of any other are taken for interrupted by its death.

        Raises:
            BatchPausedError: its batch is held back; nothing was changed.
            RefusedError: what Redis keeps of the batch is not ours.
        """
        keys = BatchKeys(batch_id)
        wanted = [keys.info, keys.fences, keys.tries(number), keys.compacted(number)]
        wanted += [keys.records(number), keys.flights(number)]
        with refusing(f"shard {batch_id}-{number}"):
            reply = self.step("attempt.claim", wanted, [number, repr(self.now()), instance])
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
        instance: str,
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
        chosen = ((indices, instance), (alone, f"{instance} alone"), (back, ""))
        notes = [item for lines, value in chosen for index in lines for item in (index, value)]
        wanted = [keys.fences, keys.flights(attempt.number)]
        return bool(self.step("attempt.begin", wanted, [attempt.number, attempt.fence, *notes], connection))

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
            failed = self.step("attempt.fail", wanted, [attempt.number, attempt.fence, index, before])
        if not failed:
            raise _stale(attempt)
        return int(failed)

    def release(self, attempt: Attempt, verdict: Verdict = Verdict.INNOCENT) -> bool:
        """Hand an attempt back: later writes of it are stale.

        False: it was stale already, and nothing was changed: the shard is another attempt's.
        """
        keys = BatchKeys(attempt.batch_id)
        number = attempt.number
        wanted = [keys.fences, keys.flights(number), keys.tries(number), keys.records(number)]
        return bool(self.step("attempt.release", wanted, [number, attempt.fence, int(verdict)]))

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

    def dropped(self, attempts: Sequence[Attempt], connection: Redis) -> list[set[int]]:
        """The lines of each attempt's shard that were cancelled one by one; ``connection`` is the calling thread's."""
        with connection.pipeline(transaction=False) as pipe:
            for attempt in attempts:
                pipe.smembers(BatchKeys(attempt.batch_id).dropped)
            found = replies(pipe)
        return [
            _indices(members, attempt.number) if isinstance(members, set) else set()
            for attempt, members in zip(attempts, found, strict=True)
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
        records = ((line, stored(line.record)) for line in lines)
        # That the attempt is stale is said also where there is nothing to store.
        for portion in portions(records) if lines else [[]]:
            arguments = [item for line, record in portion for item in (*line.counted, record)]
            with refusing(_shard(attempt)):
                taken = self.step("attempt.write", wanted, [number, attempt.fence, *arguments])
            if not taken:
                raise _stale(attempt)

    def finish(
        self,
        attempt: Attempt,
        lines: int,
        *,
        own: Mapping[int, bytes] | None = None,
        piece_bytes: int = PIECE_BYTES,
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


def _indices(places: set[bytes], number: int) -> set[int]:
    """The indices of those of some places, ``number:index``, that are in the shard of this number."""
    split = (place.partition(b":") for place in places)
    return {int(index) for shard, _, index in split if shard == b"%d" % number and index.isdigit()}


def _holds(attempt: Attempt, fence: Any) -> bool:
    """Whether a shard's fence, as Redis gives it, is the attempt's."""
    return bool(fence == b"%d" % attempt.fence)


def _shard(attempt: Attempt) -> str:
    return f"shard {attempt.batch_id}-{attempt.number}"


def _stale(attempt: Attempt) -> StaleAttemptError:
    return StaleAttemptError(
        f"{_shard(attempt)} is no longer this attempt's: it was taken over, or its batch has ended"
    )
