"""The Python client, as a script would use it."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BatchNotFoundError, InputError, LineError, RedisError, RefusedError, WaitTimeoutError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.keys import worker_key
from jobs.store.store import Store
from submit import Client
from submit.status.pool_pause import paused_workers, pool_paused
from tests.pool import MODEL, echo, prompts, publish, work
from tests.proxy import Proxy


@pytest.fixture
def client(server_url: str) -> Iterator[Client]:
    with Client(server_url) as opened:
        yield opened


def failing(job: Job) -> list[Choice]:
    """An answer to each line but row-1, which fails."""
    if job.id == "row-1":
        raise LineError("context_length_exceeded", "prompt", "too long")
    return echo(job)


def ids(records: Iterator[dict[str, Any]]) -> list[str]:
    return [record["id"] for record in records]


def test_submit_dicts_and_read_results(client: Client, store: Store) -> None:
    """Results in the order of the input; errors apart; counts in the status."""
    batch = client.submit(iter(prompts(3)), model="m", temperature=0.5, metadata={"k": 1})
    assert batch.submitted is not None
    assert (batch.submitted.total, batch.status().status, batch.status().metadata) == (3, "in_progress", {"k": 1})
    assert ids(batch.results()) == []
    work(store, batch.id, only=[2, 1, 0], answer=failing)
    assert ids(batch.results()) == ["row-0", "row-2"]
    assert ids(batch.results(ordered=False)) == ["row-2", "row-0"]
    (error,) = batch.errors()
    assert (error["id"], error["error"]["code"]) == ("row-1", "context_length_exceeded")
    done = batch.wait()
    assert (done.status, done.completed, done.failed) == ("completed", 2, 1)
    assert next(batch.results())["sampling"]["temperature"] == 0.5


@pytest.mark.parametrize("kind", [str, Path])
def test_submit_a_file(client: Client, tmp_path: Path, kind: type) -> None:
    """A path, as text or as Path; packed by suffix."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt":"x"}\n'))
    batch = client.submit(kind(path), model="m", name="nightly", priority="low")
    assert (batch.status().total, batch.status().source, batch.status().priority) == (1, str(path), "low")


def test_follow_gives_records_as_they_finish(server_url: str, store: Store) -> None:
    """Live, in the order of finishing, until the batch is done; nothing twice."""
    steps = iter([[3], [0, 2], [1]])
    batch_id = ""

    def step(seconds: float) -> None:
        work(store, batch_id, only=next(steps))

    with Client(server_url, sleep=step) as client:
        batch = client.submit(prompts(4), model="m")
        batch_id = batch.id
        assert ids(batch.results(follow=True)) == ["row-3", "row-0", "row-2", "row-1"]
        assert next(steps, None) is None
        assert ids(batch.results(follow=True, ordered=True)) == ["row-0", "row-1", "row-2", "row-3"]


def test_wait_gives_up_after_its_timeout(server_url: str) -> None:
    """The batch goes on; the error has the exit status of a wait that was too short."""
    times = iter(range(100))
    with Client(server_url, clock=lambda: float(next(times)), sleep=lambda seconds: None) as client:
        batch = client.submit(prompts(1), model="m")
        with pytest.raises(WaitTimeoutError) as caught:
            batch.wait(timeout=5)
        assert caught.value.exit_status == 4
        assert batch.status().status == "in_progress"


def test_batches_are_found_by_id_name_and_list(client: Client) -> None:
    """A handle for each batch there is."""
    one = client.submit(prompts(1), model="m", name="nightly")
    two = client.submit(prompts(1), model="m")
    assert client.batch(one.id).id == client.batch("nightly").id == one.id
    assert [batch.id for batch in client.batches()] == [one.id, two.id]
    with pytest.raises(BatchNotFoundError):
        client.batch("missing")


def test_purged_batches_are_said_to_be_gone(client: Client, store: Store) -> None:
    """Before and in the middle of reading."""
    batch = client.submit(prompts(200), model="m")
    work(store, batch.id)
    records = batch.results()
    next(records)
    store.discard(batch.id)
    for gone in (batch.results(), batch.results(follow=True), batch.errors()):
        with pytest.raises(BatchNotFoundError):
            next(gone)


