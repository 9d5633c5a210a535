"""What commands say of batches: by the names they have, with what is paused, and with ids short enough to type."""

from __future__ import annotations

import orjson
import pytest

from jobs.store.store import Store
from tests.e2e.test_pool import promptmill
from tests.pool import make_batch, prompts, publish, work

QUEUE = "promptmill:normal:pocket"


def test_confirmations_call_a_batch_by_its_name(store: Store, server_url: str) -> None:
    """With the id behind it, whichever of the two was typed; one without a name has its id alone."""
    batch = make_batch(store, prompts(2), name="nightly")
    shown = f"nightly ({batch})"

    def said(*arguments: str) -> str:
        return promptmill(server_url, *arguments).stderr

    assert said("pause", "nightly") == f"{shown} is paused\n"
    assert said("pause", batch) == f"{shown} was paused already\n"
    assert said("resume") == f"the pool was not paused\nstill paused: 1 batch: {shown}\n"
    assert said("resume", "nightly") == f"{shown} goes on\n"
    assert said("priority", "nightly", "high") == f"{shown} has priority high now, it was normal\n"
    assert said("cancel", "nightly") == f"{shown} is cancelled: 0 of 2 lines finished, 2 not run\n"
    assert said("retry", "nightly") == f"2 lines of {shown} wait to run again\n"
    work(store, batch)
    assert said("retry", "nightly") == f"nothing to retry in {shown}\n"
    assert said("purge", "nightly").startswith(f"{shown} is removed: 2 lines, ")
    plain = make_batch(store, prompts(1))
    assert said("pause", plain) == f"batch {plain} is paused\n"


def test_what_is_paused_is_listed(store: Store, server_url: str) -> None:
    """The pool, workers by name, batches, each with what lets it go on; or as one object."""
    assert promptmill(server_url, "pause", "--list").stdout == "nothing is paused\n"
    batch, other = make_batch(store, prompts(1), name="nightly"), make_batch(store, prompts(1))
    promptmill(server_url, "pause")
    promptmill(server_url, "pause", "--worker", "mini")
    promptmill(server_url, "pause", "nightly", other)
    assert promptmill(server_url, "pause", "--list").stdout.splitlines() == [
        "the pool is paused: `promptmill resume`",
        "worker mini is paused: `promptmill resume --worker mini`",
        f"nightly ({batch}) is paused: `promptmill resume {batch}`",
        f"batch {other} is paused: `promptmill resume {other}`",
    ]
    assert orjson.loads(promptmill(server_url, "pause", "--list", "--json").stdout) == {
        "pool": True,
        "workers": ["mini"],
        "batches": [{"id": batch, "name": "nightly"}, {"id": other, "name": None}],
    }
    refused = promptmill(server_url, "pause", "--list", "nightly", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--list shows all that is paused" in refused.stderr


def test_a_paused_pool_is_said_wherever_one_looks(store: Store, server_url: str) -> None:
    """In the list, of a batch, and with the workers; the JSON of the list keeps its statuses."""
    batch = make_batch(store, prompts(1), name="nightly")
    publish(store, "mini.1", queues=[QUEUE], paused=True)
    said = "the pool is paused: `promptmill resume` lets it go on"
    assert said not in promptmill(server_url, "status").stdout
    promptmill(server_url, "pause")
    header, _, row = promptmill(server_url, "status").stdout.splitlines()
    assert (header, row.split()[2]) == (said, "paused")
    assert promptmill(server_url, "workers").stdout.splitlines()[0] == said
    shown = promptmill(server_url, "status", "nightly").stdout
    assert f"pool      {said}" in shown
    assert "worker    mini.1: paused" in shown
    found = orjson.loads(promptmill(server_url, "status", "nightly", "--json").stdout)
    assert (found["status"], found["pool_paused"], found["workers"][0]["state"]) == ("in_progress", True, "paused")
    assert orjson.loads(promptmill(server_url, "status", "--json").stdout)[0]["status"] == "in_progress"
    assert [item["id"] for item in orjson.loads(promptmill(server_url, "status", "--json").stdout)] == [batch]


@pytest.mark.parametrize("cut", ["...", "…"])
def test_a_short_id_is_as_good_as_the_whole(store: Store, server_url: str, cut: str) -> None:
    """As it is shown in lists and views, while it is that of one batch alone; no less than that is taken for one."""
    batch = make_batch(store, prompts(1), name="nightly")
    assert f"batch     {batch} (nightly)" in promptmill(server_url, "status", f"{batch[:6]}{cut}{batch[-5:]}").stdout
    for text in (cut, f"b_{cut}", f"b_{cut}{batch[-4:]}", f"{batch[:6]}{cut}00000"):
        refused = promptmill(server_url, "purge", text, check=False)
        assert (refused.returncode, "no batch" in refused.stderr) == (2, True)
    info = store.connection.hgetall(f"promptmill:b:{batch}")
    twin = f"{batch[:10]}0000000000000{batch[-5:]}"
    store.connection.hset(f"promptmill:b:{twin}", mapping=info)
    store.connection.zadd("promptmill:batches", {twin: 1.0})
    refused = promptmill(server_url, "status", f"{batch[:6]}{cut}{batch[-5:]}", check=False)
    assert refused.returncode == 2
    assert "is short for 2 batches; give the whole id" in refused.stderr
