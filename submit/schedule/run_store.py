"""Storage for the batch of a schedule's run: it becomes live in the step that records the run, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from jobs.store.keys import UPLOADING, BatchKeys, ScheduleKeys
from jobs.store.steps import step
from jobs.store.store import Store
from submit.schedule.model import Run, RunOutcome, Schedule

if TYPE_CHECKING:
    from redis.commands.core import Script

__all__ = ["OvertakenError", "RunStore"]

ANY_TIME = "1e18"


class OvertakenError(Exception):
    """A run is another's, or over, or its schedule was replaced or removed: an upload for it is not wanted."""


class RunStore(Store):
    """A store whose :meth:`commit` also records ``run`` of ``schedule``, which is over then.

    ``begun``: the batch becomes live only if this is the run that has begun; else it may be one besides.
    :meth:`commit` raises OvertakenError where the run is another's; the batch is not live then.
    """

    def __init__(self, store: Store, schedule: Schedule, run: Run, *, begun: bool = True) -> None:
        super().__init__(store.connection, now=store.now, server_time=store.server_time)
        self._schedule, self._run, self._begun = schedule, run, begun
        self._script = step(store.connection, "submit.schedule.lua", "commit_run")
        self._commit = cast("Script", self._commit_run)

    def _commit_run(self, *, keys: list[str], args: list[Any]) -> int:
        of_schedule, run = ScheduleKeys(self._schedule.name), self._run
        outcome = RunOutcome(run.due, self.server_time(), "submitted", args[0], asked=run.asked, missed=run.missed)
        arguments = [self._schedule.id, run.encoded() if self._begun else b"", outcome.encoded(), *args]
        done = cast("int", self._script(keys=[of_schedule.info, of_schedule.runs, *keys], args=arguments))
        if done == -1:
            raise OvertakenError
        return done

    def discard(self, batch_id: str, shards: int = 0) -> None:
        """Remove an upload, unless it is live: a commit of which no reply came may have been made, and was recorded."""
        info = BatchKeys(batch_id).info
        self._sweep(keys=[info, UPLOADING], args=[batch_id, ANY_TIME])
        if self.connection.hget(info, "status") in (None, b"failed"):
            super().discard(batch_id, shards)
