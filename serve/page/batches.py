"""Batches on the page: a page of the list at a time, and one batch with all that is known of it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, cast

from jobs.batch import Batch, is_batch_id
from jobs.store.cancel import expire_due
from jobs.store.keys import BATCHES
from jobs.store.read_batch import read_batches
from jobs.store.store import Store
from serve.access.access import Access
from serve.batches.book import BatchBook
from serve.batches.shown import openai_of
from serve.errors import not_found
from serve.intake.orders import OPENAI, IntakeOrder, Orders, owned_key
from serve.page.pool import PoolLook
from submit.status.batch_view import BatchReader, BatchView
from submit.status.pool_view import state_name
from submit.status.rates import BatchRates, Window, pace
from submit.status.waiting import read_outlooks
from submit.status.workers import Workers

LISTED = 50
MOST_LOOKED_AT = 2000
"""A page of the list looks at so many batches; where few of them fit, the next page goes on behind them."""
AT_A_TIME = 100
MOST_IN_FLIGHT = 100
MOST_WORKERS = 50
KNOWN = 1000
READERS = 64
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which batches are asked for: those behind ``after``, that run still (``live``) or have ended (``ended``), in
    whose name, id or source a text is."""

    after: str | None = None
    state: str = "all"
    text: str = ""

    def takes(self, status_done: bool, *texts: str | None) -> bool:
        if self.state != "all" and status_done is not (self.state == "ended"):
            return False
        return not self.text or any(self.text in (text or "").casefold() for text in texts)


class BatchList:
    """Lists batches, the newest first, with the rates of those that were looked at before. Threads: any; holds the
    lock."""

    def __init__(self, store: Store, orders: Orders, pool: PoolLook) -> None:
        self._store, self._orders, self._pool = store, orders, pool
        self._workers = Workers(store.connection)
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, wanted: Wanted, access: Access) -> dict[str, Any]:
        """A page of the list; ``next`` is where the next one begins, None at the end."""
        expire_due(self._store)
        ids = islice(self._ids(wanted.after, access), MOST_LOOKED_AT)
        found: list[Batch | IntakeOrder] = []
        looked_at, last = 0, None
        while len(found) <= LISTED and (some := list(islice(ids, AT_A_TIME))):
            found += [item for item in self._read(some, access) if _fits(item, wanted)]
            looked_at, last = looked_at + len(some), some[-1]
        after = last if looked_at == MOST_LOOKED_AT else None
        if len(found) > LISTED:
            found, after = found[:LISTED], _id(found[LISTED - 1])
        return {"now": self._store.now(), "batches": self._shown(found), "next": after}

    def _ids(self, after: str | None, access: Access) -> Iterator[str]:
        """The ids of batches that may be seen, the newest first, those behind ``after``; read a part at a time."""
        connection, key = self._store.connection, BATCHES if access.admin else owned_key(access.owner)
        # Files that are being checked are on the list of their owner only. They are the newest.
        checking = sorted(self._orders.ids(), reverse=True) if access.admin and after is None else []
        yield from checking
        place: Any = None if after is None else connection.zrevrank(key, after)
        start = 0 if place is None else place + 1
        while ids := cast("list[bytes]", connection.zrevrange(key, start, start + AT_A_TIME - 1)):
            start += len(ids)
            for batch_id in (item.decode(errors="replace") for item in ids):
                # One that was removed meanwhile has no place: then what lies before it is passed over.
                passed = place is None and after is not None and batch_id >= after
                if is_batch_id(batch_id) and not passed and batch_id not in checking:
                    yield batch_id

    def _read(self, ids: Sequence[str], access: Access) -> list[Batch | IntakeOrder]:
        """Those of these batches that may be seen, in this order."""
        batches = {batch.id: batch for batch in read_batches(self._store.connection, ids)}
        found: list[Batch | IntakeOrder] = []
        for batch_id in ids:
            batch = batches.get(batch_id)
            if batch is not None and batch.status != "validating":
                if batch.answers is None and access.sees(openai_of(batch).get("owner")):
                    found.append(batch)
            elif (order := self._orders.find(batch_id)) is not None and access.sees(order.owner):
                found.append(order)
        return found

    def _shown(self, found: Sequence[Batch | IntakeOrder]) -> list[dict[str, Any]]:
        now, live = self._store.now(), [item for item in found if isinstance(item, Batch) and not item.done]
        with self._lock:
            rates = {batch.id: self._rates(batch, now) for batch in live}
            outlooks = read_outlooks(self._store, self._workers, live, self._pool.look().workers) if live else {}
        return [
            shown_order(item)
            if isinstance(item, IntakeOrder)
            else shown_batch(
                item, now, rates.get(item.id), outlooks[item.id].why_waiting if item.id in outlooks else None
            )
            for item in found
        ]

    def _rates(self, batch: Batch, now: float) -> BatchRates:
        window = self._windows.pop(batch.id, None) or Window()
        self._windows[batch.id] = window
        while len(self._windows) > KNOWN:
            self._windows.popitem(last=False)
        return window.add(now, batch)


