"""A schedule's run is submitted once and the guard against overlap sees it, whatever comes between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from jobs.errors import RefusedError, WaitTimeoutError
from jobs.store.keys import SCHEDULER, UPLOADING, ScheduleKeys
from jobs.store.store import UPLOAD_LEASE_S, Store
from submit.schedule import add
from submit.schedule.dispatch import LATE_S
from submit.schedule.model import Run, RunOutcome
from submit.schedule.rq_jobs import QUEUE
from submit.schedule.run_by_hand import BY_HAND_S, run_schedule
from submit.schedule.store import KEPT_RUNS, RunStore, Schedules
from tests.night import EVENING, MINUTE, TWO, Crash, Night, lines_in

DAY = 86400


@pytest.fixture
def night(store: Store) -> Night:
    return Night(store)


def states(night: Night, name: str = "nightly") -> list[str]:
    """What became of a schedule's runs, oldest first."""
    return [outcome.state for outcome in reversed(night.runs(name))]


def swept(night: Night) -> list[str]:
    """The keys of batches that are left when dead uploads are swept."""
    night.now += 2 * UPLOAD_LEASE_S
    night.store.sweep()
    assert night.store.connection.zcard(UPLOADING) == 0
    return sorted(key.decode() for key in night.store.connection.keys("promptmill:b:*") if key.count(b":") == 2)


# --- the guard ---


def test_the_guard_sees_a_batch_however_many_runs_were_skipped(night: Night) -> None:
    """They are one entry of the list, with their number; the submitted run stays on it."""
    night.add()
    for number in range(KEPT_RUNS + 5):
        night.at(TWO + number * DAY)
    (first,) = night.batches()
    skipped, submitted = night.runs()
    assert (skipped.state, skipped.missed, skipped.due) == ("skipped", KEPT_RUNS + 4, TWO + (KEPT_RUNS + 4) * DAY)
    assert submitted.batch_id == first
    night.finish(first)
    night.at(TWO + (KEPT_RUNS + 5) * DAY)
    assert len(night.batches()) == 2


def test_the_guard_sees_a_batch_that_is_no_longer_on_the_list(night: Night) -> None:
    """Whatever pushed it off, by cron and by hand; also after the schedule was replaced."""
    night.add()
    night.at(TWO)
    other = RunOutcome(int(TWO), TWO, "failed", why="no").encoded()
    night.store.connection.lpush(ScheduleKeys("nightly").runs, *[other] * 30)
    night.store.connection.ltrim(ScheduleKeys("nightly").runs, 0, KEPT_RUNS - 1)
    night.add(take_place=True)
    night.at(TWO + DAY)
    (first,) = night.batches()
    assert states(night)[-1] == "skipped"
    with pytest.raises(RefusedError, match=first):
        run_schedule(night.store, "nightly")
    night.finish(first)
    night.at(TWO + 2 * DAY)
    assert night.schedules.get("nightly").open == (night.batches()[1],)


def test_skips_for_different_reasons_are_two_entries(night: Night) -> None:
    """The first because of one batch, the second of another."""
    night.add()
    for day in range(4):
        night.at(TWO + day * DAY)
        if day == 1:
            night.finish(night.batches()[0])
    assert states(night) == ["submitted", "skipped", "submitted", "skipped"]


# --- what is sent twice ---


def twice(step: Callable[..., Any]) -> Callable[..., Any]:
    """A script whose reply is lost, so that it is sent again."""

    def sent(**arguments: Any) -> Any:
        step(**arguments)
        return step(**arguments)

    return sent


