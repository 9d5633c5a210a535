"""The scheduler: one process of a pool that submits the batches of schedules when they are due.

Any number may run; the one that holds RQ's lock is active, the others stand by. Threads: main keeps the lock, begins
what is due and shows RQ what comes next; dispatching submits the runs that have begun; tending does what a pool needs
done now and then. The latter two may take long.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import redis.exceptions

from jobs.app.process_name import process_name
from jobs.app.stop_signal import StopSignals
from jobs.errors import RefusedError
from jobs.store.keys import SCHEDULER
from jobs.store.maintenance import upkeep
from jobs.store.store import Store
from submit.schedule.dispatch import Dispatcher
from submit.schedule.model import Schedule
from submit.schedule.rq_jobs import LOCK_S, Lock, RqMirror
from submit.schedule.store import Schedules

log = logging.getLogger("promptmill.scheduler")

TICK_S = 1.0
IDLE_S = 0.3
UPKEEP_S = 5.0
LEAST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 10.0
STOP_PATIENCE_S = 5.0
"""A run under way is given up between two lines; a disk that hangs is not waited for."""
BREAK_S = 60.0
"""A process that did not even try for so long slept, or its machine did."""


class SchedulerDaemon:
    """One scheduler process. ``run`` returns its exit status.

    ``read_from`` are the folders of which files are read for schedules. ``upkeep`` is done every few seconds by the
    active scheduler. ``clock`` is a steady one, ``wall`` one that goes on while the machine sleeps.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        read_from: Sequence[Path] = (),
        upkeep: Callable[[Store], object] = upkeep,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = process_name(name)
        self._store = store
        self._schedules = Schedules(store.connection)
        self._mirror = RqMirror(store.connection)
        # The lock is a process's, and two of them may have the same name.
        self._lock = Lock(store.connection, f"{self.name}.{uuid.uuid4().hex[:8]}")
        self._upkeep = upkeep
        self._clock, self._wall = clock, wall
        self._active = threading.Event()
        self._stops = StopSignals()
        self._stopped = threading.Event()
        self._held_at = float("-inf")
        self._said: dict[str, str] = {}
        self._tried_at = float("-inf")
        self._there_since: float | None = None
        """Since when, by the server's clock, this process has tried without a break, whether Redis answered or not."""
        self._dispatcher = Dispatcher(
            store, read_from=read_from, stopping=self._must_stop, scheduler_was_there=self.was_there
        )
        self._threads = [
            threading.Thread(target=self._repeat, args=arguments, name=name, daemon=True)
            for name, *arguments in (
                ("dispatching", self._dispatcher.submit_begun, IDLE_S, "no runs can be taken"),
                ("tending", self.tend, UPKEEP_S, "no upkeep"),
            )
        ]

    def stop(self) -> None:
        """End soon; any thread may ask for it."""
        self._stops.ask()

    def run(self) -> int:
        """Serve until asked to stop; 0.

        Raises:
            redis.exceptions.NoPermissionError: the user may not do what is needed.
        """
        with self._stops.heard():
            for thread in self._threads:
                thread.start()
            backoff = LEAST_BACKOFF_S
            try:
                while not self._stops.count:
                    try:
                        self.tick()
                        pause, backoff = TICK_S, LEAST_BACKOFF_S
                    except redis.exceptions.NoPermissionError:
                        raise
                    except redis.exceptions.RedisError as error:
                        self._say("redis", f"{_outage(error)}, trying again: {error}")
                        pause, backoff = backoff, min(backoff * 2, MOST_BACKOFF_S)
                    self._stops.wakeup.wait(pause)
            finally:
                self._end()
        return 0

    # --- the main thread ---

    def tick(self) -> None:
        """Take or renew the lock; with the lock, begin what is due."""
        asked_at, now = self._clock(), self._wall()
        if not 0 <= now - self._tried_at <= BREAK_S:
            self._there_since = None
        self._tried_at = now
        held = self._lock.refresh()
        self._there_since = self._there_since or self._store.server_time()
        if "redis" in self._said:
            del self._said["redis"]
            log.info("Redis is back", extra={"action": "redis_back"})
        self._note_role(held, asked_at)
        if not held:
            return
        self._publish()
        self._guarded("schedules", self._begin_due)

    def was_there(self, due: float) -> bool:
        """Whether this process was there at this time of the server's clock, and has been since. One that stands by is
        there too: another is active then."""
        return self._there_since is not None and self._there_since <= due

    def _note_role(self, held: bool, at: float) -> None:
        if held:
            self._held_at = at
            if not self._active.is_set():
                log.info("%s is active", self.name, extra={"action": "active"})
                self._said.pop("standby", None)
                self._active.set()
            return
        if self._active.is_set():
            self._active.clear()
            log.warning("%s was silent for too long: another is active now", self.name, extra={"action": "overtaken"})
        if "standby" not in self._said:
            self._said["standby"] = ""
            other = self._schedules.active_scheduler()
            who = "another scheduler" if other is None else f"'{other:.80}'"
            log.info("%s stands by: %s is active", self.name, who, extra={"action": "standby"})

    def _begin_due(self) -> None:
        good: list[Schedule] = []
        names = self._schedules.names()
        for name, schedule in zip(names, self._schedules.read(names, runs=1), strict=True):
            if isinstance(schedule, Schedule):
                self._said.pop(f"schedule {name}", None)
                good.append(schedule)
            else:
                self._say(f"schedule {name}", str(schedule))
        self._dispatcher.begin_due(good)
        self._mirror.show({schedule.name: schedule.next for schedule in good if not schedule.paused})

    def _publish(self) -> None:
        state: dict[str, Any] = {"name": self.name, "pid": os.getpid(), "hostname": socket.gethostname()}
        self._store.connection.set(SCHEDULER, orjson.dumps(state), ex=LOCK_S)

    def _guarded(self, what: str, step: Callable[[], object]) -> None:
        """Do ``step``; what somebody else put in its way is said once and stops nothing."""
        try:
            step()
        except RefusedError as error:
            self._say(what, str(error))
        else:
            self._said.pop(what, None)

    def _say(self, what: str, text: str) -> None:
        if self._said.get(what) != text:
            if not (what == "redis" and what in self._said):
                log.warning("%s", text, extra={"action": "redis_out" if what == "redis" else "refuse_schedule"})
            self._said[what] = text

    def _end(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(STOP_PATIENCE_S)
        try:
            if self._active.is_set():
                self._store.connection.delete(SCHEDULER)
            self._lock.release()
        except redis.exceptions.RedisError as error:
            log.debug("the lock expires by itself: %s", error)
        log.info("%s has ended", self.name, extra={"action": "ended"})

    # --- the other threads ---

    def _must_stop(self) -> bool:
        """Whether what is under way is to be left to the next scheduler."""
        stopping = self._stops.count > 0 or self._stopped.is_set()
        return stopping or not self._active.is_set() or self._clock() - self._held_at > LOCK_S

    def _repeat(self, step: Callable[[], object], every: float, undone: str) -> None:
        """Do ``step`` again and again while this scheduler is active; ``undone`` says what that leaves undone."""
        pause = every
        while not self._stopped.wait(pause):
            pause = every
            try:
                if not self._must_stop():
                    step()
                    self._said.pop(undone, None)
            except redis.exceptions.RedisError as error:
                pause = max(every, LEAST_BACKOFF_S)
                # Of an outage the main thread speaks; of a refused command, as for want of permission, nobody else.
                if _is_away(error):
                    log.debug("%s: %s", undone, error, extra={"action": "redis_out"})
                else:
                    self._say(undone, f"{undone}: Redis refuses a command: {error}")
            except Exception:  # one run must not end all others
                pause = max(every, MOST_BACKOFF_S)
                log.exception("%s: an error that should not be", undone)

    def tend(self) -> None:
        """Do what a pool needs done now and then.

        Raises:
            redis.exceptions.RedisError: it is away.
        """
        self._guarded("upkeep", lambda: self._upkeep(self._store))


def _is_away(error: redis.exceptions.RedisError) -> bool:
    return isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError)


def _outage(error: redis.exceptions.RedisError) -> str:
    return "Redis does not answer" if _is_away(error) else "Redis refuses a command"
