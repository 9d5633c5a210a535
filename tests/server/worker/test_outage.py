"""Redis away, full or lost for good: what the writer and the spool make of it, on a server of the test's own."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from redis import Redis

from jobs.redis.connect import connect
from jobs.shard import Group
from jobs.spool import read_entries
from jobs.store.keys import BatchKeys
from jobs.store.store import Store
from submit.results.read import ordered_records
from tests.pool import MODEL, make_batch, prompts
from tests.servers import Server
from tests.waiting import until
from worker.engine.sequence import Failure
from worker.faults.spool import Spool
from worker.service import Service, ServiceSettings
from worker.shards import records
from worker.shards.claimed import HeldShard
from worker.shards.records import EndedLine

Opened = Callable[[str], Redis]
MakeService = Callable[[], Service]


@pytest.fixture
def store(server: Server) -> Iterator[Store]:
    """The storage layer on that server."""
    connection = connect(server.url)
    yield Store(connection)
    connection.close()


@pytest.fixture
def make_service(server: Server, tmp_path: Path, opened: Opened) -> Iterator[MakeService]:
    """Workers for MODEL with one spool folder; of their threads the writer may be started."""
    made: list[Service] = []

    def make() -> Service:
        settings = ServiceSettings((Group(MODEL),), name=f"mini{len(made)}", spool=tmp_path / "spool")
        made.append(Service(opened(server.url), opened(server.url), settings))
        return made[-1]

    yield make
    for service in made:
        service.writer.give_up()
        if service.writer.is_alive():
            service.writer.end(1.0)


def take(service: Service) -> HeldShard:
    """Take a shard; the one that the worker now holds."""
    assert service._take_one()
    [held] = service.held
    return held


def fail(service: Service, held: HeldShard, index: int) -> None:
    service.writer.put(EndedLine(held, index, 0.0, Failure("internal_error", "no")))


def spooled(folder: Path, batch_id: str) -> list[int]:
    """Indices of the records in the spool, offered or not."""
    found = []
    for path in folder.glob(f"{batch_id}/*.jsonl"):
        with path.open("rb") as file:
            found += [entry.line.index for _, entry in read_entries(file, batch_id)]
    return sorted(found)


def said(caplog: pytest.LogCaptureFixture, *actions: str) -> list[str]:
    """What the log says of these actions."""
    return [record.getMessage() for record in caplog.records if getattr(record, "action", None) in actions]


def test_records_wait_in_the_spool_and_are_delivered(
    server: Server, store: Store, make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is out records are written down one after the other; when it is back all are stored. Said once."""
    batch, service = make_batch(store, prompts(3)), make_service()
    held = take(service)
    service.writer.start()
    server.stop()
    fail(service, held, 0)
    until(lambda: said(caplog, "redis_out"), "the outage is noticed")
    for index in (1, 2):
        fail(service, held, index)
        until(lambda index=index: index in spooled(tmp_path / "spool", batch), "the record is in the spool")
    server.start()
    until(lambda: said(caplog, "redis_back"), "all is delivered")
    assert store.batch(batch).status == "completed"
    [out] = said(caplog, "redis_out")
    assert out.endswith(f"until it is back finished records are kept in {tmp_path / 'spool'}")
    assert said(caplog, "redis_back") == ["Redis is back: delivered 3 records"]


def test_long_records_wait_for_redis_in_a_fraction_of_their_size(
    server: Server, store: Store, make_service: MakeService, tmp_path: Path
) -> None:
    """All lines of a shard may end in one step while Redis is out: they are on the disk as they are, and are read back
    so once it is there again."""
    batch, service = make_batch(store, prompts(50)), make_service()
    held, text = take(service), "word " * 600_000
    server.stop()
    tracemalloc.start()
    service.writer.start()
    for index in range(50):
        service.writer.put(EndedLine(held, index, 0.0, Failure("internal_error", text)))
    files = tmp_path / "spool" / batch
    until(lambda: sum(path.stat().st_size for path in files.glob("*")) > 50 * len(text), "all are in the spool")
    waiting, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (waiting < 16 * 2**20, most < 120 * 2**20) == (True, True)
    assert spooled(tmp_path / "spool", batch) == list(range(50))
    server.start()
    until(lambda: store.batch(batch).done, "all is delivered")
    assert sum(text.encode() in record.raw for record in ordered_records(store.connection, batch)) == 50


