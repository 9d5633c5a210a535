"""`promptmill results --from-spool`: a batch's records without any Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from jobs import spool
from jobs.batch import Batch, new_batch_id
from jobs.errors import RefusedError
from jobs.spool import OFFERED, SUFFIX, SpoolEntry
from jobs.store.store import FinishedLine
from submit.cli import main
from submit.results import from_spool
from submit.results.destination import Destination
from worker.faults.spool import Spool


@pytest.fixture(autouse=True)
def _no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which nothing answers: whoever connects fails."""
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://127.0.0.1:1")


def batch(**fields: Any) -> Batch:
    return Batch(**{"id": new_batch_id(), "status": "in_progress", "name": "nightly", "total": 3, **fields})


def entry(of: Batch, index: int, text: str = "a", *, fence: int = 1, ok: bool = True, chat: bool = True) -> SpoolEntry:
    record: dict[str, Any] = {"id": f"row-{index}", "index": index, "batch_id": of.id}
    if ok:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        record |= {"model": "m", "model_revision": None, "text": text, "stop_reason": "eos", "finish_reason": "stop"}
        record |= {"usage": usage, "created_at": "2026-11-20T01:02:03.456Z"}
    else:
        record["error"] = {"code": "worker_crashed", "message": text, "param": None}
    return SpoolEntry(0, fence, chat, FinishedLine(index, ok, 1, 1, 0, orjson.dumps(record)))


def spooled(folder: Path, of: Batch, *entries: SpoolEntry, instance: str = "one") -> Path:
    """A spool folder in which a worker wrote these."""
    spool = Spool(folder, "mini.7", instance=instance)
    assert spool.append(of, entries)
    spool.close(delivered=False)
    return folder


def lines(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.splitlines()]


