"""Prompts that Redis has lost: their lines cannot run, and each ends in one error record that says so."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from jobs.errors import LineError, RefusedError
from jobs.lines.line import Defaults, Job
from jobs.record import Choice
from jobs.shard import Group
from jobs.store.keys import BatchKeys
from jobs.store.lost_lines import end_lost_lines, lost_lines
from jobs.store.pause import pause
from jobs.store.retry import retry
from jobs.store.store import Store
from submit.input.reader import PromptObjects
from submit.results.read import ordered_records
from submit.upload.submitter import Order, submit
from tests.pool import MODEL, make_batch, prompts, work
from worker.service import Service, ServiceSettings


def records(store: Store, batch_id: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.raw) for record in ordered_records(store.connection, batch_id)]


def test_lost_prompts_end_in_error_records(store: Store, service: Service) -> None:
    """The batch does not hang: the lines of the lost shard fail with a message that says what to do, the others run."""
    batch_id = make_batch(store, prompts(120))
    store.connection.delete(BatchKeys(batch_id).payload(1))
    work(store, batch_id)
    while service._take_one():
        pass
    batch = store.batch(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 70, 50)
    found = records(store, batch_id)
    assert [record["index"] for record in found] == list(range(120))
    failed = [record for record in found if "error" in record]
    assert [(record["index"], record["id"]) for record in failed] == [(n, f"line-{n + 1}") for n in range(50, 100)]
    assert failed[0]["error"]["code"] == "internal_error"
    assert "submit the line again" in failed[0]["error"]["message"]
    assert store.connection.exists(f"rq:job:{batch_id}-1") == 0


def test_lines_finished_before_the_loss_keep_their_records(store: Store, service: Service) -> None:
    """Only lines without a record get one."""
    batch_id = make_batch(store, prompts(50))
    work(store, batch_id, only=range(10))
    store.connection.delete(BatchKeys(batch_id).payload(0))
    assert service._take_one()
    batch = store.batch(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 10, 40)
    assert len(records(store, batch_id)) == 50


def test_lost_lines_of_a_paused_batch_wait(store: Store, service: Service) -> None:
    """Nothing of it is ended while it is held back."""
    batch_id = make_batch(store, prompts(2))
    store.connection.delete(BatchKeys(batch_id).payload(0))
    pause(store, batch_id)
    assert not service._take_one()
    assert store.batch(batch_id).failed == 0


@pytest.mark.parametrize("seed", range(6))
def test_which_lines_were_lost_is_known_whatever_lies_in_between(store: Store, seed: int) -> None:
    """Shards of several models and refused lines, mixed at random; one payload is lost at a time."""
    draw = random.Random(seed)
    models = ("pocket", "other", "third")
    weights = [draw.choice((1, 5, 50)) for _ in models]
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "model": draw.choices(models, weights)[0], **({"top_p": 9} if draw.random() < 0.05 else {})}
        for _ in range(700)
    ]
    order = Order(defaults=Defaults({"model": MODEL}), on_bad_line="skip")
    batch_id = submit(store, PromptObjects(lines), order).batch_id
    batch, keys = store.batch(batch_id), BatchKeys(batch_id)
    good = [index for index, line in enumerate(lines) if "top_p" not in line]
    given: dict[int, list[int]] = {}
    for row in store.connection.zrange(keys.table, 0, -1):
        number, group, first, count = orjson.loads(row)
        if group >= 0:
            model = lines[first]["model"]
            given[number] = [index for index in good if lines[index]["model"] == model and index >= first][:count]
    assert sorted(index for indices in given.values() for index in indices) == good
    for number, indices in given.items():
        payload = store.connection.getdel(keys.payload(number))
        assert lost_lines(store.connection, batch, number) == indices
        store.connection.set(keys.payload(number), payload)


def test_several_lost_shards_share_what_is_nobody_elses(store: Store, service: Service) -> None:
    """Where they lie among each other nobody knows any more which line was whose: each has one record all the same."""
    lines = [{"prompt": "a", "model": (MODEL, "other")[number % 2]} for number in range(200)]
    batch_id = make_batch(store, lines)
    for row in store.connection.zrange(BatchKeys(batch_id).table, 0, -1):
        store.connection.delete(BatchKeys(batch_id).payload(orjson.loads(row)[0]))
    other = Service(store.connection, store.connection, ServiceSettings((Group("other"),), name="mini2"))
    for worker in (service, other):
        while worker._take_one():
            pass
    batch = store.batch(batch_id)
    assert (batch.status, batch.failed) == ("completed", 200)
    assert [record["index"] for record in records(store, batch_id)] == list(range(200))


def test_an_attempt_that_was_taken_over_ends_nothing(store: Store) -> None:
    """Whoever has the shard now ends its lines."""
    batch_id = make_batch(store, prompts(2))
    old = store.claim(batch_id, 0)
    assert old is not None
    store.connection.delete(BatchKeys(batch_id).payload(0))
    new = store.claim(batch_id, 0)
    assert new is not None
    end_lost_lines(store, store.batch(batch_id), old, "mini.1")
    assert store.batch(batch_id).failed == 0
    end_lost_lines(store, store.batch(batch_id), new, "mini.2")
    assert store.batch(batch_id).status == "completed"
    assert {record["worker"] for record in records(store, batch_id)} == {"mini.2"}


def test_a_retry_leaves_lost_lines_alone(store: Store, service: Service) -> None:
    """The other failed lines of the batch run again; those without prompts stay as they are."""

    def refuse(_job: Job) -> list[Choice]:
        raise LineError("internal_error", None, "not now")

    batch_id = make_batch(store, prompts(100))
    store.connection.delete(BatchKeys(batch_id).payload(1))
    work(store, batch_id, answer=refuse)
    while service._take_one():
        pass
    assert store.batch(batch_id).failed == 100
    assert retry(store, batch_id) == 50
    work(store, batch_id)
    batch = store.batch(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 50, 50)
    assert [record["index"] for record in records(store, batch_id)] == list(range(100))


def test_a_lost_table_row_is_named(store: Store) -> None:
    """Nothing is guessed where too much is gone."""
    batch_id = make_batch(store, prompts(2))
    store.connection.delete(BatchKeys(batch_id).table)
    with pytest.raises(RefusedError, match="has lost shard 0"):
        lost_lines(store.connection, store.batch(batch_id), 0)
