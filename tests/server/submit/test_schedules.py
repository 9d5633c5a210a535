"""Runs of schedules on a real server: each is submitted once, or it is said why not, whoever dies."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from jobs.errors import InputError, RefusedError, WaitTimeoutError
from jobs.lines.line import Defaults
from jobs.store.cancel import cancel
from jobs.store.keys import SCHEDULER, SCHEDULES, UPLOADING, ScheduleKeys
from jobs.store.store import UPLOAD_LEASE_S, Store
from submit.input.reader import digest_of
from submit.results.read import ordered_records
from submit.schedule import add
from submit.schedule.add import ScheduleOrder, add_schedule
from submit.schedule.cron import Cron
from submit.schedule.dispatch import GRACE_S, TRY_AGAIN_S
from submit.schedule.model import ScheduleNotFoundError
from submit.schedule.rq_jobs import AGAIN_S, QUEUE, RqMirror
from submit.schedule.run_by_hand import run_schedule
from submit.schedule.store import RunStore
from submit.upload.submitter import Order
from tests.night import EVENING, MINUTE, TWO, Crash, Night, lines_in
from tests.pool import MODEL, prompts

DAY = 86400
REGISTRY = f"rq:scheduled:{QUEUE}"
STEPS = ["begun", "uploading", "committed"]


@pytest.fixture
def night(store: Store) -> Night:
    return Night(store)


def states(night: Night, name: str = "nightly") -> list[str]:
    """What became of a schedule's runs, oldest first."""
    return [outcome.state for outcome in reversed(night.runs(name))]


# --- a run ---


def test_a_due_run_becomes_a_batch_with_all_that_was_ordered(night: Night) -> None:
    """Nothing before its time; then one batch that carries the schedule's name, and the next run is a day later."""
    order = {"priority": "high", "metadata": {"k": 1}, "expires_in": 3600.0, "keep_s": 60.0}
    schedule = night.add(order=order)
    assert schedule.next == TWO
    night.at(TWO - 1)
    assert night.batches() == []
    night.at(TWO + 0.5)
    (batch_id,) = night.batches()
    batch = night.store.batch(batch_id)
    assert (batch.schedule, batch.name, batch.priority, batch.total) == ("nightly", "nightly", "high", 3)
    assert (batch.metadata, batch.keep_s, batch.defaults["model"]) == ({"k": 1}, 60.0, MODEL)
    assert "expires" in batch.times
    (outcome,) = night.runs()
    assert (outcome.due, outcome.state, outcome.batch_id) == (TWO, "submitted", batch_id)
    found = night.schedules.get("nightly")
    assert (found.next, found.run) == (TWO + DAY, None)
    night.at(TWO + 1)
    assert night.batches() == [batch_id]


def test_rq_sees_the_next_run(night: Night) -> None:
    """As a scheduled job with JSON in it; when that is due, the one after it."""
    from rq.job import Job
    from rq.registry import ScheduledJobRegistry
    from rq.serializers import JSONSerializer

    night.add()
    night.tick()
    registry = ScheduledJobRegistry(QUEUE, connection=night.store.connection, serializer=JSONSerializer)
    (job_id,) = registry.get_job_ids(cleanup=False)
    job = Job.fetch(job_id, connection=night.store.connection, serializer=JSONSerializer)
    assert (job.func_name, tuple(job.args)) == ("jobs.tasks.run_schedule", ("nightly", int(TWO)))
    assert registry.get_scheduled_time(job_id).timestamp() == TWO
    with pytest.raises(RuntimeError, match="promptmill scheduler"):
        job.func(*job.args)
    night.at(TWO)
    night.tick()
    assert night.store.connection.exists(job.key) == 0
    assert registry.get_job_ids(cleanup=False) == [f"cron-nightly-{int(TWO) + DAY}"]


def test_the_loss_of_rqs_keys_is_made_good(night: Night) -> None:
    """At any moment: no run depends on them, and they are written again after a while."""
    clock = [0.0]
    night.mirror = RqMirror(night.store.connection, clock=lambda: clock[0])
    night.add()
    for moment in (TWO - 10, TWO):
        night.now = moment
        clock[0] += AGAIN_S
        night.tick()
        night.store.connection.delete(*night.store.connection.keys("rq:*"))
    night.at(TWO + 1)
    assert len(night.batches()) == 1
    clock[0] += AGAIN_S
    assert night.shown() == [f"cron-nightly-{int(TWO) + DAY}".encode()]