def test_all_lines_of_two_workers_in_the_order_of_the_input(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Exit status 0, one record per line, and stderr says that all were found; the name does as well as the id."""
    of, older = batch(), batch(id="b_" + "0" * 26)
    a = spooled(tmp_path / "a", of, entry(of, 2), entry(of, 0))
    b = spooled(tmp_path / "b", of, entry(of, 1))
    spooled(b, older, entry(older, 0, "old"))
    for name in (of.id, "nightly"):
        assert main(["results", name, "--from-spool", str(a), str(b)]) == 0
        out, err = capsysbinary.readouterr()
        assert [record["id"] for record in lines(out)] == ["row-0", "row-1", "row-2"]
        assert err.decode() == f"batch {of.id}: found 3 of 3 lines\n"
    assert main(["results", of.id, "--from-spool", str(a), "--from-spool", str(b), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(("twins", "said"), [(2, "2 lines equal to others"), (1, "1 line equal to others")])
def test_lines_that_have_the_records_of_others_are_counted(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], twins: int, said: str
) -> None:
    """A deduplicated batch: how many lines of the input are not in the output, for people and as JSON."""
    of = batch(twins=twins)
    folder = spooled(tmp_path, of, *(entry(of, index) for index in range(3)))
    assert main(["results", of.id, "--from-spool", str(folder)]) == 0
    out, err = capsysbinary.readouterr()
    assert len(lines(out)) == 3
    about, found = err.decode().splitlines()
    assert about.startswith(f"{said} of the batch (--dedupe)")
    assert found == f"batch {of.id}: found 3 of 3 lines"
    assert main(["results", of.id, "--from-spool", str(folder), "-o", str(tmp_path / "out.jsonl"), "--json"]) == 0
    assert orjson.loads(capsysbinary.readouterr().out)["twins"] == twins


def test_the_best_record_of_a_line_wins(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A result before an error, then the latest attempt's, then the first seen; folders of batches and files do."""
    of = batch()
    spooled(tmp_path, of, entry(of, 0, "early"), entry(of, 1, "bad", fence=9, ok=False), entry(of, 2, "first"))
    spooled(tmp_path, of, entry(of, 0, "late", fence=2), entry(of, 1, "good"), entry(of, 2, "second"), instance="two")
    for paths in ([tmp_path / of.id], sorted((tmp_path / of.id).iterdir()), [tmp_path, tmp_path]):
        assert main(["results", of.id, "--from-spool", *map(str, paths)]) == 0
        assert [record["text"] for record in lines(capsysbinary.readouterr().out)] == ["late", "good", "first"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_worker_that_starts_meanwhile_renames_files(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whenever it does, all records are found: before the headers are read, before the records are, or between."""
    of = batch(total=2)
    spooled(tmp_path, of, entry(of, 0), entry(of, 1))
    [path] = tmp_path.glob("*/*.jsonl")
    real, opened = from_spool.open_spool, 0

    def renaming(wanted: Path) -> BinaryIO:
        nonlocal opened
        if opened == after:
            path.rename(path.with_name(path.name.removesuffix(SUFFIX) + OFFERED))
        opened += 1
        return real(wanted)

    monkeypatch.setattr(from_spool, "open_spool", renaming)
    monkeypatch.setattr(spool, "open_spool", renaming)
    assert main(["results", "nightly", "--from-spool", str(tmp_path)]) == 0
    assert opened > after
    assert [record["id"] for record in lines(capsysbinary.readouterr().out)] == ["row-0", "row-1"]


def test_a_file_that_goes_away_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changed under the reader, who is to try again."""
    of = batch(total=1)
    spooled(tmp_path, of, entry(of, 0))
    real = from_spool.Output

    def removing(*arguments: Any) -> Any:
        for path in tmp_path.glob("*/*.jsonl"):
            path.unlink()
        return real(*arguments)

    monkeypatch.setattr(from_spool, "Output", removing)
    assert main(["results", "nightly", "--from-spool", str(tmp_path)]) == 1
    assert "changed while it was read; run the same command again" in capsys.readouterr().err


def test_what_is_missing_failed_or_damaged_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1; failed lines have their own file, and nothing is silently left out."""
    of = batch()
    spooled(tmp_path / "spool", of, entry(of, 0), entry(of, 2, "no", ok=False))
    [path] = (tmp_path / "spool" / of.id).iterdir()
    path.write_bytes(path.read_bytes() + b'{"shard":0,"fence":1,"ok":true,"ch')
    out = tmp_path / "out.jsonl"
    assert main(["results", of.id, "--from-spool", str(tmp_path / "spool"), "-o", str(out), "--json"]) == 1
    said = capsys.readouterr()
    shown = orjson.loads(said.out)
    assert [shown[name] for name in ("id", "total", "written", "missing", "damaged")] == [of.id, 3, 2, 1, 1]
    assert shown["failed_by_code"] == {"worker_crashed": 1}
    assert said.err.splitlines() == [
        "1 damaged line of the spools passed over",
        f"batch {of.id}: found 2 of 3 lines; "
        "1 missing: not finished, refused at submission, or in another worker's spool",
        f"1 line failed: their records are in {tmp_path / 'out.errors.jsonl'}",
    ]
    assert [record["index"] for record in lines(out.read_bytes())] == [0]
    assert [record["index"] for record in lines((tmp_path / "out.errors.jsonl").read_bytes())] == [2]


def test_openais_envelopes_need_no_prompts(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Conversations and completions have their own bodies, errors their status."""
    of = batch()
    spooled(tmp_path, of, entry(of, 0), entry(of, 1, chat=False), entry(of, 2, "no", ok=False))
    assert main(["results", of.id, "--from-spool", str(tmp_path), "--format", "openai"]) == 1
    bodies = [row["response"]["body"] for row in lines(capsysbinary.readouterr().out)]
    assert [body.get("object") for body in bodies] == ["chat.completion", "text_completion", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such", "--from-spool", "SPOOL"], "no record of a batch 'no-such' is in "),
        (["nightly", "--from-spool", "SPOOL/nothing"], "nothing does not exist"),
        (["nightly", "--from-spool", "SPOOL", "--follow"], "--follow goes with Redis"),
        (["nightly", "--from-spool", "SPOOL", "--timeout", "5s"], "--timeout goes with --follow"),
        (["nightly", "--from-spool", "SPOOL", "--format", "chat"], "needs the prompts, which are in Redis"),
        (["nightly", "SPOOL"], "one argument too many"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and the message says why."""
    of = batch()
    spooled(tmp_path, of, entry(of, 0))
    assert main(["results", *(text.replace("SPOOL", str(tmp_path)) for text in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_whose_size_is_not_known_is_not_called_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line about the batch is damaged: its records are found by the folder's name."""
    of = batch()
    spooled(tmp_path, of, entry(of, 0))
    [path] = (tmp_path / of.id).iterdir()
    path.write_bytes(path.read_bytes()[10:])
    assert main(["results", of.id, "--from-spool", str(tmp_path)]) == 1
    assert "found 1 line; how many it has is not known" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records would be missed without a word."""
    closed = tmp_path / "b_1"
    closed.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != closed)
    with pytest.raises(RefusedError, match="b_1 cannot be read: you may not"):
        from_spool.write_spooled("b_1", [tmp_path], Destination(tmp_path / "out.jsonl"))