def test_a_model_that_gave_way_is_counted_and_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """As the command line says it; with override_model there is nothing to say."""
    lines = [{"prompt": "x", "model": "gpt-4o-mini"}, {"prompt": "x"}]
    batch = client.submit(lines, model="m")
    assert batch.submitted is not None
    assert batch.submitted.own_models == {"gpt-4o-mini": 1}
    assert "1 line names its own model 'gpt-4o-mini': --model m is only for lines without one" in caplog.text
    caplog.clear()
    assert client.submit(lines, model="m/", override_model=True).status().models == ("m",)
    assert caplog.text == ""


def test_lines_that_end_with_an_answer_are_counted_and_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """As the command line says it; with continue_final_message there is nothing to say."""
    lines = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    batch = client.submit(lines, model="m")
    assert batch.submitted is not None
    assert batch.submitted.after_answer == 1
    assert "1 line ends with an assistant's message" in caplog.text
    caplog.clear()
    client.submit(lines, model="m", continue_final_message=True)
    assert caplog.text == ""


def test_unknown_parameters_are_named_with_a_suggestion(client: Client) -> None:
    """As the keyword arguments of any function would be."""
    with pytest.raises(LineError, match=r"^'temprature' is not a parameter of submit; did you mean 'temperature'\?$"):
        client.submit(prompts(1), model="m", temprature=1)
    with pytest.raises(LineError, match=r"of submit; did you mean 'priority'\?"):
        client.submit(prompts(1), model="m", **{"priorty": "high"})
    with pytest.raises(LineError, match=r"of add_schedule; did you mean 'catch_up'\?"):
        client.add_schedule("n", prompts(1), cron="@daily", model="m", **{"catchup": True})
    with pytest.raises(LineError, match=r"'top_p' must be float \(0, 1\]"):
        client.submit(prompts(1), model="m", top_p=2)
    assert client.batches() == []


def test_bad_lines_of_one_kind_are_one_note(client: Client) -> None:
    """As on screen: the first kind is in the error's text, the others in its notes."""
    lines = [{"prompt": "x", "max_tokens": -1}] * 3 + [{"prompt": "x", "zzz": 1}] * 2
    with pytest.raises(InputError) as caught:
        client.submit(lines, model="m")
    assert "5 bad lines; nothing was enqueued; what is wrong: 3 lines, field 'max_tokens': " in str(caught.value)
    assert [note[:21] for note in caught.value.__notes__] == ["2 lines, field 'zzz':"]


def test_metadata_that_is_no_dict_is_refused(client: Client) -> None:
    """With what it must be, not with a traceback of ours."""
    metadata: Any = "mine"
    with pytest.raises(RefusedError, match="metadata must be a dict, not str"):
        client.submit(prompts(1), model="m", metadata=metadata)


def test_bad_lines_are_listed_or_skipped(client: Client) -> None:
    """As with the command: all or nothing, unless skipping is asked for."""
    lines = [{"prompt": "x"}, {"prompt": "x", "temperature": float("nan")}]
    with pytest.raises(InputError) as caught:
        client.submit(lines, model="m")
    assert [(problem.line, problem.field) for problem in caught.value.problems] == [(2, "temperature")]
    assert "1 bad line; nothing was enqueued; what is wrong: line 2, field 'temperature': " in str(caught.value)
    batch = client.submit(lines, model="m", on_bad_line="skip")
    assert [error["error"]["code"] for error in batch.errors()] == ["out_of_range"]


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ({"keep": "90d"}, "keep is a number of seconds, such as .*, not '90d'"),
        ({"start_in": timedelta(hours=1)}, "start_in is a number of seconds"),
        ({"expires_in": True}, "expires_in is a number of seconds"),
        ({"at": "02:00"}, "at is a datetime, such as .*, not '02:00'"),
    ],
)
def test_arguments_of_another_type_are_refused(client: Client, argument: Any, wanted: str) -> None:
    """With what is wanted, before anything is enqueued."""
    with pytest.raises(RefusedError, match=wanted):
        client.submit(prompts(1), model="m", **argument)
    assert client.batches() == []


