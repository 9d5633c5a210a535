"""The records of a shard in Redis, read a bounded part at a time, however long they are.

While the shard runs, a hash has them by index, each as :func:`stored` makes it. Once it is done they are in pieces:
zstd frames of whole records, one a line, in a sorted set by the index of the last record in each. A piece has at most
:data:`PIECE_BYTES`, or one longer record. Earlier versions made one frame of them all, in a string.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import zstandard

from jobs.errors import RefusedError
from jobs.record_head import head_of
from jobs.redis.connect import refusing
from jobs.shard import COMPRESSION_LEVEL, pack, unpack
from jobs.store.keys import BatchKeys

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["PIECE_BYTES", "Part", "Piece", "ShardRecords", "loaded", "pieces_of", "stored"]

PIECE_BYTES = 1 << 20
"""Most bytes of a piece, and of the records that are sent or read at a time, but for a single longer one."""
LARGE_BYTES = 256 << 10
"""A longer record is compressed by itself, from when it is made: many may wait, on the worker and in Redis."""
FRAME = b"\x28\xb5\x2f\xfd"
"""What a zstd frame begins with, and no JSON."""
DENSEST = 1 << 15
"""No zstd frame unpacks to more than so many times its bytes."""
READ_BYTES = 1 << 20

READ = """
-- The next records of a shard in the order of their indices, or those of the indices given, in that order: as many as
-- fit, one at least.
-- KEYS: records, compacted, retried.
-- ARGV: most bytes, the index above which to begin, shard number, what a frame begins with, then indices or none.
-- Returns what is in `retried` of each index given, and then: 0, index, record, ... while the shard runs; 1, and the
-- piece that has the first index above with the index of its last record, if there is one, once it is done; 2, frame
-- where an earlier version made one of them all.
local retried = {}
for i = 5, #ARGV do retried[i - 4] = redis.call('HGET', KEYS[3], ARGV[3] .. ':' .. ARGV[i]) end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind == 'string' then
  if redis.call('GETRANGE', KEYS[2], 0, 3) ~= ARGV[4] then return redis.error_reply('FOREIGN it is no zstd frame') end
  return {retried, 2, redis.call('GET', KEYS[2])}
end
if kind ~= 'none' then
  local piece = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return {retried, 1, piece[1], piece[2]}
end
local wanted, found, size = {}, {retried, 0}, 0
for i = 5, #ARGV do wanted[i - 4] = ARGV[i] end
if #wanted == 0 then
  local above, names = tonumber(ARGV[2]), {}
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    local index = tonumber(name)
    if index > above then
      wanted[#wanted + 1] = index
      names[index] = name
    end
  end
  table.sort(wanted)
  for i, index in ipairs(wanted) do wanted[i] = names[index] end
end
for _, index in ipairs(wanted) do
  local record = redis.call('HGET', KEYS[1], index)
  if record then
    size = size + #record
    if #found > 2 and size > tonumber(ARGV[1]) then break end
    found[#found + 1] = index
    found[#found + 1] = record
  end
end
return found
"""


def stored(record: bytes) -> bytes:
    """A record as it waits and as it lies in Redis: a long one is compressed. Done twice it is done once."""
    return pack(record) if len(record) > LARGE_BYTES and not record.startswith(FRAME) else record


def loaded(value: bytes) -> bytes:
    """The record that :func:`stored` was given.

    Raises:
        RefusedError: it is a damaged frame.
    """
    return unpack(value, DENSEST * len(value)) if value.startswith(FRAME) else value


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
    of finished lines when it was run again, or None."""

    live: bool
    last: int | None
    records: Iterable[tuple[int, bytes]]
    retried: list[bytes | None]


class ShardRecords:
    """The records of a batch's shards, wherever they lie at the moment, about ``most`` bytes at a time."""

    def __init__(self, connection: Redis, batch_id: str, most: int = PIECE_BYTES) -> None:
        self._keys = BatchKeys(batch_id)
        self._most = most
        self._read = connection.register_script(READ)

    def part(self, number: int, above: int, indices: Sequence[int] = ()) -> Part:
        """The shard's first records of an index above that, or some of those at ``indices``: the first one at least,
        where that is the index above and there is one.

        Raises:
            RefusedError: what Redis keeps of the shard is damaged.
        """
        keys = self._keys
        wanted = [keys.records(number), keys.compacted(number), keys.retried]
        with refusing(f"shard {keys.job_id(number)}"):
            retried, kind, *found = cast(
                "list[Any]", self._read(keys=wanted, args=[self._most, above, number, FRAME, *indices])
            )
        if kind == 0:
            try:
                records = [(int(index), value) for index, value in zip(found[::2], found[1::2], strict=True)]
            except ValueError as error:
                raise self._damaged(number, error) from None
            return Part(True, records[-1][0] if records else None, records, retried)
        if kind == 1:
            frame, score = (*found, None, None)[:2]
            if frame is None:
                return Part(False, None, (), retried)
            return Part(False, int(float(score)), self._indexed(number, loaded(frame).split(b"\n")), retried)
        return Part(False, None, self._indexed(number, _lines(found[0])), retried)

    def _indexed(self, number: int, records: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        try:
            for raw in records:
                yield head_of(raw).index, raw
        except ValueError as error:
            raise self._damaged(number, error) from None

    def _damaged(self, number: int, error: Exception) -> RefusedError:
        return RefusedError(f"what Redis keeps of shard {self._keys.job_id(number)} is damaged: {error}")

    def parts(self, number: int) -> Iterator[Part]:
        """All records of a shard so far, by ascending index. Each part is as of when it is read: a shard that is
        finished or retried meanwhile goes on where its records lie then.

        Raises:
            RefusedError: what Redis keeps of the shard is damaged.
        """
        above: int | None = -1
        while above is not None:
            part = self.part(number, above)
            begin = above
            yield part._replace(records=((index, value) for index, value in part.records if index > begin))
            above = part.last

    def all(self, number: int) -> Iterator[tuple[int, bytes]]:
        """The records of all :meth:`parts`, as stored."""
        for part in self.parts(number):
            yield from part.records


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
