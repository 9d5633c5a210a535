"""The storage layer: batches, shards and records in Redis, and RQ's jobs beside them.

A submitter creates a batch, uploads shards and commits (:mod:`jobs.store.upload`); a worker claims a shard, writes
records under its fence and finishes it (:mod:`jobs.store.attempts`). Records are read by :mod:`submit.results.read`. A
batch that ends before its time is in :mod:`jobs.store.cancel`, one whose failed lines run again in
:mod:`jobs.store.retry`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

from jobs.batch import ID_CUT, Batch
from jobs.errors import BatchNotFoundError, RefusedError
from jobs.redis.connect import refusing
from jobs.store.attempts import Attempts, FinishedLine
from jobs.store.keys import BATCHES
from jobs.store.read_batch import read_batch, read_batches
from jobs.store.shard_table import REJECTED_GROUP
from jobs.store.upload import UPLOAD_LEASE_S, NewBatch, UploadedShard, Uploads

__all__ = ["REJECTED_GROUP", "UPLOAD_LEASE_S", "FinishedLine", "NewBatch", "Store", "UploadedShard"]

log = logging.getLogger("promptmill.jobs")

LEAST_TAIL = 5
"""So many letters of an id say which one is meant, where its middle is left out."""


class Store(Uploads, Attempts):
    """Batches in one Redis."""

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

    def change(self, name: str, batch_id: str, keys: list[str], *arguments: str | int) -> str | None:
        """Do a step of the folder ``lua/batch`` on a batch; what it was before, None where there is none.

        Raises:
            RefusedError: what Redis keeps of it is not ours.
        """
        with refusing(f"batch '{batch_id}'"):
            before = self.step(f"batch.{name}", keys, [batch_id, *arguments])
        return None if before is None else str(before, errors="replace")

    def due(self, listed: str, act: Callable[[str], bool]) -> list[str]:
        """Do what is due to the batches of the sorted set ``listed``, by times of the server's clock; the ids of those
        to which it was done.

        ``act`` takes them off the list. What is listed and is no batch is taken off here: it must not stop the others.
        """
        try:
            with refusing(listed):
                found = cast("list[bytes]", self.connection.zrangebyscore(listed, "-inf", self.server_time()))
        except RefusedError as error:
            log.warning("nothing of %s happens: %s; delete that key", listed, error, extra={"action": "refuse_list"})
            return []
        done = []
        for item in found:
            try:
                batch_id = item.decode()
                if act(batch_id):
                    done.append(batch_id)
            except (RefusedError, ValueError) as error:
                message = "%.80r of %s is refused: %s"
                log.warning(message, item, listed, error, extra={"action": "refuse_list"})
                self.connection.zrem(listed, item)
        return done
