"""Records of any size: whatever a worker could write can be read, retried and removed, a bounded part at a time."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis import Redis

from jobs.attempt import Attempt
from jobs.errors import LineError, RefusedError, StaleAttemptError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.redis.connect import connect
from jobs.shard import pack
from jobs.store import shard_records
from jobs.store.cancel import cancel
from jobs.store.keys import BatchKeys
from jobs.store.retention import memory, purge
from jobs.store.retry import retry
from jobs.store.store import FinishedLine, Store
from submit import Client
from submit.results.destination import Destination
from submit.results.follow import follow_results, write_results
from submit.results.read import finished_records, ordered_records
from tests.pool import full, make_batch, prompts, work
from tests.proxy import Proxy

MIB = 2**20
FLAT = 48 * MIB
"""More than a few pieces and a record, far less than a large shard."""


def record(index: int, size: int, *, ok: bool = True) -> FinishedLine:
    """A record of about ``size`` bytes."""
    fields: dict[str, Any] = {"id": f"row-{index}", "index": index, "batch_id": "b", "attempt": 1}
    if not ok:
        fields["error"] = {"code": "timeout", "message": "", "param": None}
    else:
        tail = random.Random(index).randbytes(min(size // 4, 20_000)).hex()
        fields |= {"text": "word " * (max(size - len(tail), 0) // 5) + tail, "stop_reason": "eos"}
    return FinishedLine(index, ok, 1, 1, 0, orjson.dumps(fields))


def shard(store: Store, sizes: list[int], failures: tuple[int, ...] = ()) -> tuple[str, Attempt, dict[int, bytes]]:
    """A batch of one shard whose lines all have records of these sizes; its id, its attempt, and the records."""
    batch_id = make_batch(store, prompts(len(sizes)))
    attempt = claimed(store, batch_id)
    order = list(range(len(sizes)))
    random.Random(5).shuffle(order)
    records = {}
    for index in order:
        line = record(index, sizes[index], ok=index not in failures)
        store.write(attempt, [line])
        records[index] = line.record
    return batch_id, attempt, records


def claimed(store: Store, batch_id: str) -> Attempt:
    attempt = store.claim(batch_id, 0)
    assert attempt is not None
    return attempt


def small(store: Store, failures: tuple[int, ...] = ()) -> tuple[str, Attempt, dict[int, bytes]]:
    """A shard that takes several pieces of 2000 bytes, one of a single longer record and one that is compressed."""
    return shard(store, [*[300, 50, 1500] * 10, 5000, 400_000, *[10, 800] * 9], failures)


def read(store: Store, batch_id: str, **sizes: int) -> dict[int, bytes]:
    """The batch's records; both orders give the same, each once."""
    part = {name: size for name, size in sizes.items() if name == "part_bytes"}
    ordered = [(found.index, found.raw) for found in ordered_records(store.connection, batch_id, **part)]
    finished = [(found.index, found.raw) for found in finished_records(store.connection, batch_id, **sizes)]
    assert [index for index, _ in ordered] == sorted({index for index, _ in finished})
    assert sorted(finished) == ordered
    return dict(ordered)


def left(store: Store, batch_id: str) -> set[str]:
    """The kinds of keys that a batch's shard has."""
    names = (key.decode().split(":") for key in store.connection.keys(f"{BatchKeys(batch_id).info}:*:0"))
    return {name[-2] for name in names}


