"""A handle on one schedule."""

from __future__ import annotations

from submit.client.batch import BatchHandle
from submit.client.session import Session
from submit.schedule.model import Schedule
from submit.schedule.run_by_hand import ASK_S, run_schedule
from submit.schedule.store import Schedules


class ScheduleHandle:
    """One schedule. Made by a :class:`submit.Client`, and usable as long as that is open."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name

    def __repr__(self) -> str:
        return f"ScheduleHandle({self.name!r})"

    def status(self) -> Schedule:
        """The schedule as it is now: when it runs next, and what became of its last runs.

        Raises:
            ScheduleNotFoundError: it was removed.
        """
        with self._session.store() as store:
            return Schedules(store.connection).get(self.name)

    def run(self, *, allow_overlap: bool = False, timeout: float = ASK_S) -> BatchHandle:
        """Submit a batch of it now. Where the scheduler has to read the file it is waited for, ``timeout`` seconds.

        Raises:
            RefusedError: an earlier batch is not done and none may overlap; the run was refused; or a scheduler is
                needed and there is none.
            WaitTimeoutError: the scheduler has not done it by then, but will.
        """
        session = self._session
        with session.store() as store:
            batch_id = run_schedule(
                store,
                self.name,
                allow_overlap=allow_overlap,
                timeout=timeout,
                clock=session.clock,
                sleep=session.sleep,
            )
        return BatchHandle(session, batch_id)

    def pause(self) -> bool:
        """Let no run of it begin by cron; :meth:`run` still runs it. False: it was paused already."""
        with self._session.store() as store:
            return Schedules(store.connection).pause(self.name, store.server_time())

    def resume(self) -> bool:
        """Let it go on: runs that were due meanwhile are not made up for. False: it was not paused."""
        with self._session.store() as store:
            return Schedules(store.connection).resume(self.name, store.server_time())

    def remove(self) -> bool:
        """Remove it; its batches stay. False: it was removed already."""
        with self._session.store() as store:
            return Schedules(store.connection).remove(self.name)
