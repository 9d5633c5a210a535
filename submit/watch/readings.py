"""What ``--watch`` looks at in Redis once a second: all batches, one batch, or the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from jobs.batch import Batch
from jobs.store.cancel import current, expire_due
from jobs.store.orphans import Orphans, find_orphans, known_orphans
from jobs.store.read_batch import read_batches
from jobs.store.retention import memory
from submit.status.lost_workers import Silent, read_silent
from submit.status.overview import batch_object, batch_table, detail
from submit.status.progress import Rates, Window
from submit.status.worker_state import WorkerState
from submit.status.worker_table import worker_objects, worker_table
from submit.status.workers import POOL_PAUSED, Workers, activity, pool_is_paused

if TYPE_CHECKING:
    from rich.text import Text

    from jobs.store.store import Store

__all__ = ["BatchView", "PoolView", "WorkersView"]

MEASURE_S, MEASURE_RATIO = 10.0, 20
"""What a batch takes in Redis is measured again after this long, and after so many times what it took: each of its keys
is asked for. So it is with its shards that are in no queue: all queues are read."""


class PoolView:
    """All batches. With ``as_json`` the text is one list of objects."""

    def __init__(self, store: Store, *, as_json: bool = False) -> None:
        self._store, self._as_json = store, as_json
        self._workers = Workers(store.connection)
        self._windows: dict[str, Window] = {}
        self._now = 0.0
        self._batches: list[Batch] = []
        self._rates: dict[str, Rates] = {}
        self._states: list[WorkerState] = []
        self._waiting: dict[str, str] = {}
        self._paused = False

    def look(self, *, drawn: bool = False) -> bool:
        """Read the batches; there is always more to come."""
        expire_due(self._store)
        self._now, self._batches = self._store.now(), self._store.batches()
        known = {batch.id for batch in self._batches}
        self._windows = {batch_id: window for batch_id, window in self._windows.items() if batch_id in known}
        self._rates = {
            batch.id: self._windows.setdefault(batch.id, Window()).add(self._now, batch) for batch in self._batches
        }
        if not self._as_json:
            self._states, self._paused = self._workers.read(), pool_is_paused(self._store)
            self._waiting = self._why_waiting()
        return False

    def _why_waiting(self) -> dict[str, str]:
        live = [batch for batch in self._batches if not batch.done]
        queues = self._workers.queues_of_each([batch.id for batch in live], self._states)
        orphans = known_orphans(self._store.connection, [batch.id for batch in live])
        said = {
            batch.id: activity(
                batch, queues[batch.id], self._states, pool_paused=self._paused, orphans=orphans.get(batch.id)
            )
            for batch in live
        }
        return {batch_id: why for batch_id, why in said.items() if why is not None}

    def text(self, width: int | None) -> list[str]:
        """A table, the oldest batch first."""
        if self._as_json:
            return [orjson.dumps([batch.as_dict(self._now) for batch in self._batches]).decode()]
        lines = batch_table(self._batches, self._now, rates=self._rates, waiting=self._waiting, width=width)
        return [POOL_PAUSED, *lines] if self._paused else lines

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """The batches with the workers and their lines in flight."""
        from submit.watch.pool_view import PoolScene, draw_pool

        scene = PoolScene(self._now, self._batches, self._states, self._rates, self._waiting, self._paused)
        return draw_pool(scene, width, height, unicode=unicode)


class BatchView:
    """One batch, until it is done. With ``as_json`` the text is one object."""

    def __init__(self, store: Store, batch: Batch, *, as_json: bool = False) -> None:
        self._store, self._as_json = store, as_json
        self._workers, self._window = Workers(store.connection), Window()
        self._batch = batch
        self._now = store.now()
        self._states: list[WorkerState] = []
        self._queues: frozenset[str] = frozenset()
        self._recent = Rates()
        self._memory: int | None = None
        self._paused = False
        self._orphans: Orphans | None = None
        self._measure_at = 0.0

    def look(self, *, drawn: bool = False) -> bool:
        """Read the batch and the workers; whether it is done."""
        self._now, self._batch = self._store.now(), current(self._store, self._batch.id)
        self._states, self._paused = self._workers.read(), pool_is_paused(self._store)
        self._queues = self._workers.queues_of(self._batch.id, self._states)
        self._recent = self._window.add(self._now, self._batch)
        if self._now >= self._measure_at:
            self._memory = memory(self._store.connection, self._batch.id)
            self._orphans = find_orphans(self._store, self._batch.id)
            now = self._store.now()
            self._measure_at = now + max(MEASURE_S, MEASURE_RATIO * (now - self._now))
        return self._batch.done

    def text(self, width: int | None) -> list[str]:
        """Its facts, then its lines in flight."""
        if self._as_json:
            found = batch_object(
                self._batch,
                self._now,
                self._states,
                self._queues,
                self._memory or 0,
                pool_paused=self._paused,
                orphans=self._orphans,
            )
            return [orjson.dumps(found).decode()]
        return detail(
            self._batch,
            self._now,
            self._states,
            self._queues,
            recent=self._recent,
            memory=self._memory,
            pool_paused=self._paused,
            orphans=self._orphans,
        )

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """Its progress, the workers that serve it, its lines in flight."""
        from submit.watch.batch_view import BatchScene, draw_batch

        scene = BatchScene(
            self._now,
            self._batch,
            self._states,
            self._queues,
            self._recent,
            self._memory,
            self._paused,
            self._orphans,
        )
        return draw_batch(scene, width, height, unicode=unicode)


class WorkersView:
    """The workers. With ``as_json`` the text is one list of objects."""

    def __init__(self, store: Store, *, as_json: bool = False) -> None:
        self._store, self._as_json = store, as_json
        self._workers = Workers(store.connection)
        self._now = 0.0
        self._states: list[WorkerState] = []
        self._silent: list[Silent] = []
        self._paused = False
        self._names: dict[str, str] = {}

    def look(self, *, drawn: bool = False) -> bool:
        """Read what the workers say, and which of RQ's say nothing; there is always more to come."""
        self._now, self._states = self._store.now(), self._workers.read()
        self._paused = pool_is_paused(self._store)
        live = frozenset(state.name for state in self._states)
        self._silent = read_silent(self._store.connection, live, self._now)
        if drawn:
            self._name_batches()
        return False

    def text(self, width: int | None) -> list[str]:
        """A table, by name."""
        if self._as_json:
            return [orjson.dumps(worker_objects(self._states, self._silent, self._now)).decode()]
        lines = worker_table(self._states, self._silent, self._now, width=width)
        return [POOL_PAUSED, *lines] if self._paused else lines

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """The workers with their lines in flight."""
        from submit.watch.workers_view import WorkersScene, draw_workers

        scene = WorkersScene(self._now, self._states, self._silent, self._names, self._paused)
        return draw_workers(scene, width, height, unicode=unicode)

    def _name_batches(self) -> None:
        """Note the names of the batches that are worked on; each is asked for once."""
        wanted = {line.batch_id for state in self._states for line in state.in_flight}
        fresh = [batch_id for batch_id in wanted if batch_id not in self._names]
        self._names = {batch_id: name for batch_id, name in self._names.items() if batch_id in wanted}
        for batch in read_batches(self._store.connection, fresh):
            self._names[batch.id] = batch.name or batch.id
