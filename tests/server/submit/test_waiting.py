"""Why batches wait, by what lies in the queues that nobody serves, and whether the pool is paused."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from jobs.shard import Group
from jobs.store.store import Store
from submit.status import workers as module
from submit.status.pool_pause import pause_pool, pool_known_paused
from submit.status.waiting import BatchOutlook
from submit.status.worker_state import WorkerState, parse_state
from submit.status.workers import Workers
from tests.pool import MODEL, make_batch, prompts, publish
from worker.service import Service

MINE, OTHERS = f"promptmill:normal:{MODEL}", "promptmill:normal:other"


def two_models(store: Store) -> str:
    """A batch of a line for each of two models."""
    first, second = prompts(2)
    return make_batch(store, [first, {**second, "model": "other"}])


def why(store: Store, batch: str) -> str | None:
    workers = Workers(store.connection)
    states = workers.read()
    return BatchOutlook(store.batch(batch), workers.queues_of(batch, states), states).why_waiting


def test_a_model_that_nobody_serves_is_said_on_a_busy_pool(store: Store) -> None:
    """However busy the workers are with other batches."""
    batch = two_models(store)
    line = {"batch_id": "b_x", "index": 1, "id": "row-1", "phase": "decode"}
    publish(store, "mini.1", queues=[MINE], state="busy", in_flight=[line])
    assert why(store, batch) == "waiting: no worker serves other"
    publish(store, "studio.1", queues=[OTHERS])
    assert why(store, batch) == "waiting: workers are busy with other batches"


@pytest.mark.parametrize("place", ["queue", "intermediate", "held", "nowhere"])
def test_a_queue_without_a_shard_of_the_batch_is_not_waited_for(store: Store, place: str) -> None:
    """What its worker finished before it went leaves nothing to wait for; a shard that it took to its grave does."""
    batch, behind = two_models(store), make_batch(store, prompts(3), defaults={"model": "other"})
    publish(store, "mini.1", queues=[MINE])
    shard = next(
        item for item in store.connection.lrange(f"rq:queue:{OTHERS}", 0, -1) if item.startswith(batch.encode())
    )
    if place != "queue":
        store.connection.lrem(f"rq:queue:{OTHERS}", 1, shard)
    if place == "intermediate":
        store.connection.rpush(f"rq:queue:{OTHERS}:intermediate", shard)
    if place == "held":
        store.connection.zadd(f"rq:wip:{OTHERS}", {shard + b":abc": 1})
    assert why(store, batch) == (None if place == "nowhere" else "waiting: no worker serves other")
    assert why(store, behind) == "waiting: no worker serves other"


def test_a_long_queue_is_not_read_through(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken to hold shards of every batch that went there; and so is what is no queue at all."""
    batch = two_models(store)
    publish(store, "mini.1", queues=[MINE])
    store.connection.delete(f"rq:queue:{OTHERS}")
    assert why(store, batch) is None
    store.connection.rpush(f"rq:queue:{OTHERS}", *[f"b_x-{number}" for number in range(5)])
    assert why(store, batch) is None
    monkeypatch.setattr(module, "MOST_LOOKED_AT", 2)
    assert why(store, batch) == "waiting: no worker serves other"
    monkeypatch.undo()
    store.connection.delete(f"rq:queue:{OTHERS}")
    store.connection.set(f"rq:queue:{OTHERS}", "none of RQ's")
    assert why(store, batch) == "waiting: no worker serves other"


def test_a_pool_is_paused_as_far_as_one_may_know(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server does not say, nothing is said."""
    assert not pool_known_paused(store)
    pause_pool(store)
    assert pool_known_paused(store)

    def refused(*_keys: Any) -> int:
        raise NoPermissionError("no permissions to access a key")

    monkeypatch.setattr(store.connection, "exists", refused)
    assert not pool_known_paused(store)


def test_a_worker_is_starting_until_it_looks_for_work(store: Store, service: Service) -> None:
    """It says so itself, and the batch that it will serve does too; then it is idle."""

    def published() -> WorkerState:
        service.heartbeat._beat()
        state = parse_state(store.connection.get(f"promptmill:worker:{service.name}") or b"")
        assert state is not None
        return state

    batch = make_batch(store, prompts(1))
    assert published().effective_state == "starting"
    assert why(store, batch) == "waiting: its worker is starting"
    service.pause.look(store.connection)
    assert published().effective_state == "idle"
    service.compute.loading = Group(MODEL)
    assert (published().effective_state, published().model) == ("loading", MODEL)
    assert why(store, batch) == f"loading {MODEL}"
