"""Following a batch on a real server: order, completeness, whole files, waiting, and Redis going away."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis.exceptions

from jobs.batch import Batch
from jobs.errors import BatchNotFoundError, LineError, PromptmillError, RefusedError, WaitTimeoutError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.store import Store
from submit.results import follow
from submit.results.destination import Destination
from submit.results.follow import follow_results, write_results
from submit.results.formats import renderer
from submit.results.output import Output
from submit.status.workers import Workers
from tests.pool import echo, make_batch, prompts, publish, work


def indices(path: Path) -> list[int]:
    return [orjson.loads(line)["index"] for line in path.read_bytes().splitlines()]


def odd_fail(job: Job) -> Sequence[Choice]:
    """Lines with an odd index fail."""
    if job.index % 2:
        raise LineError("internal_error", None, "odd")
    return echo(job)


class Steps:
    """A sleep that does something each time in place of waiting, and the clock that goes with it."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.left = list(steps)
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "waited in vain"
        if self.left:
            self.left.pop(0)()

    def clock(self) -> float:
        return self.now


class Told:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.states: list[tuple[int, str | None]] = []
        self.notes: list[str] = []

    def update(self, batch: Batch, waiting: str | None = None) -> None:
        self.states.append((batch.finished, waiting))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_results_are_in_the_order_of_the_input(store: Store, tmp_path: Path) -> None:
    """Whatever order lines finished in, over models and shards; errors in their own file, in order too."""
    lines = [{**line, "model": f"m{number % 3}"} for number, line in enumerate(prompts(200))]
    batch_id = make_batch(store, lines)
    work(store, batch_id, only=reversed(range(200)), answer=odd_fail)
    out = tmp_path / "results.jsonl"
    batch, _ = write_results(store, batch_id, Destination(out))
    assert indices(out) == list(range(0, 200, 2))
    assert indices(tmp_path / "results.errors.jsonl") == list(range(1, 200, 2))
    assert (batch.completed, batch.failed) == (100, 100)


def test_rejected_lines_are_among_the_errors(store: Store, tmp_path: Path) -> None:
    """A line refused at submission is in the file of errors at its place, once."""
    bad = {"id": "bad", "prompt": "x", "temperature": -1}
    batch_id = make_batch(store, [*prompts(2), bad, {"id": "last", "prompt": "x"}], on_bad_line="skip")
    work(store, batch_id)
    write_results(store, batch_id, Destination(tmp_path / "out.jsonl"))
    assert indices(tmp_path / "out.jsonl") == [0, 1, 3]
    assert indices(tmp_path / "out.errors.jsonl") == [2]


def test_following_writes_lines_as_they_finish(store: Store, tmp_path: Path) -> None:
    """Live, in the order of finishing, each line once, until the batch is done; results and errors apart."""
    batch_id = make_batch(store, prompts(10))
    out, seen = tmp_path / "out.jsonl", []

    def step(*only: int) -> Callable[[], None]:
        def act() -> None:
            seen.append(indices(out))
            work(store, batch_id, only=only, answer=odd_fail)

        return act

    steps = Steps(step(4, 2), step(9), step(), step(0, 1, 3, 5, 6, 7, 8))
    batch, _ = follow_results(store, batch_id, Destination(out), clock=steps.clock, sleep=steps.sleep)
    assert seen == [[], [4, 2], [4, 2], [4, 2]]
    assert indices(out) == [4, 2, 0, 6, 8]
    assert indices(tmp_path / "out.errors.jsonl") == [9, 1, 3, 5, 7]
    assert batch.status == "completed"


def test_following_again_starts_over_from_redis(store: Store, tmp_path: Path) -> None:
    """What an earlier follower wrote, torn or not, is replaced by what Redis has."""
    batch_id = make_batch(store, prompts(4))
    work(store, batch_id, only=[2, 0])
    out = tmp_path / "out.jsonl"
    out.write_bytes(b'{"index": 2}\n{"ind')
    steps = Steps(lambda: work(store, batch_id, only=[3, 1]))
    follow_results(store, batch_id, Destination(out), clock=steps.clock, sleep=steps.sleep)
    assert indices(out) == [2, 0, 3, 1]