@contextmanager
def flat(most: int = FLAT) -> Iterator[None]:
    """What is done here takes no more memory than so many bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# --- the fault ---


def test_a_shard_whose_records_have_more_than_128_mib_is_read_back(
    store: Store, tmp_path: Path, server_url: str
) -> None:
    """It is finished, read in both orders, by the client too, and retried; no step holds more than a few records."""
    batch_id, attempt, records = shard(store, [3 * MIB] * 45 + [0], failures=(45,))
    assert sum(map(len, records.values())) > 128 * MIB
    expected = b"".join(records[index] + b"\n" for index in range(45))
    del records
    for name in ("running", "done"):
        out = tmp_path / f"{name}.jsonl"
        with flat():
            _, tally = write_results(store, batch_id, Destination(out))
        assert out.read_bytes() == expected
        assert (tally.stops["eos"], tally.failures["timeout"]) == (45, 1)
        if name == "running":
            with flat():
                assert store.finish(attempt, 46)
    with flat():
        follow_results(store, batch_id, Destination(tmp_path / "live.jsonl"))
    assert len((tmp_path / "live.jsonl").read_bytes()) == len(expected)
    with Client(server_url) as client, flat():
        assert sum(len(line["text"]) for line in client.batch(batch_id).results()) > 128 * MIB
    with flat():
        assert retry(store, batch_id) == 1
    work(store, batch_id)
    write_results(store, batch_id, Destination(tmp_path / "retried.jsonl"))
    assert (tmp_path / "retried.jsonl").read_bytes().startswith(expected)


# --- pieces ---


@pytest.mark.parametrize("part_bytes", [1, 2000, MIB])
@pytest.mark.parametrize("piece_bytes", [1, 2000, MIB])
def test_records_are_the_same_before_and_after(store: Store, part_bytes: int, piece_bytes: int) -> None:
    """Whatever the size of pieces, and of what is read and held at a time."""
    batch_id, attempt, records = small(store)
    for _ in range(2):
        for chunk, held_bytes in ((7, 1), (1000, 3000), (1000, MIB)):
            assert read(store, batch_id, part_bytes=part_bytes, chunk=chunk, early_bytes=held_bytes) == records
        assert store.finish(attempt, len(records), piece_bytes=piece_bytes)
    assert store.connection.zcard(BatchKeys(batch_id).compacted(0)) > 1
    assert left(store, batch_id) == {"s", "d"}
    assert memory(store.connection, batch_id) > 10_000


class DiedError(Exception):
    """The process is killed here."""


@contextmanager
def dying_after(store: Store, steps: int) -> Iterator[None]:
    """The process dies instead of taking another step in Redis."""
    real, taken = store.connection.evalsha, 0

    def evalsha(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise DiedError
        return real(*arguments)

    store.connection.evalsha = evalsha  # type: ignore[method-assign]
    try:
        yield
    finally:
        del store.connection.evalsha


@pytest.mark.parametrize("heir", ["claim", "purge"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 8, 20])
def test_a_worker_killed_while_it_compacts_leaves_everything_as_it_was(store: Store, steps: int, heir: str) -> None:
    """Records are read as before; the next attempt finishes the shard, or a purge removes all of it."""
    batch_id, attempt, records = small(store)
    with dying_after(store, steps), pytest.raises(DiedError):
        store.finish(attempt, len(records), piece_bytes=2000)
    assert read(store, batch_id) == records
    if heir == "purge":
        cancel(store, batch_id)
        purge(store, batch_id)
        store.connection.delete("rq:queues")
        assert store.connection.keys("*") == []
        return
    again = claimed(store, batch_id)
    assert again.finished == set(records)
    assert store.finish(again, len(records), piece_bytes=1000)
    assert read(store, batch_id) == records
    assert left(store, batch_id) == {"s", "d"}
    assert store.batch(batch_id).status == "completed"


def test_an_attempt_that_goes_stale_while_it_compacts_adds_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces are no part of its heir's, who may compact at the same time."""
    batch_id, zombie, records = small(store)
    with dying_after(store, 7), pytest.raises(DiedError):
        store.finish(zombie, len(records), piece_bytes=2000)
    heir = claimed(store, batch_id)
    with dying_after(store, 5), pytest.raises(DiedError):
        store.finish(heir, len(records), piece_bytes=3000)
    with pytest.raises(StaleAttemptError):
        store.finish(zombie, len(records), piece_bytes=2000)
    assert store.finish(heir, len(records), piece_bytes=1000)
    assert read(store, batch_id) == records


def test_lost_replies_while_compacting_change_nothing(store: Store, server_url: str) -> None:
    """Each step may be sent twice."""
    batch_id, attempt, records = small(store)
    proxy = Proxy(server_url)
    shaky: Redis = connect(proxy.url)
    real = shaky.evalsha

    def losing(*arguments: Any) -> Any:
        proxy.lose_next_reply()
        return real(*arguments)

    shaky.evalsha = losing  # type: ignore[method-assign]
    assert Store(shaky).finish(attempt, len(records), piece_bytes=20_000)
    assert proxy.lost > 4
    shaky.close()
    proxy.close()
    assert read(store, batch_id) == records
    assert (store.batch(batch_id).status, left(store, batch_id)) == ("completed", {"s", "d"})


