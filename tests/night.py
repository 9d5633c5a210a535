"""A pool at night without workers: schedules, the dispatch of their runs, and a clock that tests set."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from jobs.lines.line import Defaults
from jobs.store.keys import ScheduleKeys
from jobs.store.store import Store
from submit.schedule.add import ScheduleOrder, add_schedule
from submit.schedule.cron import Cron
from submit.schedule.dispatch import Dispatcher
from submit.schedule.model import RunOutcome, Schedule
from submit.schedule.rq_jobs import QUEUE, RqMirror
from submit.schedule.store import Schedules
from submit.upload.submitter import Order
from tests.pool import MODEL, prompts, work

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
        self.mirror = RqMirror(store.connection)

    def add(self, name: str = "nightly", *, cron: str = "0 2 * * *", **given: Any) -> Schedule:
        """A schedule of three prompts; ``file`` is a path for one whose file is read at each run."""
        order = given.pop("order", {})
        file: str | None = given.pop("file", None)
        wanted = ScheduleOrder(
            name, Cron(cron, "UTC"), Order(Defaults({"model": MODEL}), **order), read_at_fire=file is not None, **given
        )
        return add_schedule(self.store, wanted, prompts(3) if file is None else file)[0]

    def dispatcher(self, **settings: Any) -> Dispatcher:
        """What begins and submits runs; it may read all files."""
        return Dispatcher(self.store, **{"read_from": [Path("/")], **settings})

    def crashing(self, step: str) -> Dispatcher:
        """A scheduler that dies at this step."""

        def observe(found: str) -> None:
            if found == step:
                raise Crash

        return self.dispatcher(observe=observe)

    def tick(self, dispatcher: Dispatcher | None = None) -> None:
        """What the main thread of an active scheduler does: begin what is due."""
        found = self.schedules.read(self.schedules.names())
        good = [schedule for schedule in found if isinstance(schedule, Schedule)]
        (dispatcher or self.dispatcher()).begin_due(good)
        self.mirror.show({schedule.name: schedule.next for schedule in good if not schedule.paused})

    def at(self, now: float, dispatcher: Dispatcher | None = None) -> None:
        """A tick at this time, and the work that it brings."""
        self.now = now
        dispatcher = dispatcher or self.dispatcher()
        self.tick(dispatcher)
        dispatcher.submit_begun()

    def runs(self, name: str = "nightly") -> tuple[RunOutcome, ...]:
        return self.schedules.get(name).runs

    def batches(self, name: str = "nightly") -> list[str]:
        """The batches that a schedule has submitted, oldest first."""
        return [batch.id for batch in self.store.batches() if batch.schedule == name]

    def finish(self, batch_id: str) -> None:
        work(self.store, batch_id)

    def hash_set(self, field: str, value: Any, name: str = "nightly") -> None:
        self.store.connection.hset(ScheduleKeys(name).info, field, value)

    def shown(self) -> list[bytes]:
        """The scheduled jobs that RQ has after a tick."""
        self.tick()
        return cast("list[bytes]", self.store.connection.zrange(f"rq:scheduled:{QUEUE}", 0, -1))


def lines_in(path: Path, *texts: str) -> str:
    """A file of prompts; its path as text."""
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)
