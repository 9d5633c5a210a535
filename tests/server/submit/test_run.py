"""What `promptmill run` decides: new, gone on with, or refused; and how it keeps its worker. With a stub worker."""

from __future__ import annotations

import fcntl
import io
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.batch import Batch
from jobs.embedded.server import open_lock, try_lock
from jobs.errors import InputError, ModelLoadError, PromptmillError, RedisError, RefusedError
from jobs.lines.line import Defaults
from jobs.record import Choice
from jobs.store.store import Store
from submit.results.destination import Destination
from submit.run.lock import identity_of
from submit.run.run import RunRequest, run
from submit.run.worker_process import MOST_DEATHS, WorkerProcess
from submit.status.progress import Progress
from tests.pool import prompts, work

STUB = (sys.executable, "-P", "-m", "tests.stub_worker")
DEADLINE_S = 30.0

Run = Callable[..., int]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def ids(path: Path) -> list[str]:
    return [orjson.loads(line)["id"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def said() -> io.StringIO:
    """What runs say on stderr."""
    return io.StringIO()


@pytest.fixture
def start(server_url: str, tmp_path: Path, said: io.StringIO) -> Run:
    """Run in.jsonl into out.jsonl on the test's server with the stub worker; options are the request's."""

    def go(**options: Any) -> int:
        request = RunRequest(
            source=str(tmp_path / "in.jsonl"),
            destination=Destination(tmp_path / "out.jsonl"),
            defaults=Defaults({"model": "pocket"}),
            redis_url=server_url,
            worker=STUB,
        )
        environ = {"PROMPTMILL_DATA_DIR": str(tmp_path / "data")}
        return run(replace(request, **options), environ=environ, progress=Progress(said))

    return go


def batches(store: Store) -> list[str]:
    return [batch.id for batch in store.batches()]


def test_a_run_answers_every_line_in_order(store: Store, start: Run, tmp_path: Path, said: io.StringIO) -> None:
    """Status 0, results in the order of the input, a summary, and no temporary file left."""
    write(tmp_path / "in.jsonl", prompts(120))
    assert start() == 0
    assert ids(tmp_path / "out.jsonl") == [f"row-{number}" for number in range(120)]
    summary = said.getvalue().splitlines()[-4:]
    assert summary[0] == "120 lines: 120 succeeded"
    assert summary[1] == "ended by: 120 eos"
    assert summary[2].startswith("tokens: 1,200 prompt (480 cached), 2,400 generated; ")
    rate = re.findall(r"[\d,.]+(?= tok/s over)", summary[2])
    assert rate == re.findall(r"(?<=output )[\d,.]+(?= tok/s$)", said.getvalue().splitlines()[-5])
    assert summary[3] == f"results: {tmp_path / 'out.jsonl'}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in.jsonl", "out.jsonl"]


def test_a_run_has_a_server_of_its_own_unless_told(tmp_path: Path, start: Run) -> None:
    """Without a URL the embedded server is used, with a queue that no other run shares."""
    write(tmp_path / "in.jsonl", prompts(5))
    assert start(redis_url=None) == 0
    assert len(ids(tmp_path / "out.jsonl")) == 5
    assert (tmp_path / "data" / "appendonlydir").is_dir()


def test_run_again_repeats_nothing(store: Store, start: Run, tmp_path: Path, said: io.StringIO) -> None:
    """A complete batch is only written again, even when OUT was removed; no worker is started."""
    write(tmp_path / "in.jsonl", prompts(5))
    assert start() == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    assert start(worker=("false",)) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert "is complete already" in said.getvalue()
    assert len(batches(store)) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run gives up with the first death of its worker."""
    monkeypatch.setattr("submit.run.worker_process.MOST_DEATHS", 1)


def test_an_unfinished_batch_is_gone_on_with(
    store: Store, start: Run, tmp_path: Path, said: io.StringIO, impatient: None
) -> None:
    """Lines that have a record keep it; the others are run."""
    write(tmp_path / "in.jsonl", prompts(6))
    with pytest.raises(PromptmillError, match="died"):
        start(worker=("false",))
    (batch_id,) = batches(store)
    work(store, batch_id, only=[4, 1], answer=lambda job: [Choice(0, "first", "eos")])
    assert start() == 0
    assert batches(store) == [batch_id]
    assert f"going on with batch {batch_id}: 2 of 6 lines" in said.getvalue()
    texts = [orjson.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert texts == ["answer to row-0", "first", "answer to row-2", "answer to row-3", "first", "answer to row-5"]


def test_changed_prompts_are_refused_until_restart(store: Store, start: Run, tmp_path: Path) -> None:
    """OUT would mix two inputs: the message says what changed, nothing is touched; --restart runs it all."""
    write(tmp_path / "in.jsonl", prompts(3))
    assert start() == 0
    old = batches(store)
    write(tmp_path / "in.jsonl", prompts(4))
    with pytest.raises(RefusedError, match=r"have changed: the prompts in .*in.jsonl\. .*--restart"):
        start()
    assert len(ids(tmp_path / "out.jsonl")) == 3
    assert start(restart=True) == 0
    assert len(ids(tmp_path / "out.jsonl")) == 4
    assert batches(store) != old
    assert len(batches(store)) == 1


def test_changed_defaults_are_refused_with_their_values(store: Store, start: Run, tmp_path: Path) -> None:
    """The message names each default that differs, as it was and as it is; the same values in another guise pass."""
    write(tmp_path / "in.jsonl", prompts(3))
    first = Defaults({"model": "pocket", "temperature": 1, "stop": "END", "logit_bias": {5: 1}})
    assert start(defaults=first) == 0
    assert start(defaults=Defaults({"stop": ["END"], "model": "pocket", "temp": 1.0, "logit_bias": {"5": 1.0}})) == 0
    with pytest.raises(RefusedError) as caught:
        start(defaults=Defaults({"model": "pocket", "temperature": 0.5, "top_k": 3, "logit_bias": {5: 1}}))
    assert (
        'have changed: stop (was ["END"], is not given); temperature (was 1.0, is 0.5); '
        "top_k (was not given, is 3)." in str(caught.value)
    )


def test_a_mistake_can_be_mended_before_anything_is_done(store: Store, start: Run, tmp_path: Path) -> None:
    """With no line finished there is nothing to lose: another model is taken without --restart."""
    write(tmp_path / "in.jsonl", prompts(3))
    with pytest.raises(ModelLoadError):
        start(defaults=Defaults({"model": "broken"}))
    assert start() == 0
    assert len(batches(store)) == 1
    assert len(ids(tmp_path / "out.jsonl")) == 3


def test_a_file_of_somebody_else_is_not_overwritten(store: Store, start: Run, tmp_path: Path) -> None:
    """OUT that no run made is left alone until --restart; an empty one is taken."""
    write(tmp_path / "in.jsonl", prompts(1))
    (tmp_path / "out.jsonl").write_text("precious\n")
    with pytest.raises(RefusedError, match=r"exists already, and no run of this Redis made it.*--restart"):
        start()
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"
    assert batches(store) == []
    (tmp_path / "out.jsonl").write_text("")
    assert start() == 0
    (batch_id,) = batches(store)
    store.discard(batch_id)
    with pytest.raises(RefusedError, match="the batch it was made from is no longer in Redis"):
        start()


def test_the_prompts_themselves_are_no_place_for_results(start: Run, tmp_path: Path) -> None:
    """Not even --restart writes over the input; stdout and folders are no OUT either."""
    source = write(tmp_path / "in.jsonl", prompts(1))
    for out, message in ((source, "is the file of prompts"), (Path("-"), "needs a file"), (tmp_path, "Is a directory")):
        with pytest.raises(RefusedError, match=message):
            start(destination=Destination(out), restart=True)
    assert ids(source) == ["row-0"]


def test_two_runs_do_not_share_an_out(start: Run, tmp_path: Path) -> None:
    """The second is refused while the first runs, however it spells the path."""
    write(tmp_path / "in.jsonl", prompts(1))
    assert start() == 0
    lock = open_lock(tmp_path / "data" / "runs" / f"{identity_of(tmp_path / 'out.jsonl')}.lock")
    assert try_lock(lock, fcntl.LOCK_EX)
    with pytest.raises(RefusedError, match="another `promptmill run` is writing"):
        start(destination=Destination(tmp_path / "data" / ".." / "out.jsonl"))
    lock.close()
    assert start() == 0


def test_bad_prompts_leave_nothing_behind(store: Store, start: Run, tmp_path: Path) -> None:
    """A rejected file makes no batch and no OUT; once mended it runs without --restart."""
    write(tmp_path / "in.jsonl", [*prompts(2), {"prompt": "x", "temperatur": 1}])
    with pytest.raises(InputError, match="1 bad line"):
        start()
    assert not (tmp_path / "out.jsonl").exists()
    write(tmp_path / "in.jsonl", prompts(2))
    assert start() == 0


def test_bad_lines_may_be_skipped(start: Run, tmp_path: Path, said: io.StringIO) -> None:
    """With skip, bad lines are error records in ERR and said, and the status is 1."""
    write(tmp_path / "in.jsonl", [*prompts(2), {"id": "bad", "prompt": "x", "temperatur": 1}])
    assert start(on_bad_line="skip") == 1
    assert ids(tmp_path / "out.jsonl") == ["row-0", "row-1"]
    assert ids(tmp_path / "out.errors.jsonl") == ["bad"]
    assert "line 3, field 'temperatur': is not a field of a line; did you mean 'temperature'?" in said.getvalue()


def test_a_file_of_bad_lines_only_needs_no_worker(start: Run, tmp_path: Path) -> None:
    """Nothing to run is no reason to wait."""
    write(tmp_path / "in.jsonl", [{"id": "bad", "prompt": "x", "temperatur": 1}])
    assert start(on_bad_line="skip", worker=("false",)) == 1
    assert ids(tmp_path / "out.errors.jsonl") == ["bad"]


def test_a_worker_that_cannot_start_leaves_no_batch(store: Store, start: Run, tmp_path: Path) -> None:
    """A model that cannot be loaded, or a wrong flag: nothing would ever finish the batch, so it is gone."""
    write(tmp_path / "in.jsonl", prompts(3))
    for status, error in ((5, ModelLoadError), (2, RefusedError)):
        with pytest.raises(error):
            start(worker=("sh", "-c", f"exit {status}"))
        assert batches(store) == []
    assert start() == 0
    assert len(ids(tmp_path / "out.jsonl")) == 3


def test_a_batch_that_others_began_stays_and_is_named(
    store: Store, start: Run, tmp_path: Path, said: io.StringIO, impatient: None
) -> None:
    """Where a pool's worker has finished lines of it, it is not removed when this run's own worker cannot start."""
    write(tmp_path / "in.jsonl", prompts(3))
    with pytest.raises(PromptmillError, match="died"):
        start(worker=("false",))
    (batch,) = batches(store)
    work(store, batch, only=[1])
    with pytest.raises(RedisError, match="use `promptmill submit --wait`"):
        start(worker=("sh", "-c", "exit 3"))
    assert batches(store) == [batch]
    assert f"`promptmill results {batch}` writes what is finished" in said.getvalue()


def test_what_the_worker_warns_of_is_said_once(start: Run, tmp_path: Path, said: io.StringIO, impatient: None) -> None:
    """Its log is nothing that anybody looks at while all goes well."""
    write(tmp_path / "in.jsonl", prompts(2))
    warns = (
        'for i in 1 2; do echo "2026-11-21T10:00:00 WARNING pocket runs one row at a time" >&2; done; sleep 1; exit 1'
    )
    with pytest.raises(PromptmillError, match="died"):
        start(worker=("sh", "-c", warns))
    assert said.getvalue().count("pocket runs one row at a time") == 1


def test_an_upload_that_was_cut_short_starts_over(
    store: Store, start: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that never became live is removed, and the prompts are submitted again."""
    write(tmp_path / "in.jsonl", prompts(3))
    with monkeypatch.context() as impatient:
        impatient.setattr("submit.run.worker_process.MOST_DEATHS", 1)
        with pytest.raises(PromptmillError, match="died"):
            start(worker=("false",))
    (cut,) = batches(store)
    store.connection.hset(f"promptmill:b:{cut}", "status", "validating")
    (tmp_path / "out.jsonl").unlink()
    assert start() == 0
    assert cut not in batches(store)
    assert len(ids(tmp_path / "out.jsonl")) == 3


def test_the_worker_gets_models_adapters_and_flags(store: Store, start: Run, tmp_path: Path) -> None:
    """Models and adapters are those of the lines; other flags are handed on; no password is on its command line."""
    lines = [
        {"prompt": "x"},
        {"prompt": "x", "model": "other", "adapter_path": "tuned/a+b"},
        {"prompt": "x", "adapter_path": "tuned/c"},
    ]
    write(tmp_path / "in.jsonl", lines)
    with pytest.raises(RefusedError) as caught:
        start(worker_flags=("--max-context=99",), worker=("sh", "-c", 'echo "$@" >&2; exit 2', "sh"))
    assert (
        "--model=other --model=pocket --adapter-path=tuned/a+b --adapter-path=tuned/c --no-preload "
        f"--exit-with-parent={os.getpid()} --drain=10 --max-context=99" in str(caught.value)
    )


def test_a_model_that_gave_way_is_said_and_can_be_overridden(start: Run, tmp_path: Path, said: io.StringIO) -> None:
    """Lines that name their own model are counted; with override_model the batch's model runs them all."""
    lines = [{"id": f"row-{number}", "prompt": "x", "model": "gpt-4o-mini"} for number in range(20)]
    write(tmp_path / "in.jsonl", lines)
    with pytest.raises(RefusedError):
        start(worker=("sh", "-c", "exit 2", "sh"))
    assert (
        "20 lines name their own model 'gpt-4o-mini': --model pocket is only for lines without one" in said.getvalue()
    )
    assert start(defaults=Defaults({"model": "./pocket/", "override_model": True})) == 0
    records = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [(record["id"], record["model"]) for record in records] == [(line["id"], "pocket") for line in lines]


def test_a_model_that_cannot_be_loaded_is_5(start: Run, tmp_path: Path) -> None:
    """The worker's own words reach the user."""
    write(tmp_path / "in.jsonl", prompts(2))
    with pytest.raises(ModelLoadError, match=r"^broken: the folder is empty$"):
        start(defaults=Defaults({"model": "broken"}))


def test_other_formats_are_written_from_the_start(start: Run, tmp_path: Path) -> None:
    """OUT holds the format that was asked for; the same run can be written in another one later."""
    write(tmp_path / "in.jsonl", prompts(2))
    assert start(destination=Destination(tmp_path / "out.jsonl", fmt="completions")) == 0
    lines = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert lines == [{"prompt": "Once upon a time", "completion": f"answer to row-{n}"} for n in range(2)]
    assert start() == 0
    assert ids(tmp_path / "out.jsonl") == ["row-0", "row-1"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def supervise(tmp_path: Path, script: str, clock: Clock, said: list[str]) -> WorkerProcess:
    return WorkerProcess(["sh", "-c", script], tmp_path / "worker.log", {}, said.append, clock=clock)


def check_until(worker: WorkerProcess, batch: Callable[[], Batch], clock: Clock, said: list[str], count: int) -> None:
    """Check again and again until ``count`` messages are there."""
    deadline = time.monotonic() + DEADLINE_S
    while len(said) < count:
        assert time.monotonic() < deadline, "the worker was not seen to die"
        worker.check(batch())
        clock.now += 1.0
        time.sleep(0.005)


def test_a_worker_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    """Five deaths in a row without a finished line; the error quotes its log."""
    clock, said = Clock(), []
    worker = supervise(tmp_path, "echo boom >&2; kill -9 $$", clock, said)
    worker.start()
    running = Batch("b_1", "in_progress", total=5)
    with pytest.raises(
        PromptmillError, match=r"died 5 times in a row; the last time it was killed by signal 9(.|\n)*boom"
    ):
        check_until(worker, lambda: running, clock, said, MOST_DEATHS)
    assert [text.partition("; starting it again in ")[2].partition(" s")[0] for text in said] == ["0.5", "1", "2", "4"]


def test_a_worker_that_dies_and_gets_on_is_kept(tmp_path: Path) -> None:
    """A death after which lines have finished counts from one again."""
    clock, said = Clock(), []
    worker = supervise(tmp_path, "exit 1", clock, said)
    worker.start()
    check_until(
        worker, lambda: Batch("b_1", "in_progress", total=99, completed=len(said)), clock, said, 2 * MOST_DEATHS
    )
    assert {text.partition(";")[0] for text in said} == {"the worker ended with status 1"}


def test_a_worker_that_redis_refuses_is_not_started_again(tmp_path: Path) -> None:
    """Its last words are the error; noise before them is left in its log."""
    clock, said = Clock(), []
    words = "promptmill worker: Redis at x does not allow user 'submitter' what is needed"
    worker = supervise(tmp_path, f'echo "DeprecationWarning: y" >&2; echo "{words}" >&2; exit 3', clock, said)
    worker.start()
    running = Batch("b_1", "in_progress", total=5)
    with pytest.raises(RedisError, match=r"^the worker did not start: Redis at x does not allow user 'submitter'"):
        check_until(worker, lambda: running, clock, said, 1)
    assert said == []


def test_a_worker_that_was_ready_and_lost_redis_is_started_again(tmp_path: Path) -> None:
    """Redis comes back: status 3 is final only for one that never worked."""
    clock, said = Clock(), []
    ready = "echo 2026-11-21T10:00:00 INFO mini serves pocket >&2"
    mark = tmp_path / "ready"
    worker = supervise(tmp_path, f"[ -f {mark} ] || {ready}; touch {mark}; exit 3", clock, said)
    worker.start()
    check_until(worker, lambda: Batch("b_1", "in_progress", total=5), clock, said, 2)
    assert {text.partition(";")[0] for text in said} == {"the worker ended with status 3"}


def test_a_worker_that_does_not_stop_is_made_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM first; after its time is up the whole process group is killed."""
    monkeypatch.setattr("submit.run.worker_process.STOP_S", 0.2)
    clock, said = Clock(), []
    worker = supervise(tmp_path, "trap '' TERM; echo ready; while :; do sleep 1; done", clock, said)
    worker.start()
    deadline = time.monotonic() + DEADLINE_S
    while "ready" not in (tmp_path / "worker.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = worker._process
    assert process is not None
    worker.stop()
    assert process.returncode == -9
