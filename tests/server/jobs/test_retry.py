"""Retrying: failed lines run again in place, whoever dies in between; each line has one record, and counts agree."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jobs.batch import queue_name
from jobs.errors import LineError, RefusedError, StaleAttemptError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store import retry as retrying
from jobs.store.cancel import cancel
from jobs.store.keys import UPLOADING
from jobs.store.maintenance import upkeep
from jobs.store.retry import resume, retry
from jobs.store.store import UPLOAD_LEASE_S, Store
from submit import Client
from submit.results.read import finished_records, ordered_records
from tests.pool import MODEL, echo, make_batch, prompts, work
from worker.rq.worker import ShardWorker

QUEUE = queue_name(MODEL, "normal")


def failing(*indices: int) -> Callable[[Job], Sequence[Choice]]:
    """An answer to each line but these."""

    def answer(job: Job) -> Sequence[Choice]:
        if job.index in indices:
            raise LineError("context_length_exceeded", "prompt", "too long")
        return echo(job)

    return answer


def queued(store: Store) -> list[str]:
    return [job.decode() for job in store.connection.lrange(f"rq:queue:{QUEUE}", 0, -1)]


def taken(store: Store) -> list[str]:
    """Empties the queue, as workers do."""
    jobs = queued(store)
    store.connection.delete(f"rq:queue:{QUEUE}")
    return jobs


def agreed(store: Store, batch_id: str) -> dict[int, bool]:
    """Whether each line succeeded; both orders have the same lines, once, and the batch counts them so."""
    found = {record.index: record.ok for record in ordered_records(store.connection, batch_id)}
    finished = [record.index for record in finished_records(store.connection, batch_id)]
    batch = store.batch(batch_id)
    assert sorted(finished) == sorted(found)
    assert (batch.completed, batch.failed) == (sum(found.values()), len(found) - sum(found.values()))
    return found


def done(store: Store, lines: int = 120, *failures: int, **order: Any) -> str:
    """A batch whose lines all ran, some of them in vain; its id."""
    batch_id = make_batch(store, prompts(lines), **order)
    taken(store)
    work(store, batch_id, answer=failing(*failures))
    assert store.batch(batch_id).status == "completed"
    return batch_id


def test_only_failed_lines_run_again(store: Store) -> None:
    """In the same batch and place; the others' records stay as they were, shards without failures stay shut."""
    batch_id = done(store, 120, 3, 60, 61)
    before = {record.index: record.raw for record in ordered_records(store.connection, batch_id)}
    assert retry(store, batch_id) == 3
    batch = store.batch(batch_id)
    assert (batch.status, batch.completed, batch.failed, "retried" in batch.times) == ("in_progress", 117, 0, True)
    assert "completed" not in batch.times
    assert queued(store) == [f"{batch_id}-0", f"{batch_id}-1"]
    assert set(agreed(store, batch_id)) == set(range(120)) - {3, 60, 61}
    work(store, batch_id)
    assert store.batch(batch_id).status == "completed"
    assert all(agreed(store, batch_id).values())
    after = {record.index: record.raw for record in ordered_records(store.connection, batch_id)}
    assert {index for index in before if before[index] != after[index]} == {3, 60, 61}
    assert [record.index for record in finished_records(store.connection, batch_id)][-3:] == [3, 60, 61]


def test_lines_may_fail_again_and_be_retried_again(store: Store) -> None:
    """As often as it takes."""
    batch_id = done(store, 10, 1, 2, 3)
    for left in ([2, 3], [3], []):
        assert retry(store, batch_id) == len(left) + 1
        work(store, batch_id, answer=failing(*left))
        assert [index for index, ok in agreed(store, batch_id).items() if not ok] == left
    assert retry(store, batch_id) == 0
    assert store.batch(batch_id).status == "completed"


@pytest.mark.parametrize("begun", [(), range(30), range(60), range(100)])
def test_cancelled_batches_go_on(store: Store, begun: Sequence[int]) -> None:
    """Lines that never ran, and those that failed before the end."""
    batch_id = make_batch(store, prompts(100))
    work(store, batch_id, only=begun, answer=failing(7, 55))
    if len(begun) == 100:
        assert retry(store, batch_id) == 2
    else:
        cancel(store, batch_id)
        assert retry(store, batch_id) == 100 - len([index for index in begun if index not in (7, 55)])
    assert store.batch(batch_id).failed == 0
    agreed(store, batch_id)
    work(store, batch_id)
    assert store.batch(batch_id).status == "completed"
    assert list(agreed(store, batch_id).values()) == [True] * 100


def test_a_cancelled_retry_can_be_retried(store: Store) -> None:
    """Its lines fail as cancelled, and wait again."""
    batch_id = done(store, 120, 3, 110)
    retry(store, batch_id)
    work(store, batch_id, only=[3])
    cancel(store, batch_id)
    assert [index for index, ok in agreed(store, batch_id).items() if not ok] == [110]
    assert store.batch(batch_id).unrun == 1
    assert retry(store, batch_id) == 1
    work(store, batch_id)
    assert all(agreed(store, batch_id).values())


