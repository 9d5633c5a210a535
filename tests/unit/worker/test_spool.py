"""The spool's files: what is written is read, whatever a crash or a full disk made of it."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs import spool as spool_files
from jobs.batch import Batch, new_batch_id
from jobs.spool import SpoolEntry, encode_entry, encode_header, read_entries, read_header
from jobs.store.store import FinishedLine
from worker.faults.spool import RETRY_S, SWEEP_S, Spool

DAY_S = 86400.0


def batch(**fields: Any) -> Batch:
    """A batch of ten lines as Redis tells of it."""
    return Batch(
        **{
            "id": new_batch_id(),
            "status": "in_progress",
            "name": "nightly",
            "source": "in.jsonl",
            "total": 10,
            **fields,
        }
    )


def entry(of: Batch, index: int, *, fence: int = 1, ok: bool = True, text: str = "a", shard: int = 0) -> SpoolEntry:
    """A record of a line, a result or an error."""
    record: dict[str, Any] = {"id": f"row-{index}", "index": index, "batch_id": of.id}
    record |= {"text": text} if ok else {"error": {"code": "internal_error", "message": text, "param": None}}
    return SpoolEntry(shard, fence, True, FinishedLine(index, ok, 3, 2, 1, orjson.dumps(record), 7))


def found(path: Path) -> list[SpoolEntry]:
    """The sound lines of a file."""
    with path.open("rb") as file:
        return [entry for _, entry in read_entries(file, read_header(path).batch_id)]


@pytest.fixture
def clock() -> list[float]:
    """The time, to be moved by the test."""
    return [1000.0]


@pytest.fixture
def spool(tmp_path: Path, clock: list[float]) -> Iterator[Spool]:
    """A spool of one instance."""
    made = Spool(tmp_path / "spool", "mini.7", instance="one", clock=lambda: clock[0])
    yield made
    made.close(delivered=False)


def file_of(spool: Spool, of: Batch) -> Path:
    """Where the fixture's instance writes a batch's records."""
    return spool.folder / of.id / "mini.7.one.jsonl"


def test_what_is_written_is_read(spool: Spool) -> None:
    """Header and records come back as they were, the records byte by byte."""
    of = batch()
    entries = [entry(of, 0, text='"record":{"x":1}}\n'), entry(of, 1, ok=False, fence=7, shard=3)]
    assert spool.append(of, entries[:1])
    assert spool.append(of, entries[1:])
    header = read_header(file_of(spool, of))
    assert (header.batch_id, header.name, header.source, header.total) == (of.id, "nightly", "in.jsonl", 10)
    assert found(file_of(spool, of)) == entries


def test_folders_and_files_are_the_users_alone(tmp_path: Path) -> None:
    """Modes are 0700 and 0600 whatever the umask is."""
    before = os.umask(0o000)
    try:
        spool, of = Spool(tmp_path / "a" / "spool", "mini.7"), batch()
        assert spool.append(of, [entry(of, 0)])
        spool.close(delivered=False)
    finally:
        os.umask(before)
    for path in spool.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    """Neither a worker's name nor a batch's id can be a path."""
    spool, of = Spool(tmp_path / "spool", "../../mini"), batch(id="../../b")
    assert spool.append(of, [entry(of, 0)])
    spool.close(delivered=False)
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"shard":0,"fence":1,"ok":true,"chat":true,"usage":[1,1,1],"record":{"id":"x","ind\n',
        b"\x00\xff\n",
        b"[]\n",
        b'"text"\n',
        b'{"shard":0,"fence":1,"ok":true,"chat":true,"usage":[1,1],"record":{"id":"x","index":1,"batch_id":"B"}}\n',
        b'{"shard":0,"fence":-1,"ok":true,"chat":true,"usage":[1,1,1],"record":{"id":"x","index":1,"batch_id":"B"}}\n',
        b'{"shard":0,"fence":1,"ok":false,"chat":true,"usage":[1,1,1],"record":{"id":"x","index":1,"batch_id":"B"}}\n',
        b'{"shard":0,"fence":1,"ok":true,"chat":true,"usage":[1,1,1],"record":{"id":"x","index":1,"batch_id":"other"}}\n',
        b'{"shard":0,"fence":1,"ok":true,"chat":true,"usage":[1,1,1],"record":[1]}\n',
    ],
)
def test_damaged_lines_are_passed_over_and_counted(damage: bytes) -> None:
    """What is no record of the batch hides none of those around it."""
    of = batch(id="B")
    good = [encode_entry(entry(of, index)) for index in range(2)]
    damaged: list[None] = []
    file = io.BytesIO(encode_header(of) + good[0] + damage + good[1])
    indices = [entry.line.index for _, entry in read_entries(file, "B", lambda: damaged.append(None))]
    assert (indices, len(damaged)) == ([0, 1], 1)


@pytest.mark.parametrize("block", [1, 20, 64, 1000])
def test_records_of_any_length_are_read_from_a_spool(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """However little of a line is read at a time; a damaged one of any length is passed over, and counted once."""
    monkeypatch.setattr(spool_files, "BLOCK", max(block, len(spool_files.HEADER)))
    of = batch(id="B")
    entries = [entry(of, index, text="\u00e4\U0001f600" * 500 * index) for index in range(3)]
    torn = encode_entry(entries[2]).replace("\U0001f600".encode(), b"\xff", 1)
    lines = [encode_header(of), encode_entry(entries[0]), b"\0" * 5000 + b"\n", *map(encode_entry, entries[1:]), torn]
    damaged: list[None] = []
    found = [entry for _, entry in read_entries(io.BytesIO(b"".join(lines)), "B", lambda: damaged.append(None))]
    assert (found, len(damaged)) == (entries, 2)


def test_a_torn_end_is_no_record(spool: Spool) -> None:
    """A line cut off by a crash is passed over; a file whose first line is damaged goes by its folder's name."""
    of = batch()
    spool.append(of, [entry(of, 0), entry(of, 1)])
    path = file_of(spool, of)
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    assert [entry.line.index for entry in found(path)] == [0]
    path.write_bytes(data[20:])
    assert (read_header(path).batch_id, read_header(path).total) == (of.id, 0)
    assert [entry.line.index for entry in found(path)] == [0, 1]