def test_pieces_that_a_server_forgot_are_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that crashes may lose its last second: the shard is not done with a part of its records."""
    batch_id, attempt, records = small(store)
    real, steps = store.connection.evalsha, 0

    def forgetful(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:
            store.connection.zremrangebyrank(BatchKeys(batch_id).pieces(0), 1, 2)
        return real(*arguments)

    monkeypatch.setattr(store.connection, "evalsha", forgetful)
    assert store.finish(attempt, len(records), piece_bytes=2000)
    assert read(store, batch_id) == records


def test_records_that_are_no_lines_own_end_their_shard_alone(store: Store) -> None:
    """Somebody put the same one everywhere: it is refused, and no worker tries for ever."""
    batch_id, attempt, records = small(store)
    store.connection.hset(BatchKeys(batch_id).records(0), mapping=dict.fromkeys(map(str, records), b"x" * 3000))
    with pytest.raises(RefusedError, match="is damaged"):
        store.finish(attempt, len(records), piece_bytes=2000)


def test_a_full_server_lets_shards_be_compacted(store: Store) -> None:
    """That is what makes room."""
    batch_id, attempt, records = small(store)
    with full(store):
        assert store.finish(attempt, len(records), piece_bytes=2000)
    assert read(store, batch_id) == records


def test_an_incomplete_shard_leaves_no_pieces(store: Store) -> None:
    """It goes on running."""
    batch_id, attempt, records = small(store)
    store.connection.hdel(BatchKeys(batch_id).records(0), "7")
    assert not store.finish(attempt, len(records), piece_bytes=2000)
    assert left(store, batch_id) == {"s", "r"}


def test_many_refused_lines_take_several_pieces(store: Store) -> None:
    """Their records are read like all others."""
    from tests.server.jobs.test_store import new_batch

    store.create(new_batch())
    lines = [record(index, 30_000) for index in range(0, 200, 2)]
    store.upload_rejected("b_1", 0, lines)
    assert store.commit("b_1", total=100, shards=1, groups=[])
    assert store.connection.zcard(BatchKeys("b_1").compacted(0)) > 1
    assert read(store, "b_1") == {line.index: line.record for line in lines}


# --- shards that change while they are read ---


@pytest.mark.parametrize("taken", [0, 1, 5, 20, 40])
@pytest.mark.parametrize("order", [ordered_records, finished_records])
def test_a_shard_that_is_finished_while_it_is_read_is_read_whole(
    store: Store, taken: int, order: Callable[..., Iterator[Any]]
) -> None:
    """Each record once, from where the reader was."""
    batch_id, attempt, records = small(store)
    reader = order(store.connection, batch_id, part_bytes=2000)
    found = [next(reader) for _ in range(taken)]
    assert store.finish(attempt, len(records), piece_bytes=1500)
    found += reader
    assert sorted((one.index, one.raw) for one in found) == sorted(records.items())


@pytest.mark.parametrize("taken", [0, 1, 5, 20, 40])
def test_a_shard_that_is_retried_while_it_is_read_gives_each_line_once(store: Store, taken: int) -> None:
    """The others' records are where they were, or back where they came from, or in new pieces."""
    batch_id, attempt, records = small(store, failures=(3, 30))
    assert store.finish(attempt, len(records), piece_bytes=2000)
    readers = [ordered_records(store.connection, batch_id, part_bytes=2000) for _ in range(2)]
    readers.append(finished_records(store.connection, batch_id, part_bytes=2000))
    found = [[next(reader) for _ in range(taken)] for reader in readers]
    assert retry(store, batch_id) == 2
    found[0] += readers[0]
    work(store, batch_id)
    for each, reader in zip(found[1:], readers[1:], strict=True):
        each += reader
    for each in found:
        assert {one.index for one in each if one.index not in (3, 30)} == set(records) - {3, 30}
    for each in found[:2]:
        assert [one.index for one in each] == sorted({one.index for one in each})
    latest = [one.raw for one in found[2] if one.index == 3]
    assert b"answer to row-3" in latest[-1]