def test_refused_lines_are_not_retried(store: Store) -> None:
    """Nothing would come of them; a batch without other failures stays as it is."""
    batch_id = make_batch(store, [*prompts(2), {"prompt": 5}], on_bad_line="skip")
    work(store, batch_id, answer=failing(0))
    assert retry(store, batch_id) == 1
    work(store, batch_id)
    assert agreed(store, batch_id) == {0: True, 1: True, 2: False}
    assert retry(store, batch_id) == 0
    assert (store.batch(batch_id).status, queued(store)[2:]) == ("completed", [])


def test_a_running_batch_is_not_retried(store: Store) -> None:
    """Its lines may still be under way."""
    batch_id = make_batch(store, prompts(60))
    work(store, batch_id, only=[0], answer=failing(0))
    with pytest.raises(RefusedError, match="retry it when it is done"):
        retry(store, batch_id)
    assert agreed(store, batch_id) == {0: False}


class DiedError(Exception):
    """The client is killed here."""


@pytest.mark.parametrize("status", ["completed", "cancelled"])
@pytest.mark.parametrize("steps", range(9))
@pytest.mark.parametrize("heir", ["retry", "upkeep"])
def test_a_killed_retry_is_gone_on_with(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: str, steps: int, heir: str
) -> None:
    """Killed between any two steps: no line is lost, no count wrong, and the next one to look finishes it."""
    batch_id = make_batch(store, prompts(150))
    taken(store)
    work(store, batch_id, only=range(150 if status == "completed" else 120), answer=failing(2, 70, 110))
    if status == "cancelled":
        cancel(store, batch_id)
    real, left = Store.step, steps

    def dying(store: Store, name: str, *arguments: Any) -> Any:
        nonlocal left
        if name.startswith("retry."):
            if left == 0:
                raise DiedError
            left -= 1
        return real(store, name, *arguments)

    monkeypatch.setattr(Store, "step", dying)
    try:
        retry(store, batch_id)
        finished = True
    except DiedError:
        finished = False
    assert finished == (steps >= (8 if status == "completed" else 7))
    monkeypatch.setattr(Store, "step", real)
    records = agreed(store, batch_id)
    assert len(records) + store.batch(batch_id).total - store.batch(batch_id).finished == 150
    assert queued(store) == ([f"{batch_id}-{number}" for number in range(3)] if finished else [])
    if heir == "retry" and not finished:
        retry(store, batch_id)
    elif steps > 0:
        upkeep(Store(store.connection, server_time=lambda: time.time() + UPLOAD_LEASE_S + 5))
    else:
        retry(store, batch_id)
    assert store.connection.zcard(UPLOADING) == 0
    assert queued(store) == [f"{batch_id}-{number}" for number in range(3)]
    work(store, batch_id)
    assert (store.batch(batch_id).status, set(agreed(store, batch_id).values())) == ("completed", {True})


