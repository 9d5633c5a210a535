"""What others put in the way of schedules: it stops none but the one it is put into."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import RefusedError
from jobs.store.keys import SCHEDULES, ScheduleKeys
from jobs.store.store import Store
from submit.schedule.rq_jobs import QUEUE
from tests.night import EVENING, TWO, Night
from tests.pool import work

DAY = 86400
REGISTRY = f"rq:scheduled:{QUEUE}"


@pytest.fixture
def night(store: Store) -> Night:
    return Night(store)


def states(night: Night, name: str = "nightly") -> list[str]:
    """What became of a schedule's runs, oldest first."""
    return [outcome.state for outcome in reversed(night.runs(name))]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cron", "* * *"), ("zone", "Mars"), ("next", "soon"), ("next", "-1"), ("next", "9" * 30), ("models", "{}"),
        ("run", "{}"), ("run", "x"), ("run", '{"due":1, "asked":false,"missed":0,"by":null}'), ("lines", "\xff"),
        ("run", '{"due":1,"asked":false,"missed":0,"by":["../x",{}]}'), ("created_at", "nan"),
        ("source", "x" * 2**21),
        ("order", "[]"), ("order", '{"webhook":1}'), ("order", '{"batch_id":"b_x"}'), ("order", "x" * 2**22),
        ("order", '{"defaults":{"temperature":"hot"}}'), ("order", '{"priority":"urgent"}'),
        ("open", "x"), ("open", "b_x  b_y"), ("open", "\xff"),
    ],
)  # fmt: skip
def test_a_damaged_schedule_stops_no_other(night: Night, field: str, value: Any) -> None:
    """It is passed over or fails, is shown as damaged or failed, and can be replaced or removed."""
    night.add("bad")
    night.add("good")
    night.hash_set(field, value, "bad")
    night.at(TWO)
    night.at(TWO + 1)
    assert (night.batches("bad"), len(night.batches("good"))) == ([], 1)
    found = night.schedules.read(["bad", "good"])
    assert isinstance(found[0], RefusedError) or found[0].runs[0].state == "failed"
    night.add("bad", take_place=True)
    night.at(TWO + DAY)
    assert len(night.batches("bad")) == 1
    assert night.schedules.remove("bad")


@pytest.mark.parametrize("key", ["info", "runs", "prompts"])
def test_keys_of_another_type_stop_no_other(night: Night, key: str) -> None:
    """Whichever key of a schedule it is."""
    night.add("bad")
    night.add("good")
    keys = ScheduleKeys("bad")
    name = {"info": keys.info, "runs": keys.runs, "prompts": keys.prompts(night.schedules.get("bad").id)}[key]
    night.store.connection.delete(name)
    night.store.connection.zadd(name, {"x": 1})
    night.at(TWO)
    night.at(TWO + 1)
    assert len(night.batches("good")) == 1
    assert night.batches("bad") == []
    assert night.schedules.remove("bad")


def test_rubbish_in_the_lists_is_removed(night: Night) -> None:
    """Names that can be none, entries of RQ's registry and queue that are not ours, runs that were never ours."""
    connection = night.store.connection
    night.add()
    connection.sadd(SCHEDULES, "../x", "a b", b"\xff", "x" * 100_000, "gone")
    connection.lpush(
        ScheduleKeys("nightly").runs, "x", '{"due":1}', '{"a":1}', "x" * 100_000, '{"due":"1","at":1,"state":"x"}'
    )
    for entry in (
        "b_x-1",
        "cron-nightly",
        "cron-nightly-99999999999",
        "cron-nightly-1",
        "../x",
        b"\xff",
        "x" * 100_000,
    ):
        connection.zadd(REGISTRY, {entry: 1})
        connection.rpush(f"rq:queue:{QUEUE}", entry)
        connection.rpush(f"rq:queue:{QUEUE}:intermediate", entry)
    connection.hset("rq:job:cron-nightly-1", "enqueued_at", "x" * 100_000)
    night.at(TWO)
    assert len(night.batches()) == 1
    assert night.schedules.names() == ["gone", "nightly"]
    assert night.shown() == [b"cron-nightly-%d" % (TWO + DAY)]
    assert connection.exists(f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate") == 0


@pytest.mark.parametrize("key", [REGISTRY, f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate"])
def test_rq_keys_of_another_type_are_made_anew(night: Night, key: str) -> None:
    """They are the schedules' own, and nothing is lost with them; RQ's set of all queues is left as it is."""
    night.add()
    night.store.connection.set("rq:queues", "x")
    night.store.connection.set(key, "x")
    night.at(TWO)
    assert len(night.batches()) == 1
    assert night.shown() == [b"cron-nightly-%d" % (TWO + DAY)]


def test_a_job_before_its_time_runs_nothing(night: Night) -> None:
    """Whoever may write to the queue cannot make a schedule run early, or run what is no schedule's."""
    night.add()
    connection = night.store.connection
    for entry in (f"cron-nightly-{int(TWO)}", f"cron-nightly-{int(EVENING)}", f"cron-other-{int(EVENING)}"):
        connection.rpush(f"rq:queue:{QUEUE}", entry)
        connection.zadd(REGISTRY, {entry: 1})
    connection.hset(f"rq:job:cron-nightly-{int(TWO)}", "enqueued_at", "2026-11-21T02:00:00.000000Z")
    night.at(TWO - 1)
    assert night.batches() == []
    night.at(TWO)
    assert len(night.batches()) == 1


def test_batches_of_workers_go_on_beside(night: Night) -> None:
    """A schedule's batch is one as any other: workers finish it."""
    night.add()
    night.at(TWO)
    (batch_id,) = night.batches()
    work(night.store, batch_id)
    assert night.store.batch(batch_id).status == "completed"