def test_a_schedule_that_is_paused_begins_no_run(night: Night) -> None:
    """Also one that a scheduler has read just before; by hand it runs. What was due meanwhile is not made up for."""
    night.add(catch_up=True)
    read = night.schedules.get("nightly")
    night.now = TWO
    assert night.schedules.pause("nightly", night.now)
    assert not night.schedules.pause("nightly", night.now)
    night.dispatcher().begin_due([read])
    night.at(TWO + 1)
    assert night.shown() == []
    assert (night.batches(), night.runs()) == ([], ())
    found = night.schedules.get("nightly").as_dict()
    assert (found["paused"], found["next_run_at"]) == (True, None)
    by_hand = run_schedule(night.store, "nightly")
    night.finish(by_hand)
    night.now = TWO + DAY + 5
    assert night.schedules.resume("nightly", night.now)
    assert not night.schedules.resume("nightly", night.now)
    night.at(TWO + DAY + 6)
    assert night.batches() == [by_hand]
    night.at(TWO + 2 * DAY)
    assert len(night.batches()) == 2
    with pytest.raises(ScheduleNotFoundError):
        night.schedules.pause("other", night.now)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("hours", [0, 9])
def test_a_scheduler_that_dies_loses_and_doubles_nothing(
    night: Night, step: str, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever step, and however late the next one comes: one live batch, one run on record, no upload left."""
    night.add()
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "discard", lambda *_: None)  # a process that is killed tidies nothing up
        with pytest.raises(Crash):
            night.at(TWO + 1, night.crashing(step))
    night.at(TWO + 20 + hours * 3600)
    (batch_id,) = night.batches()
    assert [(run.due, run.state, run.batch_id) for run in night.runs()] == [(TWO, "submitted", batch_id)]
    assert night.schedules.get("nightly").run is None
    night.now += 2 * UPLOAD_LEASE_S
    night.store.sweep()
    infos = [key for key in night.store.connection.keys("promptmill:b:*") if key.count(b":") == 2]
    assert infos == [f"promptmill:b:{batch_id}".encode()]
    assert night.store.connection.zcard(UPLOADING) == 0
    night.at(night.now + 1)
    night.finish(batch_id)
    assert len(list(ordered_records(night.store.connection, batch_id))) == 3
    assert night.batches() == [batch_id]


@pytest.mark.parametrize("step", ["begun", "uploading", "committed"])
def test_a_scheduler_that_slept_while_another_took_over_adds_nothing(night: Night, step: str) -> None:
    """Both go on with the same run: one batch is live, and the upload that is not wanted is given up."""
    night.add()
    met = []

    def observe(found: str) -> None:
        if found == step and not met:
            met.append(found)
            night.dispatcher().submit_begun()

    night.at(TWO, night.dispatcher(observe=observe))
    assert met == [step]
    assert len(night.batches()) == 1
    assert states(night) == ["submitted"]
    assert night.store.connection.zcard(UPLOADING) == 0
    assert night.store.batch(night.batches()[0]).total == 3


def test_a_scheduler_that_is_to_stop_leaves_the_run_to_the_next(night: Night) -> None:
    """Between two lines of an upload: what it uploaded is removed, the run is gone on with."""
    night.add()
    uploading = []
    night.at(
        TWO,
        night.dispatcher(
            stopping=lambda: bool(uploading), observe=lambda step: uploading.extend([step] * (step == "uploading"))
        ),
    )
    run = night.schedules.get("nightly").run
    assert run is not None
    assert (run.due, run.by) == (TWO, None)
    assert night.store.connection.keys("promptmill:b:*") == []
    night.dispatcher().submit_begun()
    assert len(night.batches()) == 1


def test_a_full_redis_is_waited_for(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stays begun, is tried again after a pause, and other schedules go on meanwhile."""
    night.add("big")
    night.add("small")
    clock = [0.0]
    dispatcher = night.dispatcher(clock=lambda: clock[0])
    create = Store.create

    def full(store: Store, batch: Any) -> None:
        if batch.schedule == "big":
            raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'")
        create(store, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", full)
        night.at(TWO, dispatcher)
        dispatcher.submit_begun()
    assert (night.batches("big"), len(night.batches("small"))) == ([], 1)
    dispatcher.submit_begun()
    assert night.batches("big") == []
    clock[0] += TRY_AGAIN_S
    dispatcher.submit_begun()
    assert len(night.batches("big")) == 1


# --- what is not run ---


def test_a_run_is_skipped_while_an_earlier_batch_is_not_done(night: Night) -> None:
    """The list names the batch; when that is done, the next run is submitted."""
    night.add()
    night.at(TWO)
    night.at(TWO + DAY)
    (first,) = night.batches()
    (skipped, _) = night.runs()
    assert (skipped.state, skipped.due) == ("skipped", TWO + DAY)
    assert skipped.why is not None
    assert first in skipped.why
    night.finish(first)
    night.at(TWO + 2 * DAY)
    assert len(night.batches()) == 2
    assert states(night) == ["submitted", "skipped", "submitted"]


def test_overlap_may_be_allowed(night: Night) -> None:
    """Then each run is submitted, whatever is under way; a cancelled batch is in nobody's way either."""
    night.add(allow_overlap=True)
    night.add("careful")
    night.at(TWO)
    cancel(night.store, night.batches("careful")[0])
    night.at(TWO + DAY)
    assert len(night.batches()) == 2
    assert len(night.batches("careful")) == 2


def test_missed_runs_are_skipped(night: Night) -> None:
    """No scheduler was there for three nights: that is said once, and the next night is as always."""
    night.add()
    night.at(TWO + 2 * DAY + 3600)
    (outcome,) = night.runs()
    assert (outcome.state, outcome.missed, outcome.due) == ("skipped", 3, TWO + 2 * DAY)
    night.at(TWO + 3 * DAY)
    assert len(night.batches()) == 1
    assert states(night) == ["skipped", "submitted"]


def test_missed_runs_are_made_up_for_by_one(night: Night) -> None:
    """With --catch-up, of the last time that was missed; a crash on the way does not make it two."""
    night.add(catch_up=True)
    with pytest.raises(Crash):
        night.at(TWO + 2 * DAY + 3600, night.crashing("uploading"))
    night.at(TWO + 2 * DAY + 7200)
    (outcome,) = night.runs()
    assert (outcome.state, outcome.missed, outcome.due) == ("submitted", 3, TWO + 2 * DAY)
    assert len(night.batches()) == 1
    assert night.schedules.get("nightly").next == TWO + 3 * DAY


def test_a_little_late_is_on_time(night: Night) -> None:
    """As when another scheduler has to take over; a minute is the limit."""
    night.add()
    night.add("other", cron="1 2 * * *")
    night.at(TWO + MINUTE + GRACE_S)
    assert (states(night), states(night, "other")) == (["skipped"], ["submitted"])


def test_of_a_schedule_by_the_minute_the_last_run_is_on_time(night: Night) -> None:
    """What is older was missed; what was due within the last minute is run."""
    night.add(cron="* * * * *")
    night.at(EVENING + 10 * MINUTE + 30)
    night.at(EVENING + 10 * MINUTE + 31)
    skipped, submitted = reversed(night.runs())
    assert (skipped.state, skipped.due, skipped.missed) == ("skipped", EVENING + 9 * MINUTE, 9)
    assert (submitted.state, submitted.due) == ("submitted", EVENING + 10 * MINUTE)


def test_a_run_that_waits_for_its_upload_is_not_missed(night: Night) -> None:
    """It has begun in time; that a large upload was before it is no reason to skip it."""
    night.add()
    night.now = TWO
    night.tick()
    night.now = TWO + 1800
    night.dispatcher().submit_begun()
    assert states(night) == ["submitted"]


def test_a_schedule_that_is_removed_or_replaced_ends_its_run(night: Night) -> None:
    """What was under way for the old one is given up; the new one runs at its own time."""
    night.add()

    def observe(step: str) -> None:
        if step == "uploading" and night.schedules.get("nightly").cron.expression == "0 2 * * *":
            night.add(cron="0 3 * * *", take_place=True)

    night.at(TWO, night.dispatcher(observe=observe))
    assert night.batches() == []
    night.at(TWO + 3600)
    assert len(night.batches()) == 1
    assert night.schedules.remove("nightly")
    assert not night.schedules.remove("nightly")
    night.at(TWO + DAY + 3600)
    assert len(night.batches()) == 1
    assert night.store.connection.keys("promptmill:schedule*") == []
    assert night.store.connection.zcard(REGISTRY) == 0


# --- files ---


def test_a_stored_file_is_what_it_was(night: Night, tmp_path: Path) -> None:
    """Packed by suffix, with blank lines and a BOM: same ids, same digest as if it had been submitted."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt":"a"}\n\n{"prompt":"b"}\r\n\n'))
    wanted = ScheduleOrder("nightly", Cron("0 2 * * *", "UTC"), Order(Defaults({"model": MODEL})))
    schedule, checked = add_schedule(night.store, wanted, str(path))
    digest = digest_of(path)
    path.unlink()
    assert checked is not None
    assert (checked.total, schedule.lines, schedule.source, schedule.models) == (2, 2, str(path), (MODEL,))
    night.at(TWO)
    (batch_id,) = night.batches()
    assert night.store.connection.hget(f"promptmill:b:{batch_id}", "digest") == digest.encode()
    assert night.store.batch(batch_id).source == str(path)
    night.finish(batch_id)
    records = b"".join(record.raw for record in ordered_records(night.store.connection, batch_id))
    assert b'"line-1"' in records
    assert b'"line-3"' in records


@pytest.mark.parametrize("bad", [[{"prompt": 1}], [], [{"prompt": float("nan")}], [{"prompt": "a", "temprature": 1}]])
def test_bad_prompts_are_refused_when_they_are_added(night: Night, bad: list[Any]) -> None:
    """As `submit` would; nothing stays behind."""
    wanted = ScheduleOrder("nightly", Cron("0 2 * * *", "UTC"), Order(Defaults({"model": MODEL})))
    with pytest.raises(InputError):
        add_schedule(night.store, wanted, bad)
    assert night.store.connection.keys("*") == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"name": "a b"}, "no name for a schedule"),
        ({"name": "a:runs"}, "no name for a schedule"),
        ({"name": "n" * 49}, "no name for a schedule"),
        ({"order": Order(Defaults({"model": MODEL}), priority="urgent")}, "priority"),
        ({"order": Order(Defaults({"model": MODEL}), name="\n")}, "printable"),
        ({"read_at_fire": True}, "absolute path"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(night: Night, wanted: dict[str, Any], said: str) -> None:
    """Nothing of it is in Redis."""
    given = {"name": "nightly", "cron": Cron("@daily", "UTC"), "order": Order(Defaults({"model": MODEL})), **wanted}
    with pytest.raises(RefusedError, match=said):
        add_schedule(night.store, ScheduleOrder(**given), prompts(1))
    assert night.store.connection.keys("*") == []


def test_a_name_that_is_taken_is_refused(night: Night) -> None:
    """The one that is there stays as it was; --replace is named."""
    first = night.add()
    with pytest.raises(RefusedError, match="--replace"):
        night.add(cron="0 3 * * *")
    assert night.schedules.get("nightly") == first
    assert {key.decode() for key in night.store.connection.keys("*")} == {
        SCHEDULES, ScheduleKeys("nightly").info, ScheduleKeys("nightly").prompts(first.id),
    }  # fmt: skip
    assert night.store.connection.ttl(ScheduleKeys("nightly").prompts(first.id)) == -1


def test_a_file_that_is_too_large_names_the_other_way(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """--read-at-fire."""
    monkeypatch.setattr(add, "MAX_PROMPTS_BYTES", 10)
    with pytest.raises(RefusedError, match="--read-at-fire"):
        night.add()


def test_a_file_read_at_each_run_may_be_mended(night: Night, tmp_path: Path) -> None:
    """Missing, bad, then good: the first two runs fail and say why, the third is what the file says then."""
    path = tmp_path / "prompts.jsonl"
    night.add(file=str(path))
    night.at(TWO)
    lines_in(path, '{"prompt":"a"}', '{"prompt":1}')
    night.at(TWO + DAY)
    lines_in(path, '{"prompt":"a"}', '{"prompt":"b"}')
    night.at(TWO + 2 * DAY)
    missing, bad, good = reversed(night.runs())
    assert (missing.state, bad.state, good.state) == ("failed", "failed", "submitted")
    assert missing.why == f"{path}: cannot be read: No such file or directory"
    assert bad.why is not None
    assert "line 2, field 'prompt'" in bad.why
    (batch_id,) = night.batches()
    assert (night.store.batch(batch_id).total, night.store.batch(batch_id).source) == (2, str(path))


def test_only_files_of_the_folders_given_are_read(night: Night, tmp_path: Path) -> None:
    """Neither a way out of them, nor a link, nor a pipe, which would be waited for."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    secret = lines_in(outside / "a.jsonl", '{"prompt":"a"}')
    (inside / "link.jsonl").symlink_to(secret)
    os.mkfifo(inside / "pipe.jsonl")
    night.add("out", file=secret)
    night.add("way", file=str(inside / ".." / "out" / "a.jsonl"))
    night.add("link", file=str(inside / "link.jsonl"))
    night.add("pipe", file=str(inside / "pipe.jsonl"))
    night.add("good", file=lines_in(inside / "b.jsonl", '{"prompt":"a"}'))
    night.at(TWO, night.dispatcher(read_from=[inside]))
    assert {name: states(night, name) for name in night.schedules.names()} == {
        "good": ["submitted"], "link": ["failed"], "out": ["failed"], "pipe": ["failed"], "way": ["failed"],
    }  # fmt: skip
    assert night.runs("out")[0].why == f"{secret}: is in none of the folders of the scheduler's --read-from"


# --- by hand ---


def test_a_run_by_hand_is_submitted_at_once(night: Night) -> None:
    """Later runs stay as they were, but do not overlap with it; nor does another by hand, unless that is asked for."""
    night.add()
    batch_id = run_schedule(night.store, "nightly")
    assert night.store.batch(batch_id).schedule == "nightly"
    assert night.schedules.get("nightly").next == TWO
    with pytest.raises(RefusedError, match=batch_id):
        run_schedule(night.store, "nightly")
    second = run_schedule(night.store, "nightly", allow_overlap=True)
    night.finish(second)
    night.at(TWO)
    assert states(night) == ["submitted", "submitted", "skipped"]
    assert sorted(night.batches()) == sorted([batch_id, second])
    with pytest.raises(ScheduleNotFoundError, match="schedule list"):
        run_schedule(night.store, "other")


def asked(night: Night, step: Callable[[], object], **given: Any) -> str:
    """A run by hand of a file that the scheduler reads; ``step`` is what happens while it is waited for."""
    ticks = iter(range(1000))
    return run_schedule(night.store, "nightly", clock=lambda: next(ticks), sleep=lambda _: step(), **given)


def test_the_scheduler_is_asked_where_it_has_the_file(night: Night, tmp_path: Path) -> None:
    """Its batch is the answer; without a scheduler that is said; one that is slow is waited for."""
    night.add(file=lines_in(tmp_path / "a.jsonl", '{"prompt":"a"}'))
    with pytest.raises(RefusedError, match="`promptmill scheduler` starts one"):
        asked(night, lambda: None)
    night.store.connection.set(SCHEDULER, b'{"name":"mini.1"}')
    batch_id = asked(night, lambda: night.at(EVENING + 1))
    assert night.batches() == [batch_id]
    night.finish(batch_id)
    with pytest.raises(WaitTimeoutError, match="it will"):
        asked(night, lambda: None, timeout=5)
    night.at(EVENING + 2)
    assert len(night.batches()) == 2
    (tmp_path / "a.jsonl").unlink()
    night.finish(night.batches()[1])
    with pytest.raises(RefusedError, match="No such file"):
        asked(night, lambda: night.at(EVENING + 3))
    assert night.schedules.get("nightly").next == TWO
    night.at(TWO)
    assert states(night) == ["submitted", "submitted", "failed", "failed"]
