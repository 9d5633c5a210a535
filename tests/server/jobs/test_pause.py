"""Batches that are held back, begin later or change their priority: nothing of them runs out of turn, none is lost."""

from __future__ import annotations

import orjson
import pytest

from jobs.attempt import Standing
from jobs.batch import queue_name
from jobs.errors import BatchNotFoundError, BatchPausedError, RefusedError
from jobs.shard import Group
from jobs.store.cancel import cancel, expire_due
from jobs.store.keys import EXPIRING, KEEPING, STARTING, BatchKeys
from jobs.store.maintenance import upkeep
from jobs.store.pause import pause, prioritise, resume_batch, start_due
from jobs.store.retry import retry
from jobs.store.store import NewBatch, Store
from submit.results.read import ordered_records
from submit.status.pool_pause import pause_pool, pause_workers, paused_workers, pool_paused, resume_pool, resume_workers
from tests.pool import MODEL, full, make_batch, prompts, watched, work
from worker.service import Service
from worker.shards.claimed import State

QUEUE = queue_name(MODEL, "normal")
HIGH = queue_name(MODEL, "high")


def queued(store: Store, queue: str = QUEUE) -> list[str]:
    return [item.decode() for item in store.connection.lrange(f"rq:queue:{queue}", 0, -1)]


def come(store: Store, batch_id: str) -> None:
    """The batch's time has come."""
    store.connection.hset(BatchKeys(batch_id).info, "starts_at", 1.0)
    store.connection.zadd(STARTING, {batch_id: 1.0})


def expired(store: Store, batch_id: str) -> None:
    """The batch's time is up."""
    store.connection.hset(BatchKeys(batch_id).info, "expires_at", 1.0)
    store.connection.zadd(EXPIRING, {batch_id: 1.0})


def test_a_paused_batch_waits_outside_the_queues(store: Store) -> None:
    """Others go on; resumed, its shards are queued in their order, behind what came meanwhile."""
    held, other = make_batch(store, prompts(120)), make_batch(store, prompts(1))
    assert pause(store, held)
    assert not pause(store, held)
    assert queued(store) == [f"{other}-0"]
    assert (store.batch(held).status, store.batch(held).paused) == ("in_progress", True)
    assert resume_batch(store, held)
    assert not resume_batch(store, held)
    assert queued(store) == [f"{other}-0", *(f"{held}-{number}" for number in range(3))]
    assert not store.batch(held).paused
    work(store, held)
    assert store.batch(held).status == "completed"


def test_a_shard_that_was_taken_just_before_a_pause_pends_too(store: Store, service: Service) -> None:
    """It goes back to where its batch is held, and no attempt at it is counted."""
    batch_id = make_batch(store, prompts(60))
    taken = service.rq.take([QUEUE])
    assert taken is not None
    pause(store, batch_id)
    with pytest.raises(BatchPausedError):
        store.claim(batch_id, 0, "life")
    assert service.claimer.claim(taken, Group(MODEL), 1) is None
    assert (list(service.held), queued(store)) == ([], [])
    resume_batch(store, batch_id)
    assert queued(store) == [f"{batch_id}-0", f"{batch_id}-1"]


def test_a_worker_is_told_of_a_pause_and_hands_back(store: Store, service: Service) -> None:
    """The shard it holds stands as paused; handed back it pends, with its finished line, and runs on when resumed."""
    batch_id = make_batch(store, prompts(3))
    assert service._take_one()
    [held] = service.held
    pause(store, batch_id)
    assert store.standing([held.attempt], store.connection) == [Standing.PAUSED]
    service.heartbeat._beat()
    assert held.state is State.WITHDRAWING
    assert service._return(held)
    assert queued(store) == []
    resume_batch(store, batch_id)
    assert queued(store) == [f"{batch_id}-0"]
    attempt = store.claim(batch_id, 0, "another life")
    assert attempt is not None
    assert (attempt.tries, attempt.suspicions) == ({}, {})


