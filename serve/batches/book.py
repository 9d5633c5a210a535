"""The batches that somebody may see: those made over HTTP and those of the command line, live ones and ordered ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import orjson

from jobs.batch import Batch, is_batch_id
from jobs.errors import BatchNotFoundError, RefusedError
from jobs.store.cancel import cancel, current
from jobs.store.keys import BATCHES, BatchKeys
from jobs.store.store import Store
from serve.access.access import Access
from serve.batches.shown import batch_object, openai_of, ordered_object
from serve.errors import ApiError
from serve.intake.orders import Orders, owned_key


class BatchBook:
    """Reads and ends batches. Threads: any."""

    def __init__(self, store: Store, orders: Orders) -> None:
        self._store, self._orders = store, orders

    def live(self, batch_id: str, access: Access) -> Batch | None:
        """The batch of this id once its file was checked; None where there is none that may be seen."""
        if not is_batch_id(batch_id):
            return None
        try:
            batch = current(self._store, batch_id)
        except (BatchNotFoundError, RefusedError):
            return None
        if batch.status == "validating" or batch.answers is not None:
            return None
        return batch if access.sees(openai_of(batch).get("owner")) else None

    def find(self, batch_id: str, access: Access) -> dict[str, Any] | None:
        """OpenAI's object of the batch of this id; None where there is none that may be seen."""
        for _ in range(2):  # it may have become live between two looks
            if (batch := self.live(batch_id, access)) is not None:
                return self._shown(batch)
            order = self._orders.find(batch_id) if is_batch_id(batch_id) else None
            if order is not None and access.sees(order.owner):
                return ordered_object(order, cancelled=self._orders.cancelled(batch_id))
        return None

    def _shown(self, batch: Batch) -> dict[str, Any]:
        keys = BatchKeys(batch.id)
        problems = None
        if batch.status == "failed":
            raw = cast("bytes | None", self._store.connection.get(keys.problems))
            problems = [] if raw is None else orjson.loads(raw)
        return batch_object(batch, problems)

    def listed(self, access: Access, after: str | None, *, ascending: bool) -> Iterator[str]:
        """The ids of batches that may be, or may once have been, seen, by creation time, those behind ``after``."""
        key = BATCHES if access.admin else owned_key(access.owner)
        stored = cast("list[bytes]", self._store.connection.zrange(key, 0, -1))
        ids = {item.decode(errors="replace") for item in stored}
        if access.admin:
            ids |= set(self._orders.ids())
        # Ids sort by time.
        for batch_id in sorted(filter(is_batch_id, ids), reverse=not ascending):
            if after is None or (batch_id > after if ascending else batch_id < after):
                yield batch_id

    def objects(self, access: Access, after: str | None, *, ascending: bool) -> Iterator[dict[str, Any]]:
        """OpenAI's objects of all batches that may be seen, by creation time, those behind ``after``."""
        for batch_id in self.listed(access, after, ascending=ascending):
            if (found := self.find(batch_id, access)) is not None:
                yield found
            elif not access.admin:  # it was purged
                self._store.connection.zrem(owned_key(access.owner), batch_id)

    def cancel(self, batch_id: str, access: Access) -> dict[str, Any] | None:
        """Cancel a batch; its object then. None where there is none that may be seen.

        Raises:
            ApiError: it has ended.
        """
        found = self.find(batch_id, access)
        if found is None or found["status"] in ("cancelled", "cancelling"):
            return found
        if found["status"] == "validating":
            self._orders.cancel(batch_id, self._store.now())
        if self.live(batch_id, access) is not None:
            try:
                cancel(self._store, batch_id)
            except RefusedError:
                status = self._store.batch(batch_id).status
                raise ApiError(409, f"Cannot cancel a batch with status '{status}'.") from None
        return self.find(batch_id, access)

    def deleted_files(self, batch_id: str) -> frozenset[str]:
        """Which of a batch's files were deleted."""
        hidden = cast("set[bytes]", self._store.connection.smembers(BatchKeys(batch_id).hidden))
        return frozenset(item.decode(errors="replace") for item in hidden)

    def delete_file(self, batch_id: str, kind: str) -> None:
        """Show a file of a batch no longer. Its records go when the batch does."""
        self._store.connection.sadd(BatchKeys(batch_id).hidden, kind)
