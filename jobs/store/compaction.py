"""Compaction of a shard that is done: its records become compressed pieces, in one step.

The pieces are put aside under the attempt's fence and take the records' place in one step. A reader finds all of the
one or all of the other. Pieces of an attempt that dies on the way do not count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from jobs.attempt import Attempt
from jobs.errors import RefusedError
from jobs.store.keys import BatchKeys
from jobs.store.shard_records import PIECE_BYTES, Piece, ShardRecords, pieces_of
from jobs.store.steps import FINISH, STOW

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Compaction", "compact"]


TRIES = 5
"""A server that crashes loses pieces once; records that are equal byte by byte would make it go on for ever."""


class Compaction(enum.IntEnum):
    """What the scripts say."""

    LOST_PIECES = -2
    """Some that were put aside are gone, as after a crash of the server."""
    INCOMPLETE = -1
    STALE = 0
    DONE = 1
    STOWED = 2


def compact(connection: Redis, attempt: Attempt, lines: int, now: float, most: int = PIECE_BYTES) -> Compaction:
    """Compact a shard of ``lines`` lines once each has its record; done, stale or incomplete. Memory is that of two
    pieces of ``most`` bytes, or of a longer record.

    Raises:
        redis.exceptions.ResponseError, RefusedError: what Redis keeps of the shard is damaged.
    """
    keys, number = BatchKeys(attempt.batch_id), attempt.number
    wanted = [keys.info, keys.fences, keys.compacted(number), keys.pieces(number)]
    stow, finish = connection.register_script(STOW), connection.register_script(FINISH)
    rest = [keys.records(number), keys.flights(number), keys.tries(number), keys.reopened(number)]
    for _ in range(TRIES):
        count, waiting = 0, None
        for piece in pieces_of(_live(connection, attempt, most), most):
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


def _live(connection: Redis, attempt: Attempt, most: int) -> Iterator[tuple[int, bytes]]:
    for part in ShardRecords(connection, attempt.batch_id, most).parts(attempt.number):
        if not part.live:
            return  # an earlier finish, whose reply was lost
        yield from part.records