def test_a_full_disk_costs_no_other_record(
    spool: Spool, clock: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a line is written when the disk is full: the next one is sound, and each change of state is said once."""
    of, real, room = batch(), os.write, [20]
    spool.append(of, [entry(of, 0)])

    def write(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= min(len(data), room[0])
        return real(descriptor, data[:20])

    with monkeypatch.context() as patch:
        patch.setattr("worker.faults.spool.os.write", write)
        assert not spool.append(of, [entry(of, 1)])
        clock[0] += RETRY_S
        assert not spool.append(of, [entry(of, 2)])
    assert not spool.append(of, [entry(of, 3)])  # left alone for a while
    assert not spool.usable
    clock[0] += RETRY_S
    assert spool.append(of, [entry(of, 4)])
    assert spool.usable
    assert [entry.line.index for entry in found(file_of(spool, of))] == [0, 4]
    assert [record.getMessage().partition(str(spool.folder))[2] for record in caplog.records] == [
        ": [Errno 28] No space left on device; the worker goes on without, and tries again",
        " again",
    ]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the folder should be: the worker goes on, and ends in peace."""
    (tmp_path / "spool").touch()
    spool, of = Spool(tmp_path / "spool", "mini.7"), batch()
    assert not spool.append(of, [entry(of, 0)])
    assert not spool.append(of, [entry(of, 1)])
    spool.sweep()
    spool.close(delivered=True)
    assert len(caplog.records) == 1


def test_a_removed_file_is_made_again(spool: Spool) -> None:
    """Somebody clears the folder under a living worker: what comes after is there."""
    of = batch()
    spool.append(of, [entry(of, 0)])
    file_of(spool, of).unlink()
    spool.append(of, [entry(of, 1)])
    assert [entry.line.index for entry in found(file_of(spool, of))] == [1]


def test_each_batch_has_one_file(spool: Spool) -> None:
    """However many there are; one that comes again is written to the same file, and none stays open."""
    batches = [batch() for _ in range(37)]
    open_before = len(list(Path("/dev/fd").iterdir()))
    for index in range(2):
        for of in batches:
            assert spool.append(of, [entry(of, index)])
    assert len(list(Path("/dev/fd").iterdir())) <= open_before + 1  # its lock
    assert all(len(found(file_of(spool, of))) == 2 for of in batches)


def test_old_batches_are_removed_and_nothing_else(tmp_path: Path, clock: list[float]) -> None:
    """What was not written to for as long as it is kept goes, once an hour; other folders stay whatever their age."""
    now, old, new = [1e9], batch(), batch()
    spool = Spool(tmp_path, "mini.7", 14 * DAY_S, clock=lambda: clock[0], now=lambda: now[0])
    for of in (old, new):
        spool.append(of, [entry(of, 0)])
    spool.close(delivered=False)
    for number in range(3):  # in these somebody else keeps a file
        (tmp_path / f"b_{number:026}").mkdir()
        (tmp_path / f"b_{number:026}" / ".DS_Store").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.jsonl").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    spool.sweep()
    now[0] += 15 * DAY_S
    spool.sweep()
    assert (tmp_path / old.id).exists()  # looked less than an hour ago
    [path] = (tmp_path / new.id).iterdir()
    os.utime(path, (now[0], now[0]))
    clock[0] += SWEEP_S
    spool.sweep()
    kept = [f"b_{number:026}" for number in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [*kept, new.id, "mine"]
