"""The records of a shard in Redis, read a bounded part at a time, however long they are.

While the shard runs, a hash has them by index, each as :func:`stored` makes it. Once it is done they are in pieces:
zstd frames of whole records, one a line, in a sorted set by the index of the last record in each. A piece has at most
:data:`PIECE_BYTES`, or one longer record. Earlier versions made one frame of them all, in a string.

Compacting reads the records in parts and makes pieces of them. They are put aside under the attempt's fence and take
the records' place in one step: whoever reads finds all of the one or all of the other, and of an attempt that dies on
the way nothing counts.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import zstandard

from jobs.attempt import Attempt
from jobs.errors import RefusedError
from jobs.record_head import index_of
from jobs.redis.connect import refusing, replies
from jobs.shard import COMPRESSION_LEVEL, pack, unpack
from jobs.store.keys import BatchKeys
from jobs.store.steps import step

if TYPE_CHECKING:
    from redis import Redis

PIECE_BYTES = 1 << 20
"""Most bytes of a piece, and of the records that are sent or read at a time, but for a single longer one."""
LARGE_BYTES = 256 << 10
"""A longer record is compressed by itself, from when it is made: many may wait, on the worker and in Redis."""
FRAME = b"\x28\xb5\x2f\xfd"
"""What a zstd frame begins with, and no JSON."""
DENSEST = 1 << 15
"""No zstd frame unpacks to more than so many times its bytes."""
READ_BYTES = 1 << 20
MOST_AT_ONCE = 16
"""Shards whose records are read in one round trip."""
FINISH_TRIES = 5
"""A server that crashes loses pieces once; records that are equal byte by byte would make it go on for ever."""

T = TypeVar("T")


def stored(record: bytes) -> bytes:
    """A record as it waits and as it lies in Redis: a long one is compressed. Done twice it is done once."""
    return pack(record) if len(record) > LARGE_BYTES and not record.startswith(FRAME) else record


def loaded(value: bytes) -> bytes:
    """The record that :func:`stored` was given.

    Raises:
        RefusedError: it is a damaged frame.
    """
    return unpack(value, DENSEST * len(value)) if value.startswith(FRAME) else value


def portions(records: Iterable[tuple[T, bytes]]) -> Iterator[list[tuple[T, bytes]]]:
    """Something and a record each, as many at a time as have :data:`PIECE_BYTES` together, or one longer record."""
    portion: list[tuple[T, bytes]] = []
    size = 0
    for item in records:
        record = item[1]
        if portion and size + len(record) > PIECE_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += len(record)
    if portion:
        yield portion


class Piece(NamedTuple):
    """A frame of records, and the index of the last of them."""

    last: int
    frame: bytes


def pieces_of(records: Iterable[tuple[int, bytes]], most: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of records as they are stored, by ascending index. A long one is a piece already."""
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
    waiting: list[bytes] = []
    size, last = 0, -1
    for index, value in records:
        alone = value.startswith(FRAME)
        if waiting and (alone or size + len(value) > most):
            yield Piece(last, pack(b"\n".join(waiting), compressor))
            waiting, size = [], 0
        if alone:
            yield Piece(index, value)
        else:
            waiting.append(value)
            size, last = size + len(value) + 1, index
    if waiting:
        yield Piece(last, pack(b"\n".join(waiting), compressor))


class Part(NamedTuple):
    """Some records of a shard: (index, record as stored). ``live`` says that it runs; ``last`` is the index above which
    the next part begins, None where there is none. ``retried`` has an entry per index asked for: the length of the list
    of finished lines when it was run again, or None. ``size`` is that of the reply."""

    live: bool
    last: int | None
    records: Iterable[tuple[int, bytes]]
    retried: list[bytes | None]
    size: int = 0