@pytest.mark.parametrize("wrong", [{"prompt": "x"}, b"a.jsonl", 5, None])
def test_things_that_are_no_prompts_are_refused(client: Client, wrong: Any) -> None:
    """One dict instead of several would otherwise be an iterable of its keys."""
    with pytest.raises(RefusedError, match="iterable of dicts"):
        client.submit(wrong, model="m")


def test_address_comes_from_the_environment(server_url: str) -> None:
    """PROMPTMILL_REDIS_URL, then RQ_REDIS_URL."""
    for environ in (
        {"PROMPTMILL_REDIS_URL": server_url, "RQ_REDIS_URL": "redis://127.0.0.1:1"},
        {"RQ_REDIS_URL": server_url},
    ):
        with Client(environ=environ) as client:
            assert client.batches() == []


def test_unreachable_redis_is_named_without_its_password() -> None:
    """The error says where and what to do, and keeps the secret."""
    with pytest.raises(RedisError) as caught:
        Client("redis://user:secret@127.0.0.1:1/0")
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_redis_that_goes_away_is_a_redis_error(server_url: str) -> None:
    """From every method, not redis-py's own exception."""
    network = Proxy(server_url)
    try:
        client = Client(network.url)
        batch = client.submit(prompts(1), model="m")
    finally:
        network.close()
    uses = [client.batches, batch.status, lambda: list(batch.results()), lambda: client.submit(prompts(1), model="m")]
    for use in uses:
        with pytest.raises(RedisError, match="cannot reach"):
            use()
    client.close()


def test_batches_are_held_moved_and_removed(client: Client) -> None:
    """Paused, resumed, given another priority, begun later, and purged when they are done."""
    batch = client.submit([{"prompt": "a"}], model=MODEL, keep=None)
    batch.pause()
    assert batch.status().paused
    batch.resume()
    batch.prioritise("high")
    assert (batch.status().paused, batch.status().priority, batch.status().keep_s) == (False, "high", None)
    later = client.submit([{"prompt": "a"}], model=MODEL, at=datetime.now() + timedelta(hours=1))
    assert later.status().times["starts"] - time.time() == pytest.approx(3600, abs=5)
    with pytest.raises(RefusedError, match="give one of them"):
        client.submit([{"prompt": "a"}], model=MODEL, at=datetime.now(), start_in=5.0)
    with pytest.raises(RefusedError, match="has passed already: give a moment to come"):
        client.submit([{"prompt": "a"}], model=MODEL, at=datetime.now() - timedelta(hours=1))
    with pytest.raises(RefusedError, match="cancel it first"):
        batch.purge()
    batch.cancel()
    assert batch.memory() > 500
    batch.purge()
    with pytest.raises(BatchNotFoundError):
        batch.status()


def test_the_pool_and_its_workers_are_paused(client: Client, store: Store) -> None:
    """By the client as by the command."""
    client.pause()
    client.pause("mini", "mini-2.4711")
    assert (pool_paused(store), paused_workers(store)) == (True, ["mini", "mini-2.4711"])
    client.resume()
    client.resume("mini", "mini-2.4711")
    assert (pool_paused(store), paused_workers(store)) == (False, [])


def test_workers_are_typed_states(client: Client, store: Store) -> None:
    """What live workers publish, by name; what is none is left out."""
    publish(store, "studio.2", state="busy", tokens_per_second=12.5, memory_bytes=5, paused=True)
    publish(store, "mini.1")
    store.connection.set(worker_key("evil"), b"{")
    mini, studio = client.workers()
    assert (mini.name, mini.state, mini.paused) == ("mini.1", "idle", False)
    assert (studio.name, studio.effective_state, studio.tokens_per_second) == ("studio.2", "paused", 12.5)
