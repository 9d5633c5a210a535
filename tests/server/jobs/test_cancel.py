"""Cancelled and expired batches: what is finished is kept, every other line has one error record, all counts agree."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.batch import queue_name
from jobs.errors import BatchNotFoundError, RefusedError, StaleAttemptError
from jobs.store.cancel import cancel, current, expire_due
from jobs.store.keys import EXPIRING, BatchKeys
from jobs.store.maintenance import upkeep
from jobs.store.store import NewBatch, Store
from submit.results.destination import Destination
from submit.results.follow import follow_results
from submit.results.formats import renderer
from submit.results.output import Output
from submit.results.read import finished_records, ordered_records
from tests.pool import MODEL, make_batch, prompts, work

QUEUE = queue_name(MODEL, "normal")


def ordered(store: Store, batch_id: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.raw) for record in ordered_records(store.connection, batch_id)]


def failed(records: list[dict[str, Any]]) -> dict[int, str]:
    """Indices of failed lines, with their codes."""
    return {record["index"]: record["error"]["code"] for record in records if "error" in record}


def due(store: Store, batch_id: str) -> None:
    """The batch's time is up."""
    store.connection.hset(BatchKeys(batch_id).info, "expires_at", 1.0)
    store.connection.zadd(EXPIRING, {batch_id: 1.0})


def test_cancel_keeps_what_is_finished(store: Store) -> None:
    """Each line has one record, in both orders; the others carry their ids, metadata and model."""
    lines = [{**line, "metadata": {"row": index}} for index, line in enumerate(prompts(120))]
    batch_id = make_batch(store, lines, on_bad_line="skip")
    work(store, batch_id, only=[*range(50), 70, 60])  # a whole shard, and some of the next
    assert cancel(store, batch_id)
    batch, records = store.batch(batch_id), ordered(store, batch_id)
    assert [record["index"] for record in records] == list(range(120))
    assert failed(records) == dict.fromkeys({*range(50, 120)} - {60, 70}, "cancelled")
    assert (batch.status, batch.completed, batch.failed, batch.finished) == ("cancelled", 52, 68, 120)
    error = records[119]
    assert (error["id"], error["metadata"], error["model"], error["attempt"]) == ("row-119", {"row": 119}, MODEL, 0)
    assert error["error"]["message"] == "the batch was cancelled before this line was finished"
    finished = [record.index for record in finished_records(store.connection, batch_id)]
    assert finished[:52] == [*range(50), 70, 60]
    assert sorted(finished) == list(range(120))


def test_the_records_of_lines_that_did_not_run_name_their_adapter(store: Store) -> None:
    """Those of a line with an adapter, its own or the batch's; no other record has the field."""
    batch_id = make_batch(store, [{"prompt": "a"}, {"prompt": "a", "adapter_path": "lora"}])
    other = make_batch(store, prompts(1), defaults={"adapter_path": "tuned"})
    for batch in (batch_id, other):
        cancel(store, batch)
    found = [record.get("adapter_path") for batch in (batch_id, other) for record in ordered(store, batch)]
    assert found == [None, "lora", "tuned"]
    assert "adapter_path" not in ordered(store, batch_id)[0]


def test_rejected_lines_keep_their_own_errors(store: Store) -> None:
    """A line refused at submission stays refused, and is not counted again."""
    batch_id = make_batch(store, [*prompts(2), {"prompt": 5}], on_bad_line="skip")
    cancel(store, batch_id)
    assert failed(ordered(store, batch_id)) == {0: "cancelled", 1: "cancelled", 2: "invalid_type"}
    assert (store.batch(batch_id).failed, store.batch(batch_id).rejected) == (3, 1)


def test_nothing_of_a_cancelled_batch_runs_or_is_written(store: Store) -> None:
    """Its jobs leave the queues, others' stay in their order; attempts that were under way write nothing."""
    before, batch_id, after = (make_batch(store, prompts(60)) for _ in range(3))
    attempt = store.claim(batch_id, 0)
    assert attempt is not None
    cancel(store, batch_id)
    assert store.claim(batch_id, 1) is None
    with pytest.raises(StaleAttemptError):
        store.write(attempt, [])
    with pytest.raises(StaleAttemptError):
        store.finish(attempt, 50)
    queued = [job.decode() for job in store.connection.lrange(f"rq:queue:{QUEUE}", 0, -1)]
    assert queued == [f"{before}-0", f"{before}-1", f"{after}-0", f"{after}-1"]
    assert store.connection.exists(f"rq:job:{batch_id}-0", f"rq:job:{batch_id}-1") == 0
    assert store.connection.exists(f"rq:job:{after}-0", f"rq:job:{after}-1") == 2


def test_cancel_says_what_is_no_use(store: Store) -> None:
    """Twice is fine; a batch that is over, still being submitted or unknown is refused."""
    batch_id = make_batch(store, prompts(1))
    assert cancel(store, batch_id)
    before = store.batch(batch_id)
    assert not cancel(store, batch_id)
    assert store.batch(batch_id) == before
    over = make_batch(store, prompts(1))
    work(store, over)
    with pytest.raises(RefusedError, match="is completed already"):
        cancel(store, over)
    store.create(NewBatch("b_new", None, "a", "normal", {}, {}))
    with pytest.raises(RefusedError, match="still being submitted; stop its submit"):
        cancel(store, "b_new")
    with pytest.raises(BatchNotFoundError):
        cancel(store, "b_missing")


