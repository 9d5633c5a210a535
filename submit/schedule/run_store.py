"""Storage for the batch of a schedule's run: it becomes live in the step that records the run, or not at all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from jobs.store.keys import UPLOADING, BatchKeys, ScheduleKeys
from jobs.store.store import Store
from submit.schedule.model import Outcome, Run, Schedule
from submit.schedule.steps import COMMIT_RUN

if TYPE_CHECKING:
    from redis.commands.core import Script

__all__ = ["OvertakenError", "RunStore"]

ANY_TIME = "1e18"


class OvertakenError(Exception):
    """A run is another's, or over, or its schedule was replaced or removed: an upload for it is not wanted."""


class RunStore(Store):
    """A store whose :meth:`commit` also records a run of ``schedule``.

    ``run`` is the one that has begun; None for one besides, which need not be the only one.
    """

    def __init__(self, store: Store, schedule: Schedule, run: Run | None, due: int, *, asked: bool) -> None:
        super().__init__(store.connection, now=store.now, server_time=store.server_time)
        self._schedule, self._run, self._due, self._asked = schedule, run, due, asked
        self._script = store.connection.register_script(COMMIT_RUN)

    def commit(self, batch_id: str, **facts: Any) -> bool:
        """As a store's, and the run is over then.

        Raises:
            OvertakenError: see there; the batch is not live.
        """
        missed = 0 if self._run is None else self._run.missed
        outcome = Outcome(self._due, self.server_time(), "submitted", batch_id, asked=self._asked, missed=missed)
        self._commit = cast("Script", partial(self._commit_run, outcome.encoded()))
        return super().commit(batch_id, **facts)

    def _commit_run(self, outcome: bytes, *, keys: list[str], args: list[Any]) -> int:
        of_schedule = ScheduleKeys(self._schedule.name)
        run = b"" if self._run is None else self._run.encoded()
        wanted = [of_schedule.info, of_schedule.runs, *keys]
        done = cast("int", self._script(keys=wanted, args=[self._schedule.id, run, outcome, *args]))
        if done == -1:
            raise OvertakenError
        return done

    def discard(self, batch_id: str, shards: int = 0) -> None:
        """Remove an upload, unless it is live: a commit of which no reply came may have been made, and was recorded."""
        info = BatchKeys(batch_id).info
        self._sweep(keys=[info, UPLOADING], args=[batch_id, ANY_TIME])
        if self.connection.hget(info, "status") in (None, b"failed"):
            super().discard(batch_id, shards)