def test_a_schedule_whose_reply_is_lost_is_added(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the place of another, and its file is there."""
    made = Schedules.__init__

    def losing(schedules: Schedules, connection: Any) -> None:
        made(schedules, connection)
        schedules._add = twice(schedules._add)  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        patch.setattr(Schedules, "__init__", losing)
        first = night.add()
        second = night.add(cron="0 3 * * *", take_place=True)
        with pytest.raises(RefusedError, match="--replace"):
            night.add()
    assert first.id != second.id
    found = night.store.connection.keys("promptmill:schedule:*")
    assert sorted(found) == sorted(key.encode() for key in (ScheduleKeys("nightly").info, prompts_key(second.id)))
    night.at(TWO + 3600)
    assert len(night.batches()) == 1


def prompts_key(incarnation: str) -> str:
    return ScheduleKeys("nightly").prompts(incarnation)


def losing_replies(monkeypatch: pytest.MonkeyPatch, after: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have the commits of runs go through ``after``."""
    made = RunStore.__init__

    def losing(store: RunStore, *arguments: Any, **named: Any) -> None:
        made(store, *arguments, **named)
        store._script = after(store._script)  # type: ignore[assignment]

    monkeypatch.setattr(RunStore, "__init__", losing)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_commit_whose_reply_is_lost_is_one_run(
    night: Night, monkeypatch: pytest.MonkeyPatch, *, by_hand: bool
) -> None:
    """Sent again it says what it said."""
    losing_replies(monkeypatch, twice)
    night.add()
    if by_hand:
        run_schedule(night.store, "nightly", allow_overlap=True)
    else:
        night.at(TWO)
    assert len(night.batches()) == 1
    assert states(night) == ["submitted"]


def test_a_commit_of_which_nothing_is_heard_is_not_undone(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was made, and the connection is gone: the batch stays, and there is no other."""

    def cut(step: Callable[..., Any]) -> Callable[..., Any]:
        def sent(**arguments: Any) -> Any:
            step(**arguments)
            raise ConnectionError("gone")

        return sent

    night.add()
    with monkeypatch.context() as patch:
        losing_replies(patch, cut)
        with pytest.raises(ConnectionError):
            night.at(TWO)
    night.at(TWO + 1)
    (batch_id,) = night.batches()
    assert night.store.batch(batch_id).total == 3
    night.finish(batch_id)
    assert states(night) == ["submitted"]


def test_a_batch_that_is_gone_is_not_made_again(night: Night) -> None:
    """The scheduler died right after the commit, and the batch was done and purged before the next one came."""
    night.add()
    with pytest.raises(Crash):
        night.at(TWO, night.crashing("committed"))
    (batch_id,) = night.batches()
    night.finish(batch_id)
    night.store.discard(batch_id)
    night.at(TWO + 3600)
    assert night.batches() == []
    assert states(night) == ["submitted"]


# --- replaced, removed ---


@pytest.mark.parametrize("what", ["replace", "remove"])
def test_a_schedule_that_changes_at_the_last_moment_has_no_batch(
    night: Night, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the old file was uploaded: it does not become live, and the list says why."""
    night.add()
    commit = RunStore.commit

    def late(store: RunStore, batch_id: str, **facts: Any) -> bool:
        monkeypatch.setattr(RunStore, "commit", commit)
        if what == "replace":
            night.add(cron="0 3 * * *", take_place=True)
        else:
            assert night.schedules.remove("nightly")
        return store.commit(batch_id, **facts)

    monkeypatch.setattr(RunStore, "commit", late)
    night.at(TWO)
    assert night.batches() == []
    assert swept(night) == []
    if what == "replace":
        (outcome,) = night.runs()
        assert (outcome.state, outcome.due) == ("skipped", TWO)
        assert outcome.why == "the schedule was replaced while this run was being submitted"


def test_each_schedule_of_a_name_has_its_own_file(night: Night) -> None:
    """A run of the old one cannot read the new one's."""
    old = night.add()
    night.add(take_place=True)
    with pytest.raises(RefusedError, match="not in Redis any more"):
        night.schedules.prompts(old)
    assert night.store.connection.exists(prompts_key(old.id)) == 0


# --- runs that wait ---


def test_a_run_behind_another_waits_and_is_on_time(night: Night) -> None:
    """Overlap is allowed, and the run before is not submitted for long. Nothing is skipped: a scheduler was there when
    the run was due."""
    night.add(allow_overlap=True)
    night.hash_set("run", Run(int(EVENING)).encoded())
    refused = night.dispatcher(clock=lambda: 0.0, scheduler_was_there=lambda due: due >= EVENING)
    refused._tried[night.schedules.get("nightly").id] = 0.0  # as if Redis had just refused that run's upload
    for later in (0, 1, 10 * MINUTE):
        night.at(TWO + later, refused)
        assert night.schedules.get("nightly").next == TWO
    refused._tried.clear()
    night.at(TWO + 20 * MINUTE, refused)
    night.at(TWO + 20 * MINUTE + 1, refused)
    assert states(night) == ["submitted", "submitted"]
    assert [run.due for run in reversed(night.runs())] == [EVENING, TWO]


def test_a_run_that_redis_was_too_full_for_is_run_late(night: Night) -> None:
    """A scheduler was there all the time; after an hour it is too late, which is said in other words."""
    night.add()
    night.add("other", cron="30 1 * * *")
    night.now = TWO + 50 * MINUTE  # from TWO on nothing could be written
    night.at(night.now, night.dispatcher(scheduler_was_there=lambda due: due >= TWO - 3600))
    assert states(night) == ["submitted"]
    assert states(night, "other") == ["skipped"]
    assert night.runs("other")[0].why == "for more than an hour Redis was away or full, or an earlier run in its way"
    assert night.now - (TWO - 30 * MINUTE) > LATE_S


def test_a_run_without_a_scheduler_is_skipped_in_other_words(night: Night) -> None:
    """Of what it cannot know it says both."""
    night.add()
    night.at(TWO + 50 * MINUTE)
    assert night.runs()[0].why == "no scheduler was there at that time, or Redis refused it"


# --- by hand ---


class Killed(BaseException):
    """The client's process ends here."""


def test_two_runs_by_hand_at_once_are_one(night: Night) -> None:
    """The second is refused while the first is uploaded; so is a run by cron, and with --allow-overlap it runs."""
    night.add(cron="1 18 * * *")
    seen = []

    def meanwhile(_lines: int, _size: int) -> None:
        if not seen:
            seen.append("once")
            with pytest.raises(RefusedError, match="--allow-overlap"):
                run_schedule(night.store, "nightly")
            night.at(EVENING + MINUTE)

    first = run_schedule(night.store, "nightly", progress=meanwhile)
    assert seen
    assert night.batches() == [first]
    assert states(night) == ["skipped", "submitted"]
    assert night.schedules.get("nightly").run is None


def test_a_run_that_came_between_the_look_and_the_run_is_seen(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand while another by hand begins and ends; by cron the same."""
    night.add()
    begin = Schedules.begin

    def slow(*arguments: Any, **named: Any) -> str:
        monkeypatch.setattr(Schedules, "begin", begin)
        run_schedule(night.store, "nightly")
        return begin(*arguments, **named)

    monkeypatch.setattr(Schedules, "begin", slow)
    with pytest.raises(RefusedError, match="is not done"):
        run_schedule(night.store, "nightly")
    (first,) = night.batches()
    night.finish(first)
    monkeypatch.setattr(Schedules, "begin", slow)
    night.at(TWO)
    night.at(TWO + 1)
    assert len(night.batches()) == 2
    assert states(night) == ["submitted", "submitted", "skipped"]


def killed_by_hand(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is killed while it uploads, and tidies nothing up."""

    def kill(_lines: int, _size: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "discard", lambda *_: None)
        patch.setattr(Schedules, "end", lambda *_: False)
        with pytest.raises(Killed):
            run_schedule(night.store, "nightly", progress=kill)
    assert night.batches() == []


def test_a_client_that_dies_leaves_its_run_to_the_scheduler(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, for it may be alive; then the run is submitted, once."""
    night.add()
    killed_by_hand(night, monkeypatch)
    night.at(EVENING + BY_HAND_S - 1)
    assert night.batches() == []
    night.at(EVENING + BY_HAND_S)
    (batch_id,) = night.batches()
    assert states(night) == ["submitted"]
    assert swept(night) == [f"promptmill:b:{batch_id}"]


def test_a_client_that_dies_is_followed_by_another(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no scheduler; one that fails of itself leaves nothing in anybody's way."""
    night.add()
    killed_by_hand(night, monkeypatch)
    with pytest.raises(RefusedError, match="being submitted"):
        run_schedule(night.store, "nightly")
    night.now += BY_HAND_S
    batch_id = run_schedule(night.store, "nightly")
    assert night.batches() == [batch_id]
    night.finish(batch_id)
    monkeypatch.setattr(add, "submit", refuse)
    with pytest.raises(RefusedError, match="no"):
        run_schedule(night.store, "nightly")
    assert night.schedules.get("nightly").run is None


def refuse(*_arguments: Any, **_named: Any) -> None:
    raise RefusedError("no")


def test_a_client_that_slept_finds_its_run_taken_over(night: Night) -> None:
    """Its upload does not become live."""
    night.add()

    def sleep(_lines: int, _size: int) -> None:
        night.at(EVENING + BY_HAND_S + 1)

    with pytest.raises(RefusedError, match="schedule list"):
        run_schedule(night.store, "nightly", progress=sleep)
    assert len(night.batches()) == 1
    assert states(night) == ["submitted"]


def test_what_the_scheduler_is_asked_for_does_not_overlap_either(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run by cron came after the client's look: the client is told. With --allow-overlap it waits for a run that is
    being submitted."""
    night.add(file=lines_in(tmp_path / "a.jsonl", '{"prompt":"a"}'))
    night.store.connection.set(SCHEDULER, b'{"name":"mini.1"}')
    begin = Schedules.begin

    def slow(*arguments: Any, **named: Any) -> str:
        monkeypatch.setattr(Schedules, "begin", begin)
        night.at(TWO)
        return begin(*arguments, **named)

    monkeypatch.setattr(Schedules, "begin", slow)
    with pytest.raises(RefusedError, match="is not done"):
        run_schedule(night.store, "nightly")
    night.hash_set("run", Run(int(TWO) - 60, asked=True).encoded())
    with pytest.raises(RefusedError, match="being submitted"):
        run_schedule(night.store, "nightly")
    ticks, later = iter(range(1000)), iter(range(1000))
    batch_id = run_schedule(
        night.store, "nightly", allow_overlap=True,
        clock=lambda: next(ticks), sleep=lambda _: night.at(TWO + 4 + next(later)),
    )  # fmt: skip
    assert len(night.batches()) == 3
    assert batch_id == night.batches()[-1]
    night.hash_set("run", Run(int(TWO) + 60).encoded())
    with pytest.raises(WaitTimeoutError, match="run it again"):
        run_schedule(night.store, "nightly", allow_overlap=True, timeout=5, clock=lambda: next(ticks), sleep=id)


def test_who_waits_for_a_schedule_that_is_replaced_is_told(night: Night, tmp_path: Path) -> None:
    """The run that was asked for is not the new one's."""
    file = lines_in(tmp_path / "a.jsonl", '{"prompt":"a"}')
    night.add(file=file)
    night.store.connection.set(SCHEDULER, b'{"name":"mini.1"}')
    ticks = iter(range(1000))
    with pytest.raises(RefusedError, match="run it again"):
        run_schedule(
            night.store, "nightly", clock=lambda: next(ticks), sleep=lambda _: night.add(file=file, take_place=True)
        )


def test_without_read_from_no_file_is_read(night: Night, tmp_path: Path) -> None:
    """The run fails and names the flag."""
    night.add(file=lines_in(tmp_path / "a.jsonl", '{"prompt":"a"}'))
    night.at(TWO, night.dispatcher(read_from=[]))
    (outcome,) = night.runs()
    assert outcome.state == "failed"
    assert outcome.why is not None
    assert f"`promptmill scheduler --read-from {tmp_path}`" in outcome.why


def test_a_run_that_an_earlier_version_had_begun_is_submitted(night: Night) -> None:
    """As it wrote it down, with a job of the run in RQ's queue; nothing of that stays in RQ."""
    night.add()
    night.hash_set("run", b'{"due":%d,"asked":false,"missed":0,"by":null}' % EVENING)
    night.store.connection.rpush(f"rq:queue:{QUEUE}", f"cron-nightly-{int(EVENING)}")
    night.at(EVENING + 7 * 3600)
    assert [(run.due, run.state) for run in night.runs()] == [(EVENING, "submitted")]
    assert night.store.connection.exists(f"rq:queue:{QUEUE}") == 0