def test_what_recovery_queues_of_a_paused_batch_does_not_run(store: Store, service: Service) -> None:
    """A dead worker's shard goes to where its batch is held."""
    batch_id = make_batch(store, prompts(3))
    watched(store)
    assert service._take_one()
    pause(store, batch_id)
    service.held._shards.clear()
    store.connection.zadd(f"rq:wip:{QUEUE}", dict.fromkeys(store.connection.zrange(f"rq:wip:{QUEUE}", 0, -1), 1))
    service.rq.recover()
    assert (queued(store), service._take_one()) == ([], False)
    resume_batch(store, batch_id)
    work(store, batch_id)
    assert store.batch(batch_id).status == "completed"


def test_paused_batches_end_like_others(store: Store) -> None:
    """Cancelled or expired they are over and leave no job behind; a retry runs them, paused no more."""
    for end in ("cancelled", "expired"):
        batch_id = make_batch(store, prompts(60))
        pause(store, batch_id)
        if end == "cancelled":
            cancel(store, batch_id)
        else:
            expired(store, batch_id)
            assert expire_due(store) == [batch_id]
        batch = store.batch(batch_id)
        assert (batch.status, batch.paused, batch.failed) == (end, False, 60)
        assert not list(store.connection.scan_iter(f"rq:job:{batch_id}*"))
        retry(store, batch_id)
        assert queued(store) == [f"{batch_id}-0", f"{batch_id}-1"]
        work(store, batch_id)
        store.connection.delete(f"rq:queue:{QUEUE}")
        assert store.batch(batch_id).completed == 60


@pytest.mark.parametrize("act", [pause, resume_batch, lambda store, batch: prioritise(store, batch, "low")])
def test_what_is_over_or_not_yet_there_is_refused(store: Store, act: object) -> None:
    """With a reason: done, being submitted, about to be retried, unknown."""
    assert callable(act)
    done = make_batch(store, prompts(1))
    work(store, done)
    store.create(NewBatch("b_new", None, "a", "normal", {}, {}))
    with pytest.raises(RefusedError, match="is completed already"):
        act(store, done)
    with pytest.raises(RefusedError, match="still being submitted"):
        act(store, "b_new")
    with pytest.raises(BatchNotFoundError):
        act(store, "b_none")
    if act is not resume_batch:
        retried = make_batch(store, prompts(1))
        store.connection.zadd("promptmill:uploading", {retried: store.server_time()})
        with pytest.raises(RefusedError, match="about to be retried"):
            act(store, retried)


def test_a_batch_begins_at_its_time_by_the_servers_clock(store: Store) -> None:
    """Not before, once, and whoever does upkeep begins it; it expires so long after its beginning."""
    batch_id = make_batch(store, prompts(60), start_in=3600.0, expires_in=60.0)
    batch = store.batch(batch_id)
    assert batch.times["starts"] == pytest.approx(store.server_time() + 3600, abs=5)
    assert batch.times["expires"] == pytest.approx(batch.times["starts"] + 60, abs=0.01)
    assert (start_due(store), queued(store)) == ([], [])
    ahead = Store(store.connection, server_time=lambda: store.server_time() + 7200)
    assert (start_due(ahead), queued(store)) == ([], [])  # this machine's clock does not count
    come(store, batch_id)
    store.connection.hset(BatchKeys(batch_id).info, "in_progress_at", 5.0)
    upkeep(store)
    assert queued(store) == [f"{batch_id}-0", f"{batch_id}-1"]
    assert "starts" not in store.batch(batch_id).times
    assert store.batch(batch_id).times["in_progress"] > 5.0  # its lines waited from now on only
    come(store, batch_id)
    assert start_due(store) == [batch_id] or queued(store) == [f"{batch_id}-0", f"{batch_id}-1"]
    assert len(queued(store)) == 2


def test_paused_before_its_time_a_batch_waits_for_both(store: Store) -> None:
    """Whichever comes last begins it."""
    first, second = (make_batch(store, prompts(1), start_in=3600.0) for _ in range(2))
    pause(store, first)
    come(store, first)
    start_due(store)
    assert queued(store) == []
    resume_batch(store, first)
    assert queued(store) == [f"{first}-0"]
    pause(store, second)
    resume_batch(store, second)
    assert queued(store) == [f"{first}-0"]
    come(store, second)
    start_due(store)
    assert queued(store) == [f"{first}-0", f"{second}-0"]


