"""Uploading shards from a thread of its own, so that checking, packing and sending overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.store.store import UPLOAD_LEASE_S, FinishedLine, NewBatch, Store, UploadedShard
from jobs.twin import Twin

HEARTBEAT_S = UPLOAD_LEASE_S / 6
"""The sweep comes after six of them are missed: a slow pipe or a slow Redis is no reason for it."""

PARCELS_WAITING = 2


@dataclass(frozen=True, slots=True)
class RejectedShard:
    """Error records of lines refused at submission, with the shard's number in its batch."""

    number: int
    records: Sequence[FinishedLine]


@dataclass(frozen=True, slots=True)
class TwinShard:
    """Lines that are not run, with the shard's number in its batch."""

    number: int
    twins: Sequence[Twin]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent to Redis in one go."""

    runnable: Sequence[UploadedShard]
    rejected: Sequence[RejectedShard] = ()
    spared: Sequence[TwinShard] = ()


class Uploader:
    """Uploads a batch parcel by parcel, and shows Redis a sign of life while there is nothing to upload.

    A context manager around the upload: one that ends before :meth:`commit` was called leaves nothing
    behind in Redis.
    """

    def __init__(self, store: Store, batch: NewBatch, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._batch = batch
        self._heartbeat_s = heartbeat_s
        # Few parcels wait: memory stays flat where Redis is slower than the disk.
        self._parcels: queue.Queue[Parcel | None] = queue.Queue(PARCELS_WAITING)
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._error: BaseException | None = None
        self._shards = 0
        self._over = False

    def __enter__(self) -> Uploader:
        try:
            self._store.create(self._batch)
            self._thread.start()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._over:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        from redis.exceptions import RedisError

        try:
            self.give_up()
        except RedisError:
            # What ended the upload is what the user must hear of; the next sweep removes the rest.
            if error is None:
                raise

    def put(self, parcel: Parcel) -> None:
        """Hand over a parcel; waits while others are in front of it.

        Raises:
            Exception: what went wrong with an earlier one.
        """
        self._raise()
        self._parcels.put(parcel)

    def commit(self, commit: Callable[[], bool]) -> bool:
        """Wait for all parcels, then ``commit``; its answer."""
        self._stop()
        self._raise()
        live = commit()
        self._over = live
        return live

    def give_up(self) -> None:
        """Remove what was uploaded; no parcel may be put after it."""
        if self._over:
            return
        self._over = True
        # The thread skips what still waits: it must not upload after the removal.
        self._error = self._error or InterruptedError("given up")
        self._stop()
        self._store.discard(self._batch.id, self._shards)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._parcels.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (parcel := self._next()) is not None:
            if self._error is not None:
                continue  # put() must never wait for a thread that is gone
            try:
                self._upload(parcel)
            except Exception as error:
                self._error = error

    def _next(self) -> Parcel | None:
        try:
            return self._parcels.get(timeout=self._heartbeat_s)
        except queue.Empty:
            return Parcel(())

    def _upload(self, parcel: Parcel) -> None:
        numbers = [shard.number for shard in parcel.runnable] + [shard.number for shard in parcel.rejected]
        numbers += [shard.number for shard in parcel.spared]
        self._shards = max([self._shards, *(number + 1 for number in numbers)])
        # An empty upload is the sign of life.
        self._store.upload(self._batch, parcel.runnable)
        for rejected in parcel.rejected:
            self._store.upload_rejected(self._batch.id, rejected.number, rejected.records)
        for spared in parcel.spared:
            self._store.upload_twins(self._batch.id, spared.number, spared.twins)
