"""A pool at night without workers: schedules, the firing of their runs, and a clock that tests set."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.lines.line import Defaults
from jobs.store.keys import ScheduleKeys
from jobs.store.store import Store
from submit.schedule.add import ScheduleOrder, add_schedule
from submit.schedule.cron import Cron
from submit.schedule.dispatch import Firing
from submit.schedule.model import Outcome, Schedule
from submit.schedule.rq_jobs import QUEUE, RunQueue
from submit.schedule.store import Schedules
from submit.upload.submitter import Order
from tests.pool import MODEL, prompts, work

__all__ = ["EVENING", "MINUTE", "TWO", "Crash", "Night"]

EVENING = datetime(2026, 11, 20, 18, 0, tzinfo=UTC).timestamp()
TWO = datetime(2026, 11, 21, 2, 0, tzinfo=UTC).timestamp()
MINUTE = 60


class Crash(BaseException):
    """The scheduler's process ends here."""


class Night:
    """It is evening; schedules run at two. ``now`` is the server's clock."""

    def __init__(self, store: Store, now: float = EVENING) -> None:
        self.now = now
        self.store = Store(store.connection, server_time=lambda: self.now)
        self.schedules = Schedules(store.connection)
        self.queue = RunQueue(self.store)

    def add(self, name: str = "nightly", *, cron: str = "0 2 * * *", **given: Any) -> Schedule:
        """A schedule of three prompts; ``file`` is a path for one whose file is read at each run."""
        order = given.pop("order", {})
        file: str | None = given.pop("file", None)
        wanted = ScheduleOrder(
            name, Cron(cron, "UTC"), Order(Defaults({"model": MODEL}), **order), read_at_fire=file is not None, **given
        )
        return add_schedule(self.store, wanted, prompts(3) if file is None else file)[0]

    def firing(self, **settings: Any) -> Firing:
        """What takes runs; it may read all files."""
        return Firing(self.store, **{"read_from": [Path("/")], **settings})

    def crashing(self, step: str) -> Firing:
        """A scheduler that dies at this step."""

        def observe(found: str) -> None:
            if found == step:
                raise Crash

        return self.firing(observe=observe)

    def tick(self) -> None:
        """What the main thread of an active scheduler does: queue what is due."""
        wanted = {}
        for name, schedule in zip(names := self.schedules.names(), self.schedules.read(names), strict=True):
            if isinstance(schedule, Schedule):
                wanted |= {(name, due): name for due in (schedule.next, schedule.asked) if due is not None}
        self.queue.sync(wanted)
        self.queue.move()

    def at(self, now: float, firing: Firing | None = None) -> None:
        """A tick at this time, and the work that it brings."""
        self.now = now
        self.tick()
        (firing or self.firing()).work()

    def runs(self, name: str = "nightly") -> tuple[Outcome, ...]:
        return self.schedules.get(name).runs

    def batches(self, name: str = "nightly") -> list[str]:
        """The batches that a schedule has submitted, oldest first."""
        return [batch.id for batch in self.store.batches() if batch.schedule == name]

    def finish(self, batch_id: str) -> None:
        work(self.store, batch_id)

    def hash_set(self, field: str, value: Any, name: str = "nightly") -> None:
        self.store.connection.hset(ScheduleKeys(name).info, field, value)

    def queued(self) -> list[bytes]:
        """What lies in RQ's queue, taken or not."""
        connection = self.store.connection
        lists = (f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate")
        return [entry for key in lists for entry in connection.lrange(key, 0, -1)]


def lines_in(path: Path, *texts: str) -> str:
    """A file of prompts; its path as text."""
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)