# --- what earlier versions stored ---


@pytest.mark.parametrize("size", [200, 3 * MIB])
def test_shards_that_earlier_versions_compacted_are_read_and_retried(store: Store, size: int) -> None:
    """Their records are one frame in a string, of any size."""
    batch_id, attempt, records = shard(store, [size] * 49 + [0], failures=(49,))
    assert store.finish(attempt, 50)
    old = pack(b"\n".join(records[index] for index in sorted(records)))
    store.connection.delete(BatchKeys(batch_id).compacted(0))
    store.connection.set(BatchKeys(batch_id).compacted(0), old)
    with flat(FLAT + 2 * len(old)):
        assert sum(one.raw == records[one.index] for one in finished_records(store.connection, batch_id)) == 50
    assert retry(store, batch_id) == 1
    assert read(store, batch_id) == {index: raw for index, raw in records.items() if index != 49}
    work(store, batch_id)
    assert store.connection.type(BatchKeys(batch_id).compacted(0)) == b"zset"
    assert [one.ok for one in ordered_records(store.connection, batch_id)] == [True] * 50


# --- retrying ---


def failing(*indices: int) -> Callable[[Job], list[Choice]]:
    def answer(job: Job) -> list[Choice]:
        if job.index in indices:
            raise LineError("context_length_exceeded", "prompt", "too long")
        return [Choice(0, f"answer to {job.id} " * 20, "eos")]

    return answer


@pytest.mark.parametrize("steps", range(0, 60, 4))
def test_a_client_killed_while_it_takes_a_shard_apart_leaves_everything_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Until all other records are put aside the shard is done; the next retry takes it apart."""
    monkeypatch.setattr(shard_records, "PIECE_BYTES", 2000)
    batch_id = make_batch(store, prompts(50))
    work(store, batch_id, answer=failing(4, 40))
    before = read(store, batch_id)
    with dying_after(store, steps):
        try:
            retry(store, batch_id)
            died = False
        except DiedError:
            died = True
    kept = {index: raw for index, raw in before.items() if index not in (4, 40)}
    assert read(store, batch_id) in (before, kept)
    if died:
        retry(store, batch_id)
    assert read(store, batch_id) == kept
    assert left(store, batch_id) == {"s", "r", "try"}
    work(store, batch_id)
    after = read(store, batch_id)
    assert {index: after[index] for index in kept} == kept
    assert (len(after), left(store, batch_id)) == (50, {"s", "d"})


def test_nothing_is_left_of_a_batch_purged_in_the_middle_of_a_retry(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put aside goes with it."""
    monkeypatch.setattr(shard_records, "PIECE_BYTES", 2000)
    batch_id = make_batch(store, prompts(50))
    work(store, batch_id, answer=failing(4))
    with dying_after(store, 12), pytest.raises(DiedError):
        retry(store, batch_id)
    assert "ro" in left(store, batch_id)
    cancel(store, batch_id)
    purge(store, batch_id)
    store.connection.delete("rq:queues")
    assert [key for key in store.connection.keys("*") if batch_id.encode() in key] == []


def test_two_clients_that_retry_at_once_do_it_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step of one comes between two steps of the other."""
    monkeypatch.setattr(shard_records, "PIECE_BYTES", 4000)
    for turn in range(2, 14):
        batch_id = make_batch(store, prompts(50))
        work(store, batch_id, answer=failing(4, 40))
        before, real, steps = read(store, batch_id), Store.step, 0

        def step(
            store: Store, name: str, *arguments: Any, turn: int = turn, batch_id: str = batch_id, real: Any = real
        ) -> Any:
            nonlocal steps
            steps += name.startswith("retry.")
            if steps == turn and name.startswith("retry."):
                retry(store, batch_id)
            return real(store, name, *arguments)

        monkeypatch.setattr(Store, "step", step)
        retry(store, batch_id)
        monkeypatch.setattr(Store, "step", real)
        batch = store.batch(batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("in_progress", 48, 0)
        assert read(store, batch_id) == {index: raw for index, raw in before.items() if index not in (4, 40)}
        work(store, batch_id)
        assert (store.batch(batch_id).status, len(read(store, batch_id))) == ("completed", 50)
        assert left(store, batch_id) == {"s", "d"}