def test_a_batch_that_was_cancelled_before_its_time_never_begins(store: Store) -> None:
    """All its lines are cancelled, and its place in the list is gone."""
    batch_id = make_batch(store, prompts(2), start_in=3600.0)
    cancel(store, batch_id)
    assert store.connection.zcard(STARTING) == 0
    assert [orjson.loads(record.raw)["error"]["code"] for record in ordered_records(store.connection, batch_id)] == [
        "cancelled",
        "cancelled",
    ]


def test_foreign_entries_stop_no_other(store: Store) -> None:
    """Among batches that wait for their time, or for their removal."""
    batch_id = make_batch(store, prompts(1), start_in=3600.0)
    come(store, batch_id)
    for listed in (STARTING, KEEPING):
        store.connection.zadd(listed, {"b_none": 0.5, b"\xff": 0.6, "promptmill:x:y": 0.7})
    store.connection.set(BatchKeys("b_wrong").info, "no hash")
    store.connection.zadd(STARTING, {"b_wrong": 0.1})
    upkeep(store)
    assert queued(store) == [f"{batch_id}-0"]
    store.connection.set("x", 1)
    store.connection.delete(STARTING, KEEPING)
    store.connection.set(STARTING, "no set")
    upkeep(store)


def test_priority_moves_what_waits(store: Store) -> None:
    """In its order, behind what is there, with RQ's books in agreement; others' shards stay."""
    moved, other, urgent = make_batch(store, prompts(120)), make_batch(store, prompts(1)), ""
    urgent = make_batch(store, prompts(1), priority="high")
    assert prioritise(store, moved, "high") == "normal"
    assert queued(store) == [f"{other}-0"]
    assert queued(store, HIGH) == [f"{urgent}-0", *(f"{moved}-{number}" for number in range(3))]
    assert store.batch(moved).priority == "high"
    assert store.connection.hget(f"rq:job:{moved}-0", "origin") == HIGH.encode()
    assert prioritise(store, moved, "normal") == "high"
    assert queued(store) == [f"{other}-0", *(f"{moved}-{number}" for number in range(3))]
    assert prioritise(store, moved, "normal") == "normal"
    with pytest.raises(RefusedError, match="one of high, normal, low"):
        prioritise(store, moved, "urgent")
    work(store, moved)
    assert store.batch(moved).status == "completed"


def test_a_paused_batch_changes_its_priority_too(store: Store) -> None:
    """It comes back in the queue of the new one; a cancelled one leaves nothing in either."""
    batch_id = make_batch(store, prompts(60))
    pause(store, batch_id)
    prioritise(store, batch_id, "high")
    assert (queued(store), queued(store, HIGH)) == ([], [])
    resume_batch(store, batch_id)
    assert queued(store, HIGH) == [f"{batch_id}-0", f"{batch_id}-1"]
    cancel(store, batch_id)
    assert (queued(store), queued(store, HIGH)) == ([], [])


def test_a_held_shard_goes_back_to_the_queue_of_its_new_priority(store: Store, service: Service) -> None:
    """And RQ's job says so."""
    batch_id = make_batch(store, prompts(3))
    assert service._take_one()
    [held] = service.held
    prioritise(store, batch_id, "high")
    service._return(held)
    assert (queued(store), queued(store, HIGH)) == ([], [f"{batch_id}-0"])
    assert store.connection.hget(f"rq:job:{batch_id}-0", "origin") == HIGH.encode()


def test_a_dead_workers_shard_goes_to_the_queue_of_its_new_priority(store: Store, service: Service) -> None:
    """Recovery looks where the batch is by now, as a hand-back does."""
    batch_id = make_batch(store, prompts(3))
    watched(store)
    assert service._take_one()
    prioritise(store, batch_id, "high")
    store.connection.zadd(f"rq:wip:{QUEUE}", dict.fromkeys(store.connection.zrange(f"rq:wip:{QUEUE}", 0, -1), 1))
    service.rq.recover()
    assert (queued(store), queued(store, HIGH)) == ([], [f"{batch_id}-0"])


