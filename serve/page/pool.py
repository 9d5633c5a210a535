"""The pool on the page: its workers, and what they did over the last minutes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoPermissionError

from jobs.errors import RefusedError
from jobs.store.store import Store
from serve.access.access import Access
from submit.status.pool_pause import paused_workers
from submit.status.worker_state import WorkerState
from submit.status.workers_view import WorkersReader, WorkersView, state_text

LOOK_S = 1.0
SAMPLE_S = 5.0
MINUTES = 15
POINTS = int(MINUTES * 60 / SAMPLE_S)
MOST_WORKERS = 500


class Point(NamedTuple):
    """A few seconds of the pool, which end at ``at`` (seconds since the epoch): new tokens per second of all workers,
    and how full their batches were (0..1; None: nobody says)."""

    at: float
    tokens_per_second: float
    occupancy: float | None


class PoolLook:
    """Looks at the workers at most once a second, and keeps what they did over the last minutes. Threads: any; holds
    the lock."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._reader, self._clock = store, WorkersReader(store), clock
        self._lock = threading.Lock()
        self._view: WorkersView | None = None
        self._paused: list[str] = []
        self._looked_at = 0.0
        self._points: deque[Point] = deque(maxlen=POINTS)

    def look(self) -> WorkersView:
        """The workers as they are, or were within the last second."""
        with self._lock:
            return self._look()

    def _look(self) -> WorkersView:
        if self._view is None or self._clock() - self._looked_at >= LOOK_S:
            self._view = self._reader.read()
            self._paused = _paused_names(self._store)
            self._looked_at = self._clock()
        return self._view

    def paused_names(self) -> list[str]:
        """The names under which workers were paused when :meth:`look` last looked."""
        with self._lock:
            return self._paused

    def forget(self) -> None:
        """Something was done to the workers: look again when next asked."""
        with self._lock:
            self._view = None

    def sample(self) -> None:
        """Keep what the workers did since the last time; the first time, what they say of their last minute."""
        with self._lock:
            view = self._look()
            if not self._points:
                longest = max((len(worker.speeds) for worker in view.workers), default=0)
                step = int(SAMPLE_S)
                for back in range(longest // step - 1, 0, -1):
                    self._points.append(Point(view.now - back * SAMPLE_S, _speed(view.workers, back * step), None))
            self._points.append(Point(view.now, _speed(view.workers), _occupancy(view.workers)))

    def points(self) -> list[Point]:
        """The last minutes, the oldest first."""
        with self._lock:
            return list(self._points)


def _paused_names(store: Store) -> list[str]:
    """The names under which workers are paused, as far as this user of Redis may know and nobody put something else
    there."""
    try:
        return paused_workers(store)[:MOST_WORKERS]
    except (RefusedError, NoPermissionError):
        return []


def _speed(workers: Sequence[WorkerState], back: int = 0) -> float:
    """New tokens per second of all workers over the seconds that ended ``back`` seconds ago."""
    step = int(SAMPLE_S)
    total = 0.0
    for worker in workers:
        end = len(worker.speeds) - back
        recent = worker.speeds[max(end - step, 0) : max(end, 0)]
        total += sum(recent) / len(recent) if recent else 0.0
    return round(total, 1)


def _occupancy(workers: Sequence[WorkerState]) -> float | None:
    said = [worker.occupancy for worker in workers if worker.occupancy is not None]
    return round(sum(said) / len(said), 3) if said else None


def shown_pool(look: PoolLook, access: Access) -> dict[str, Any]:
    """The pool as the page shows it. What is somebody else's, and what is said of machines, is for admins."""
    view = look.look()
    workers = [_shown(worker, view.now, admin=access.admin) for worker in view.workers[:MOST_WORKERS]]
    if access.admin:
        workers += [worker.as_dict() for worker in view.lost[: MOST_WORKERS - len(workers)]]
    return {
        "now": view.now,
        "paused": view.pool_paused,
        "paused_names": look.paused_names() if access.admin else [],
        "workers": workers,
        "counted": len(view.workers),
        "tokens_per_second": sum(worker.tokens_per_second or 0.0 for worker in view.workers),
        "scored_per_second": sum(worker.scored_per_second or 0.0 for worker in view.workers),
        "lines_per_second": sum(worker.lines_per_second or 0.0 for worker in view.workers),
        "lines_in_flight": sum(worker.lines_in_flight for worker in view.workers),
        "occupancy": _occupancy(view.workers),
        "minutes": MINUTES,
        "history": [list(point) for point in look.points()],
    }


def _shown(worker: WorkerState, now: float, *, admin: bool) -> dict[str, Any]:
    shown = worker.as_dict()
    for name in ("refused", "queues"):
        shown.pop(name, None)
    if not admin:
        for name in ("hostname", "failing"):
            shown.pop(name, None)
    uptime = worker.uptime(now)
    return {
        **shown,
        "state": worker.effective_state,
        "doing": state_text(worker),
        "speeds": [round(speed, 1) for speed in worker.speeds],
        "uptime_s": None if uptime is None else round(uptime),
    }