def test_a_record_that_redis_would_never_take_fails_its_line(
    store: Store, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not hold up all others for ever: an error record says why."""
    monkeypatch.setattr(records, "LONGEST_VALUE", 200_000)
    batch, service = make_batch(store, prompts(2)), make_service()
    held = take(service)
    service.writer.start()
    service.writer.put(EndedLine(held, 0, 0.0, Failure("timeout", random.Random(1).randbytes(300_000).hex())))
    fail(service, held, 1)
    until(lambda: store.batch(batch).done, "both have their record")
    errors = [orjson.loads(record.raw)["error"] for record in ordered_records(store.connection, batch)]
    assert [error["code"] for error in errors] == ["internal_error", "internal_error"]
    assert "Redis takes 200000 in one piece: ask for fewer" in errors[0]["message"]


def test_a_full_redis_is_an_outage_with_its_own_remedy(
    server: Server, store: Store, make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory: nothing is thrown away, and what to do is said once."""
    batch, service = make_batch(store, prompts(2)), make_service()
    held = take(service)
    service.writer.start()
    server.configure("maxmemory", 1)
    fail(service, held, 0)
    fail(service, held, 1)
    until(lambda: said(caplog, "redis_full"), "it is noticed")
    until(lambda: spooled(tmp_path / "spool", batch) == [0, 1], "both records are in the spool")
    assert store.batch(batch).failed == 0
    server.configure("maxmemory", 0)
    until(lambda: said(caplog, "redis_back"), "all is delivered")
    assert store.batch(batch).status == "completed"
    [full] = said(caplog, "redis_full")
    assert full.startswith("Redis is full: raise its maxmemory; until then finished records are kept")


def test_a_worker_that_ends_in_an_outage_leaves_its_records_to_the_next(
    server: Server, store: Store, make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shard is not handed back, so that the next worker's offer is not stale; it then finds the lines done."""
    batch, service = make_batch(store, prompts(3)), make_service()
    held = take(service)
    service.writer.start()
    server.stop()
    fail(service, held, 0)
    fail(service, held, 1)
    until(lambda: spooled(tmp_path / "spool", batch) == [0, 1], "the records are in the spool")
    assert not service.writer.end(0.2)
    [left] = said(caplog, "records_left")
    assert left.startswith(f"2 records are not delivered: they are in {tmp_path / 'spool'}; this host's next worker")
    server.start()
    other = make_service()
    assert other.spool is not None
    assert other.spool.offer(store) == 2
    assert store.batch(batch).failed == 2
    assert other.spool.offer(store) == 0
    attempt = store.claim(batch, 0)
    assert attempt is not None
    assert attempt.finished == {0, 1}


def test_a_worker_that_ends_in_peace_leaves_nothing_to_offer(
    store: Store, make_service: MakeService, tmp_path: Path
) -> None:
    """What was delivered stays for the day that Redis is lost, and is never offered again."""
    batch, service = make_batch(store, prompts(2)), make_service()
    held = take(service)
    service.writer.start()
    fail(service, held, 0)
    assert service.writer.end()
    assert spooled(tmp_path / "spool", batch) == [0]
    assert [path.name.endswith(".offered.jsonl") for path in tmp_path.glob("spool/*/*")] == [True]
    assert list(tmp_path.glob("spool/*.lock")) == []


def leave(store: Store, service: Service, folder: Path, batch: str) -> None:
    """Let a worker die after it wrote two records down, and before it delivered them."""
    held = take(service)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.writer, "_deliver", lambda pairs: None)
        service.writer.start()
        fail(service, held, 0)
        fail(service, held, 1)
        service.writer.stop()
        service.writer.join()
    assert service.spool is not None
    service.spool.close(delivered=False)
    assert spooled(folder, batch) == [0, 1]


def test_records_of_an_attempt_that_another_followed_are_not_stored(
    store: Store, make_service: MakeService, tmp_path: Path
) -> None:
    """The fence is asked: they are void, and offered no second time."""
    batch = make_batch(store, prompts(2))
    leave(store, make_service(), tmp_path / "spool", batch)
    assert store.claim(batch, 0) is not None
    spool = Spool(tmp_path / "spool", "next")
    assert spool.offer(store) == 0
    assert store.batch(batch).failed == 0
    assert [path.name.endswith(".offered.jsonl") for path in tmp_path.glob("spool/*/*")] == [True]


def test_records_of_a_shard_that_is_done_are_not_counted_again(
    store: Store, make_service: MakeService, tmp_path: Path
) -> None:
    """A worker that dies just after it finished a shard: its fence is still the shard's."""
    batch, service = make_batch(store, [*prompts(2), {"prompt": "x", "model": "other"}]), make_service()
    leave(store, service, tmp_path / "spool", batch)
    [held] = service.held
    [path] = tmp_path.glob("spool/*/*.jsonl")
    with path.open("rb") as file:
        lines = [entry.line for _, entry in read_entries(file, batch)]
    store.write(held.attempt, lines)
    assert store.finish(held.attempt, len(lines))
    assert Spool(tmp_path / "spool", "next").offer(store) == 0
    assert store.batch(batch).failed == 2


def test_what_is_not_this_redis_or_not_dead_is_left_alone(
    store: Store, make_service: MakeService, tmp_path: Path
) -> None:
    """A living worker's files, and those of batches that this Redis does not know, wait for whom they concern."""
    service = make_service()
    batch = make_batch(store, prompts(2))
    leave(store, service, tmp_path / "spool", batch)
    [path] = tmp_path.glob("spool/*/*.jsonl")
    info = f"promptmill:b:{batch}"
    store.connection.rename(info, "elsewhere")
    assert Spool(tmp_path / "spool", "next").offer(store) == 0
    assert path.exists()
    store.connection.rename("elsewhere", info)
    living = Spool(tmp_path / "spool", "living", instance="x")
    with path.open("rb") as file:
        [_, (_, entry)] = read_entries(file, batch)
    assert living.append(store.batch(batch), [entry])
    assert Spool(tmp_path / "spool", "next").offer(store) == 2
    assert (path.parent / "living.x.jsonl").exists()
    living.close(delivered=False)


def test_damaged_files_are_offered_as_far_as_they_are_sound(
    store: Store, make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A torn end hides nothing before it, and a file that is none of ours stops nobody."""
    batch = make_batch(store, prompts(2))
    leave(store, make_service(), tmp_path / "spool", batch)
    [path] = tmp_path.glob("spool/*/*.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    (path.parent / "a.jsonl").write_bytes(b"\x00" * 1000)
    assert Spool(tmp_path / "spool", "next").offer(store) == 1
    assert store.batch(batch).failed == 1
    assert len(said(caplog, "spool_damaged")) == 2


@pytest.mark.parametrize("key", ["info", "fences"])
def test_a_damaged_batch_keeps_no_other_from_being_offered(
    store: Store, make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """Its file is said and stays; the others' records are stored."""
    bad, good = (make_batch(store, prompts(2)) for _ in range(2))
    for batch in (bad, good):
        leave(store, make_service(), tmp_path / "spool", batch)
    damaged = getattr(BatchKeys(bad), key)
    store.connection.delete(damaged)
    store.connection.set(damaged, "x")
    assert Spool(tmp_path / "spool", "next").offer(store) == 2
    assert store.batch(good).failed == 2
    [message] = said(caplog, "spool_unreadable")
    assert bad in message


def test_what_a_full_redis_does_not_take_is_offered_again(
    server: Server, store: Store, make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker asks again until it is taken, and says so once."""
    batch = make_batch(store, prompts(2))
    leave(store, make_service(), tmp_path / "spool", batch)
    spool = Spool(tmp_path / "spool", "next")
    server.configure("maxmemory", 1)
    assert spool.offer(store) == spool.offer(store) == 0
    assert len(said(caplog, "redis_out")) == 1
    server.configure("maxmemory", 0)
    assert spool.offer(store) == 2
    assert store.batch(batch).failed == 2


def test_a_clean_stop_in_an_outage_charges_nobody(
    server: Server, store: Store, make_service: MakeService, tmp_path: Path
) -> None:
    """The shard cannot be handed back; this host's next worker does it; its lines do not count as tried."""
    make_batch(store, prompts(3))
    service = make_service()
    held = take(service)
    store.begin(held.attempt, [0, 1], service.instance, store.connection)
    server.stop()
    assert service.spool is not None
    service.spool.open()
    service.spool.close(delivered=True)
    service.spool.leave([held.attempt])
    server.start()
    Spool(tmp_path / "spool", "next").offer(store)
    attempt = store.claim(held.attempt.batch_id, 0, "another")
    assert attempt is not None
    assert attempt.tries == {}
    assert list((tmp_path / "spool").glob("*.lock")) == []


def test_the_writer_says_when_nothing_waits_for_redis_any_more(
    server: Server, store: Store, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when it is out or back: suspects wait for that, and nobody looks again and again."""
    make_batch(store, prompts(3))
    service = make_service()
    held = take(service)
    said: list[int | None] = []
    monkeypatch.setattr(service.writer, "_on_settled", lambda: said.append(service.writer.unstored))
    service.writer.start()
    fail(service, held, 0)
    until(lambda: said == [0], "it is stored")
    server.stop()
    fail(service, held, 1)
    until(lambda: said == [0, None], "the outage is noticed")
    server.start()
    until(lambda: said == [0, None, 1, 0], "it is stored")