def test_a_retry_takes_leases_of_older_priorities_back(store: Store, service: Service) -> None:
    """A shard held from its former queue is not queued again when that lease runs out, and nobody is charged."""
    batch_id = make_batch(store, prompts(3))
    watched(store)
    assert service._take_one()
    prioritise(store, batch_id, "high")
    cancel(store, batch_id)
    retry(store, batch_id)
    assert store.connection.zcard(f"rq:wip:{QUEUE}") == 0
    service.rq.recover()
    assert (queued(store), queued(store, HIGH)) == ([], [f"{batch_id}-0"])


def test_very_long_queues_are_searched_too(store: Store) -> None:
    """Whatever is before and behind a batch's jobs there stays as it was."""
    first, batch_id = make_batch(store, prompts(1)), make_batch(store, prompts(60))
    others = [f"b_other-{number}" for number in range(120_000)]
    for start in range(0, len(others), 10_000):
        store.connection.rpush(f"rq:queue:{QUEUE}", *others[start : start + 10_000])
    prioritise(store, batch_id, "high")
    assert queued(store, HIGH) == [f"{batch_id}-0", f"{batch_id}-1"]
    assert queued(store) == [f"{first}-0", *others]
    pause(store, first)
    assert queued(store) == others


def test_a_queue_of_another_type_loses_no_job(store: Store) -> None:
    """What cannot be queued goes on pending, and is queued once the key is gone and the batch is paused and resumed."""
    store.connection.set(f"rq:queue:{QUEUE}", "no list")
    batch_id = make_batch(store, prompts(60))
    store.connection.delete(f"rq:queue:{QUEUE}")
    pause(store, batch_id)
    resume_batch(store, batch_id)
    assert queued(store) == [f"{batch_id}-0", f"{batch_id}-1"]


def test_a_full_server_can_be_paused(store: Store) -> None:
    """The pool, a worker and a batch: to pause is what one wants to do then."""
    batch_id = make_batch(store, prompts(60))
    with full(store):
        assert pause_pool(store)
        assert pause_workers(store, ["mini"]) == ["mini"]
        assert prioritise(store, batch_id, "high") == "normal"
        assert pause(store, batch_id)
    resume_batch(store, batch_id)
    assert queued(store, HIGH) == [f"{batch_id}-0", f"{batch_id}-1"]


def test_what_takes_long_to_submit_begins_at_its_time(store: Store) -> None:
    """The time counts from when it was ordered: one that has passed by the end of the upload begins at once."""
    late = make_batch(store, prompts(1), start_in=1e-6)
    assert queued(store) == [f"{late}-0"]
    assert "starts" not in store.batch(late).times


def test_workers_and_the_pool_pause(store: Store, service: Service) -> None:
    """By the process, by the name of the host, or all; a foreign key under those names stops nobody."""
    look = service.pause.look
    assert not look(store.connection)
    name, host = service.name, "mini"
    assert pause_workers(store, [name, "elsewhere"]) == [name, "elsewhere"]
    assert pause_workers(store, [name]) == []
    assert look(store.connection)
    assert paused_workers(store) == sorted(["elsewhere", name])
    assert resume_workers(store, [name, "none"]) == [name]
    assert not look(store.connection)
    pause_workers(store, [host])
    assert look(store.connection)
    resume_workers(store, [host])
    assert pause_pool(store)
    assert not pause_pool(store)
    assert look(store.connection)
    assert pool_paused(store)
    assert resume_pool(store)
    assert not resume_pool(store)
    store.connection.delete("promptmill:paused")
    store.connection.set("promptmill:paused", "no hash")
    assert not look(store.connection)
    with pytest.raises(RefusedError):
        pause_workers(store, ["a"])
    service.rq.start()  # nor is a worker kept from starting by it
    service.rq.end()