class ShardRecords:
    """The records of a batch's shards, wherever they lie at the moment, about ``most`` bytes at a time."""

    def __init__(self, connection: Redis, batch_id: str, most: int = PIECE_BYTES) -> None:
        self._connection = connection
        self._keys = BatchKeys(batch_id)
        self._most = most
        self._read = step(connection, "jobs.store.lua.batch", "read_records")

    def part(self, number: int, above: int, indices: Sequence[int] = ()) -> Part:
        """The shard's first records of an index above that, or some of those at ``indices``: the first one at least,
        where that is the index above and there is one.

        Raises:
            RefusedError: what Redis keeps of the shard is damaged.
        """
        with refusing(f"shard {self._keys.job_id(number)}"):
            reply = self._read(**self._asked(number, above, indices))
        return self._part(number, cast("list[Any]", reply))

    def first_parts(self, numbers: Sequence[int]) -> list[Part]:
        """The first part of each of these shards, in one round trip. What is packed stays so until it is iterated.

        Raises:
            RefusedError: what Redis keeps of a shard is damaged.
        """
        if len(numbers) == 1:
            return [self.part(numbers[0], -1)]
        with self._connection.pipeline(transaction=False) as pipe:
            for number in numbers:
                self._read(**self._asked(number, -1), client=pipe)
            found = replies(pipe)
        parts = []
        for number, reply in zip(numbers, found, strict=True):
            with refusing(f"shard {self._keys.job_id(number)}"):
                if isinstance(reply, Exception):
                    raise reply
            parts.append(self._part(number, reply))
        return parts

    def _asked(self, number: int, above: int, indices: Sequence[int] = ()) -> dict[str, Any]:
        keys = self._keys
        wanted = [keys.records(number), keys.compacted(number), keys.retried]
        return {"keys": wanted, "args": [self._most, above, number, FRAME, *indices]}

    def _part(self, number: int, reply: list[Any]) -> Part:
        retried, kind, *found = reply
        if kind == 0:
            try:
                records = [(int(index), value) for index, value in zip(found[::2], found[1::2], strict=True)]
            except ValueError as error:
                raise self._damaged(number, error) from None
            size = sum(len(value) for _, value in records)
            return Part(True, records[-1][0] if records else None, records, retried, size)
        if kind == 1:
            frame, score = (*found, None, None)[:2]
            if frame is None:
                return Part(False, None, (), retried)
            return Part(False, int(float(score)), self._indexed(number, _unpacked(frame)), retried, len(frame))
        return Part(False, None, self._indexed(number, _lines(found[0])), retried, len(found[0]))

    def _indexed(self, number: int, records: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        try:
            for raw in records:
                yield index_of(raw), raw
        except ValueError as error:
            raise self._damaged(number, error) from None

    def _damaged(self, number: int, error: Exception) -> RefusedError:
        return RefusedError(f"what Redis keeps of shard {self._keys.job_id(number)} is damaged: {error}")

    def parts(self, number: int, first: Part | None = None) -> Iterator[Part]:
        """All records of a shard so far, by ascending index; the ``first`` part may be at hand. Each part is as of when
        it is read: a shard that is finished or retried meanwhile goes on where its records lie then.

        Raises:
            RefusedError: what Redis keeps of the shard is damaged.
        """
        above: int | None = -1
        while above is not None:
            part, first = first or self.part(number, above), None
            begin = above
            yield part._replace(records=((index, value) for index, value in part.records if index > begin))
            above = part.last

    def all(self, number: int, first: Part | None = None) -> Iterator[tuple[int, bytes]]:
        """The records of all :meth:`parts`, as stored."""
        for part in self.parts(number, first):
            yield from part.records

    def of_each(self, numbers: Iterable[int]) -> Iterator[Iterator[tuple[int, bytes]]]:
        """The records of one shard after the other. Of small ones several are read at a time, about as many bytes as
        of a large one."""
        waiting, some = iter(numbers), 1
        while chosen := list(islice(waiting, some)):
            parts = self.first_parts(chosen)
            longest = max(part.size for part in parts)
            some = max(min(self._most // max(longest, 1), MOST_AT_ONCE), 1)
            for number, part in zip(chosen, parts, strict=True):
                yield self.all(number, part)


def _unpacked(frame: bytes) -> Iterator[bytes]:
    yield from loaded(frame).split(b"\n")


def _lines(frame: bytes) -> Iterator[bytes]:
    """The lines of a frame, unpacked bit by bit.

    Raises:
        RefusedError: it is damaged.
    """
    try:
        with zstandard.ZstdDecompressor().stream_reader(frame) as stream:
            rest: list[bytes] = []
            while block := stream.read(READ_BYTES):
                *whole, tail = block.split(b"\n")
                for line in whole:
                    yield b"".join([*rest, line])
                    rest = []
                rest.append(tail)
            yield b"".join(rest)
    except zstandard.ZstdError as error:
        raise RefusedError(f"records are in no zstd frame: {error}") from None


# --- compacting ---


class Compaction(enum.IntEnum):
    """What the steps say."""

    LOST_PIECES = -2
    """Some that were put aside are gone, as after a crash of the server."""
    INCOMPLETE = -1
    STALE = 0
    DONE = 1
    STOWED = 2


def compact(
    connection: Redis,
    attempt: Attempt,
    lines: int,
    now: float,
    own: Mapping[int, bytes],
    most: int = PIECE_BYTES,
) -> Compaction:
    """Compact a shard of ``lines`` lines once each has its record. Memory is that of two pieces of ``most`` bytes, or
    of a longer record. The attempt's ``own`` records are at hand.

    Raises:
        redis.exceptions.ResponseError, RefusedError: what Redis keeps of the shard is damaged.
    """
    keys, number = BatchKeys(attempt.batch_id), attempt.number
    wanted = [keys.info, keys.fences, keys.compacted(number), keys.pieces(number)]
    stow = step(connection, "jobs.store.lua.attempt", "stow")
    finish = step(connection, "jobs.store.lua.attempt", "finish")
    rest = [keys.records(number), keys.flights(number), keys.tries(number), keys.reopened(number)]
    for _ in range(FINISH_TRIES):
        count, waiting = 0, None
        for piece in pieces_of(_records(connection, attempt, lines, own, most), most):
            if waiting is not None:
                arguments: list[Any] = [number, attempt.fence, count, *waiting]
                reply = Compaction(cast("int", stow(keys=wanted, args=arguments)))
                if reply is not Compaction.STOWED:
                    return reply
                count += 1
            waiting = piece
        last = waiting or Piece(-1, b"")
        reply = Compaction(
            cast("int", finish(keys=[*wanted, *rest], args=[number, attempt.fence, count, *last, lines, repr(now)]))
        )
        if reply is not Compaction.LOST_PIECES:
            return reply
    raise RefusedError(f"what Redis keeps of shard {keys.job_id(number)} is damaged: its pieces do not stay")


def _records(
    connection: Redis, attempt: Attempt, lines: int, own: Mapping[int, bytes], most: int
) -> Iterator[tuple[int, bytes]]:
    """The shard's records by ascending index: those of earlier attempts are read, or all where one is at hand of
    neither."""
    if len(own) + len(attempt.finished) != lines:
        return _live(connection, attempt, most)
    return heapq.merge(sorted(own.items()), _earlier(connection, attempt, most))


def _earlier(connection: Redis, attempt: Attempt, most: int) -> Iterator[tuple[int, bytes]]:
    records, wanted = ShardRecords(connection, attempt.batch_id, most), sorted(attempt.finished)
    while wanted:
        part = records.part(attempt.number, -1, wanted)
        if not part.live or part.last is None:
            return
        yield from part.records
        last = part.last
        wanted = [index for index in wanted if index > last]


def _live(connection: Redis, attempt: Attempt, most: int) -> Iterator[tuple[int, bytes]]:
    for part in ShardRecords(connection, attempt.batch_id, most).parts(attempt.number):
        if not part.live:
            return  # an earlier finish, whose reply was lost
        yield from part.records