def test_a_retry_in_progress_is_left_alone_by_upkeep(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its client shows signs of life, nobody else goes on with it, and no worker gets a part of it."""
    batch_id = done(store, 60, 1)
    real = retrying._reopen

    def looked_at(*arguments: Any) -> bool:
        upkeep(store)
        assert resume(store) == []
        assert queued(store) == []
        return real(*arguments)

    monkeypatch.setattr(retrying, "_reopen", looked_at)
    retry(store, batch_id)
    assert queued(store) == [f"{batch_id}-0"]


def test_cancel_in_the_middle_of_a_retry_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is queued; the lines taken back are cancelled, the others as they were."""
    batch_id = done(store, 120, 3, 110)
    real = retrying._reopen

    def cancelled(*arguments: Any) -> bool:
        reopened = real(*arguments)
        if store.batch(batch_id).status == "in_progress":
            cancel(store, batch_id)
        return reopened

    monkeypatch.setattr(retrying, "_reopen", cancelled)
    with pytest.raises(RefusedError, match="was cancelled while it was retried"):
        retry(store, batch_id)
    monkeypatch.undo()
    assert queued(store) == []
    assert not store.connection.exists(f"rq:job:{batch_id}-0")  # which was to be queued
    assert [index for index, ok in agreed(store, batch_id).items() if not ok] == [3, 110]
    assert retry(store, batch_id) == 2
    work(store, batch_id)
    assert all(agreed(store, batch_id).values())


@pytest.mark.parametrize("seed", range(12))
def test_counts_hold_whatever_happens(store: Store, seed: int) -> None:
    """Work, failures, cancels, expiries and retries in any order: what is counted is what is read, line by line."""
    chance = random.Random(seed)
    batch_id = make_batch(store, [*prompts(130), {"prompt": 5}], on_bad_line="skip")
    for _ in range(25):
        batch = store.batch(batch_id)
        if batch.done:
            assert len(agreed(store, batch_id)) == 131
            retry(store, batch_id)
        elif chance.random() < 0.3:
            cancel(store, batch_id)
        else:
            some = chance.sample(range(130), chance.choice([10, 60, 130]))
            work(store, batch_id, only=some, answer=failing(*chance.sample(range(130), 20)))
        agreed(store, batch_id)
    while (batch := store.batch(batch_id)).status != "completed" or batch.failed > 1:
        if batch.done:
            retry(store, batch_id)
        work(store, batch_id)
    assert [index for index, ok in agreed(store, batch_id).items() if not ok] == [130]


def test_attempts_from_before_are_stale(store: Store) -> None:
    """A worker that did not hear of the end writes nothing into the retry."""
    batch_id = make_batch(store, prompts(2))
    zombie = store.claim(batch_id, 0)
    assert zombie is not None
    cancel(store, batch_id)
    retry(store, batch_id)
    with pytest.raises(StaleAttemptError):
        store.write(zombie, [])
    with pytest.raises(StaleAttemptError):
        store.finish(zombie, 2)


def test_a_late_acknowledgement_leaves_the_new_job(store: Store) -> None:
    """A worker that finished the last line acknowledges after the retry has queued its shard again."""
    batch_id = make_batch(store, prompts(2))
    worker = ShardWorker(store, [QUEUE], "mini.1")
    shard = worker.take([QUEUE])
    assert shard is not None
    lease = worker.begin(shard)
    work(store, batch_id, answer=failing(1))
    retry(store, batch_id)
    worker.acknowledge(lease, 1.0)
    again = worker.take([QUEUE])
    assert again is not None
    assert (again.batch_id, again.number) == (batch_id, 0)


def test_attempts_of_lines_are_remembered(store: Store) -> None:
    """By index, for the count to go on; they no longer speak against the line."""
    batch_id = done(store, 4, 2)
    retry(store, batch_id)
    attempt = store.claim(batch_id, 0)
    assert attempt is not None
    assert attempt.tries == {2: 1}
    assert attempt.failures(2) == 0


def test_rates_are_of_the_retry_alone(store: Store) -> None:
    """What was finished before says nothing about how long the rest takes."""
    now = [1000.0]
    clocked = Store(store.connection, now=lambda: now[0])
    batch_id = make_batch(clocked, prompts(100))
    work(clocked, batch_id, answer=failing(*range(20)))
    now[0] += 10_000
    retry(clocked, batch_id)
    assert clocked.batch(batch_id).rates(now[0])["lines_per_second"] is None
    work(clocked, batch_id, only=range(5))
    now[0] += 5
    rates = clocked.batch(batch_id).rates(now[0])
    assert rates == {
        "lines_per_second": 1.0, "completion_tokens_per_second": 20.0, "scored_tokens_per_second": None, "eta_s": 15.0,
    }  # fmt: skip


def test_a_private_pools_adapters_queues_and_priority_are_kept(store: Store) -> None:
    """Jobs go back to the queues they came from."""
    lines = [{"prompt": "a"}, {"prompt": "a", "adapter_path": "lora"}, {"prompt": "a", "model": "other"}]
    batch_id = make_batch(store, lines, priority="high", pool="mine")
    work(store, batch_id, answer=failing(0, 1, 2))
    queues = [f"promptmill:high:mine:{key}" for key in (MODEL, f"{MODEL}+lora", "other")]
    before = [store.connection.lrange(f"rq:queue:{queue}", 0, -1) for queue in queues]
    retry(store, batch_id)
    assert [store.connection.lrange(f"rq:queue:{queue}", 0, -1) for queue in queues] == before
    assert [len(jobs) for jobs in before] == [1, 1, 1]


def test_nothing_is_left_of_a_discarded_batch(store: Store) -> None:
    """What a retry keeps goes with the batch."""
    batch_id = done(store, 60, 1)
    retry(store, batch_id)
    store.connection.delete(f"rq:queue:{QUEUE}", "rq:queues")
    store.discard(batch_id)
    assert store.connection.keys("*") == []


def test_client_cancels_and_retries(server_url: str, store: Store) -> None:
    """By the batch's handle: cancelled lines are errors, and results after a retry."""
    with Client(server_url) as client:
        batch = client.submit(prompts(3), model=MODEL, expires_in=3600)
        work(store, batch.id, only=[0])
        ended = batch.cancel()
        assert (ended.status, ended.completed, ended.failed) == ("cancelled", 1, 2)
        assert [error["error"]["code"] for error in batch.errors(follow=True)] == ["cancelled"] * 2
        with pytest.raises(LineError):
            client.submit(prompts(1), model=MODEL, expires=5)
        assert batch.retry() == 2
        work(store, batch.id)
        assert [record["id"] for record in batch.results(follow=True)] == ["row-0", "row-1", "row-2"]
        assert list(batch.errors()) == []