def test_waiting_ends_with_the_timeout(store: Store, tmp_path: Path) -> None:
    """The error says how far the batch is; what was finished is in the file, and no temporary file is left."""
    batch_id = make_batch(store, prompts(3))
    work(store, batch_id, only=[1])
    steps = Steps()
    with pytest.raises(WaitTimeoutError, match="not done after 30s: 1 of 3 lines"):
        follow_results(
            store, batch_id, Destination(tmp_path / "out.jsonl"), timeout=30, clock=steps.clock, sleep=steps.sleep
        )
    assert steps.now == pytest.approx(30, abs=0.5)
    assert indices(tmp_path / "out.jsonl") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_of_errors_is_written_only_for_errors(store: Store, tmp_path: Path) -> None:
    """Without failed lines there is no file of errors, and one from an earlier call goes away."""
    batch_id = make_batch(store, prompts(2))
    work(store, batch_id)
    stale = tmp_path / "out.errors.jsonl"
    stale.write_text("old\n")
    write_results(store, batch_id, Destination(tmp_path / "out.jsonl"))
    assert not stale.exists()
    stale.write_text("old\n")
    follow_results(store, batch_id, Destination(tmp_path / "out.jsonl"))
    assert not stale.exists()


def test_the_old_file_stays_until_the_new_one_is_whole(store: Store, tmp_path: Path) -> None:
    """A failure half-way leaves OUT as it was, and nothing beside it."""
    batch_id = make_batch(store, [*prompts(1), {"messages": [{"role": "user", "content": "a"}] * 2}])
    work(store, batch_id)
    out = tmp_path / "train.jsonl"
    out.write_text("old\n")
    with pytest.raises(RefusedError, match="--format chat"):
        write_results(store, batch_id, Destination(out, fmt="completions"))
    assert out.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_links_and_permissions_are_kept(store: Store, tmp_path: Path) -> None:
    """OUT that is a link is written where it leads, with the permissions it had."""
    batch_id = make_batch(store, prompts(1))
    work(store, batch_id)
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("old\n")
    real.chmod(0o640)
    link.symlink_to(real)
    write_results(store, batch_id, Destination(link))
    assert link.is_symlink()
    assert indices(real) == [0]
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_devices_are_written_not_replaced(store: Store, tmp_path: Path) -> None:
    """A pipe as OUT gets the records, and stays a pipe."""
    batch_id = make_batch(store, prompts(3))
    work(store, batch_id)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_results(store, batch_id, Destination(pipe))
        assert len(os.read(reader, 1 << 16).splitlines()) == 3
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_stdout_gets_errors_too_unless_they_have_a_file(store: Store, tmp_path: Path) -> None:
    """Without OUT no record is lost: errors go to stdout with the others, or to the file given for them."""
    batch_id = make_batch(store, prompts(4))
    work(store, batch_id, answer=odd_fail)
    for errors, expected in ((None, [0, 1, 2, 3]), (tmp_path / "errors.jsonl", [0, 2])):
        stream = io.BytesIO()
        destination = Destination(errors=errors)
        with Output(destination, renderer(destination, store, store.batch(batch_id)), stream) as output:
            for record in follow.finished_records(store.connection, batch_id):
                output.put(record)
        assert [orjson.loads(line)["index"] for line in stream.getvalue().splitlines()] == expected
    assert indices(tmp_path / "errors.jsonl") == [1, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("write", [write_results, follow_results])
def test_a_full_disk_is_a_clear_error(store: Store, write: Callable[..., Any]) -> None:
    """The message names the file and says that nothing is lost."""
    batch_id = make_batch(store, prompts(3))
    work(store, batch_id)
    with pytest.raises(PromptmillError, match=r"/dev/full cannot be written: No space left on device; nothing is lost"):
        write(store, batch_id, Destination(Path("/dev/full")))


@pytest.mark.parametrize(("path", "reason"), [("missing/out.jsonl", "No such file"), (".", "Is a directory")])
def test_a_path_that_cannot_be_written_is_refused(store: Store, tmp_path: Path, path: str, reason: str) -> None:
    """A folder that is missing, or is no file, is the user's to change: exit status 2."""
    batch_id = make_batch(store, prompts(1))
    with pytest.raises(RefusedError, match=f"cannot be written: {reason}.*give another path"):
        write_results(store, batch_id, Destination(tmp_path / path))


def test_errors_in_the_place_of_results_are_refused(store: Store, tmp_path: Path) -> None:
    """OUT and ERR cannot be one file, and formats without a file of errors take none."""
    batch_id = make_batch(store, prompts(1))
    with pytest.raises(RefusedError, match="give --errors another path"):
        write_results(store, batch_id, Destination(tmp_path / "a", errors=tmp_path / "x" / ".." / "a"))
    with pytest.raises(RefusedError, match="--errors goes with --format native"):
        write_results(store, batch_id, Destination(tmp_path / "a", errors=tmp_path / "b", fmt="chat"))


def test_a_purged_batch_ends_following(store: Store, tmp_path: Path) -> None:
    """A batch that is removed while it is followed is no traceback and no endless wait."""
    batch_id = make_batch(store, prompts(3))
    steps = Steps(lambda: store.discard(batch_id))
    with pytest.raises(BatchNotFoundError, match=batch_id):
        follow_results(store, batch_id, Destination(tmp_path / "out.jsonl"), clock=steps.clock, sleep=steps.sleep)


def test_redis_may_go_away_and_come_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is waited out and said once; each line is written once, also when it began in mid-read."""
    batch_id = make_batch(store, prompts(6))
    work(store, batch_id, only=range(4))
    real, calls = follow.finished_records, 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        for number, record in enumerate(real(*arguments, **options)):
            if calls == 1 and number == 2:
                raise redis.exceptions.ConnectionError("gone")
            yield record
        if calls == 2:
            raise redis.exceptions.TimeoutError("slow")

    monkeypatch.setattr(follow, "finished_records", failing)
    told, steps = Told(), Steps(lambda: None, lambda: work(store, batch_id))
    out = tmp_path / "out.jsonl"
    follow_results(store, batch_id, Destination(out), progress=told, clock=steps.clock, sleep=steps.sleep)
    assert indices(out) == [0, 1, 2, 3, 4, 5]
    assert told.notes == ["Redis is away; waiting for it to come back", "Redis is back"]


def test_an_outage_is_not_waited_out_for_ever(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After minutes without Redis its error is raised."""
    batch_id = make_batch(store, prompts(1))

    def failing(*_arguments: Any, **_options: Any) -> Any:
        raise redis.exceptions.ConnectionError("gone")

    monkeypatch.setattr(follow, "finished_records", failing)
    steps = Steps()
    with pytest.raises(redis.exceptions.ConnectionError):
        follow_results(store, batch_id, Destination(tmp_path / "out.jsonl"), clock=steps.clock, sleep=steps.sleep)
    assert 300 <= steps.now < 310


def test_progress_hears_why_a_batch_waits(store: Store, tmp_path: Path) -> None:
    """No worker, then one that loads the model, then work."""
    batch_id = make_batch(store, prompts(2))
    flight = {"batch_id": batch_id, "index": 0, "id": "row-0", "phase": "decode"}
    serving = {"model": "pocket", "models": ["pocket"], "queues": ["promptmill:normal:pocket"]}
    steps = Steps(
        lambda: publish(store, "mini.1", **serving, state="loading"),
        *[lambda: None] * 5,
        lambda: publish(store, "mini.1", **serving, state="busy", in_flight=[flight]),
        lambda: work(store, batch_id, only=[0]),
        *[lambda: None] * 5,
        lambda: work(store, batch_id),
    )
    told = Told()
    follow_results(
        store,
        batch_id,
        Destination(tmp_path / "out.jsonl"),
        progress=told,
        poll_s=1.0,
        clock=steps.clock,
        sleep=steps.sleep,
    )
    states = list(dict.fromkeys(told.states))
    assert states == [
        (0, "waiting: no worker serves pocket"),
        (0, "loading pocket"),
        (0, None),
        (1, None),
        (2, None),
    ]


def test_workers_are_found_and_forgotten(store: Store) -> None:
    """A worker is seen within seconds of its first sign of life, and not after its last."""
    now = 0.0
    workers = Workers(store.connection, clock=lambda: now)
    publish(store, "a.1", queues=["q"])
    assert [state.name for state in workers.read()] == ["a.1"]
    publish(store, "b.2")
    now = 6.0
    assert [state.name for state in workers.read()] == ["a.1", "b.2"]
    store.connection.delete("promptmill:worker:a.1")
    assert [state.name for state in workers.read()] == ["b.2"]