def test_a_server_without_memory_takes_a_cancel(store: Store) -> None:
    """It makes room there: jobs go."""
    batch_id = make_batch(store, prompts(60))
    other = make_batch(store, prompts(1))
    store.connection.config_set("maxmemory", 1)
    try:
        cancel(store, batch_id)
    finally:
        store.connection.config_set("maxmemory", 0)
    assert store.batch(batch_id).failed == 60
    assert store.connection.lrange(f"rq:queue:{QUEUE}", 0, -1) == [f"{other}-0".encode()]


def test_reading_goes_on_in_the_middle_of_unrun_lines(store: Store) -> None:
    """A reader that was cut off goes on behind the last record it took."""
    batch_id = make_batch(store, prompts(120))
    work(store, batch_id, only=range(55))
    cancel(store, batch_id)
    records = finished_records(store.connection, batch_id)
    taken = [next(records) for _ in range(80)]
    rest = list(finished_records(store.connection, batch_id, start=taken[-1].after))
    assert sorted(record.index for record in [*taken, *rest]) == list(range(120))


def test_following_ends_with_the_batch(store: Store, tmp_path: Path) -> None:
    """A batch cancelled while it is followed: the files end up with every line, the summary with the codes."""
    batch_id = make_batch(store, prompts(3))
    steps = iter([lambda: work(store, batch_id, only=[1]), lambda: cancel(store, batch_id)])
    out = tmp_path / "out.jsonl"
    batch, tally = follow_results(store, batch_id, Destination(out), sleep=lambda _seconds: next(steps)() and None)
    assert (batch.status, tally.lines, tally.failures) == ("cancelled", 3, {"cancelled": 2})
    assert len(out.read_bytes().splitlines()) == batch.completed == 1
    assert len((tmp_path / "out.errors.jsonl").read_bytes().splitlines()) == batch.failed == 2


@pytest.mark.parametrize(("status", "code"), [("cancelled", "batch_cancelled"), ("expired", "batch_expired")])
def test_openai_envelopes_name_the_reason(store: Store, status: str, code: str) -> None:
    """OpenAI's codes, as a top-level error without a response."""
    batch_id = make_batch(store, [{"custom_id": "q", "body": {"prompt": "b"}}])
    if status == "expired":
        due(store, batch_id)
        assert expire_due(store) == [batch_id]
    else:
        cancel(store, batch_id)
    stream = io.BytesIO()
    destination = Destination(fmt="openai")
    with Output(destination, renderer(destination, store, store.batch(batch_id)), stream) as output:
        for record in ordered_records(store.connection, batch_id):
            output.put(record)
    wrapped = orjson.loads(stream.getvalue())
    assert (wrapped["custom_id"], wrapped["response"], wrapped["error"]["code"]) == ("q", None, code)


def test_expiry_is_by_the_servers_clock(store: Store) -> None:
    """The time is set at commit, shown, and the batch ends once it is up, whoever looks; counts are exact."""
    seconds, _ = store.connection.time()
    batch_id = make_batch(store, prompts(3), expires_in=3600.0)
    shown = store.batch(batch_id)
    assert seconds + 3599 < shown.times["expires"] < seconds + 3700
    assert "expires_at" in shown.as_dict(store.now())
    late = Store(store.connection, now=lambda: shown.times["expires"] + 10)
    assert expire_due(store) == []
    assert current(late, batch_id).status == "in_progress"  # a clock that is fast ends nothing
    work(store, batch_id, only=[1])
    due(store, batch_id)
    slow = Store(store.connection, now=lambda: 0.0)
    assert current(slow, batch_id).status == "expired"
    batch = store.batch(batch_id)
    assert (batch.completed, batch.failed) == (1, 2)
    assert failed(ordered(store, batch_id)) == {0: "expired", 2: "expired"}
    assert store.connection.zcard(EXPIRING) == 0


def test_upkeep_expires_batches_that_run_and_no_others(store: Store) -> None:
    """One that was completed or cancelled in time stays so."""
    batches = [make_batch(store, prompts(1), expires_in=3600.0) for _ in range(3)]
    work(store, batches[0])
    cancel(store, batches[1])
    for batch_id in batches:
        due(store, batch_id)
    upkeep(store)
    assert [store.batch(batch_id).status for batch_id in batches] == ["completed", "cancelled", "expired"]
    assert store.connection.zcard(EXPIRING) == 0


@pytest.mark.parametrize("lifetime", [0.0, -1.0, float("nan"), float("inf")])
def test_lifetimes_that_make_no_sense_are_refused(store: Store, lifetime: float) -> None:
    """Before anything is enqueued."""
    with pytest.raises(RefusedError, match="expires after a number of seconds above 0"):
        make_batch(store, prompts(1), expires_in=lifetime)
    assert store.batches() == []


def test_rates_and_times_end_with_the_batch(store: Store) -> None:
    """Lines that were not run are no speed."""
    now = [1000.0]
    clocked = Store(store.connection, now=lambda: now[0])
    batch_id = make_batch(clocked, prompts(100))
    work(clocked, batch_id, only=range(10))
    now[0] += 10
    cancel(clocked, batch_id)
    rates = clocked.batch(batch_id).rates(now[0] + 500)
    assert (rates["lines_per_second"], rates["eta_s"]) == (1.0, None)