def _id(item: Batch | IntakeOrder) -> str:
    return item.id if isinstance(item, Batch) else item.batch_id


def _fits(item: Batch | IntakeOrder, wanted: Wanted) -> bool:
    if isinstance(item, Batch):
        return wanted.takes(item.done, item.id, item.name, source_name(item.source), *item.models)
    return wanted.takes(False, item.batch_id, item.name)


def source_name(source: str) -> str:
    """What a batch was read from, without the folders of whose machine it was."""
    return PurePosixPath(source).name


def shown_batch(batch: Batch, now: float, rates: BatchRates | None, why: str | None) -> dict[str, Any]:
    """A batch as the page shows it; ``why`` is why it waits."""
    per_second, eta = pace(batch, now, rates)
    recent = None if rates is None or batch.done else rates.lines
    lines = recent or batch.rates(now)["lines_per_second"]
    usage = batch.usage
    return {
        "id": batch.id,
        "name": batch.name,
        "status": batch.status,
        "state": state_name(batch, why),
        "done": batch.done,
        "paused": batch.paused,
        "waiting": why,
        "source": source_name(batch.source),
        "models": list(batch.models),
        "priority": batch.priority,
        "schedule": batch.schedule,
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed_running,
        "rejected": batch.rejected,
        "unrun": batch.unrun,
        "ran": batch.ran,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "scored_tokens": usage.scored_tokens,
        "tokens_per_second": per_second,
        "lines_per_second": lines,
        "eta_s": None if batch.done or why is not None else eta,
        "elapsed_s": batch.elapsed(now),
        "times": dict(batch.times),
        "ended_at": batch.ended_at,
    }


def shown_order(order: IntakeOrder) -> dict[str, Any]:
    """A batch whose file is being checked, with the same fields."""
    batch = Batch(
        id=order.batch_id,
        status="validating",
        name=order.name,
        priority=order.priority,
        times={"created": order.created_at},
    )
    return shown_batch(batch, order.created_at, None, "its file is being checked") | {"state": "validating"}


class BatchLook:
    """Looks at single batches, at each once a second at most. Threads: any; holds the lock."""

    def __init__(
        self, store: Store, book: BatchBook, orders: Orders, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._book, self._orders, self._clock = store, book, orders, clock
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, BatchReader] = OrderedDict()
        self._views: OrderedDict[str, tuple[float, BatchView]] = OrderedDict()

    def shown(self, batch_id: str, access: Access) -> dict[str, Any]:
        """All that the page shows of a batch.

        Raises:
            ApiError: there is none that may be seen.
        """
        batch = self._book.live(batch_id, access)
        if batch is None:
            order = self._orders.find(batch_id)
            if order is None or not access.sees(order.owner):
                raise not_found("batch", batch_id)
            return {**shown_order(order), "now": self._store.now(), "in_flight": [], "workers": [], "errors": []}
        view = self._view(batch_id)
        return {
            **shown_batch(view.batch, view.now, view.recent, view.outlook.why_waiting),
            "now": view.now,
            "rest_waits": view.outlook.why_rest_waits,
            "memory_bytes": view.memory,
            "keep_s": view.batch.keep_s,
            "defaults": dict(view.batch.defaults),
            "metadata": {name: value for name, value in view.batch.metadata.items() if name != OPENAI},
            "owner": openai_of(view.batch).get("owner") if access.admin else None,
            "workers": [worker.name for worker in view.outlook.serving[:MOST_WORKERS]],
            "in_flight": [
                {**line.as_dict(), "worker": worker.name} for worker, line in view.in_flight[:MOST_IN_FLIGHT]
            ],
            "errors": self._errors(view.batch, access),
        }

    def _view(self, batch_id: str) -> BatchView:
        with self._lock:
            kept = self._views.get(batch_id)
            if kept is not None and self._clock() - kept[0] < LOOK_S:
                return kept[1]
            reader = self._readers.pop(batch_id, None) or BatchReader(self._store, batch_id)
            self._readers[batch_id] = reader
            view = reader.read()
            self._views[batch_id] = (self._clock(), view)
            for known in (self._readers, self._views):
                while len(known) > READERS:
                    known.popitem(last=False)
            return view

    def forget(self, batch_id: str) -> None:
        """Something was done to the batch: look again when next asked."""
        with self._lock:
            self._views.pop(batch_id, None)

    def _errors(self, batch: Batch, access: Access) -> Sequence[Mapping[str, Any]]:
        """Why a batch failed as a whole."""
        if batch.status != "failed":
            return []
        found = self._book.find(batch.id, access)
        errors = None if found is None else found["errors"]
        return [] if errors is None else errors["data"]
