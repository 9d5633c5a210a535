"""Submitting to a real server: all of a file, or nothing of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.exceptions import OutOfMemoryError

from jobs.errors import InputError, RedisError, RefusedError
from jobs.lines.line import MAX_LINE_BYTES, Defaults
from jobs.shard import ShardLine, decode_lines
from jobs.store.keys import UPLOADING, BatchKeys
from jobs.store.store import UPLOAD_LEASE_S, NewBatch, Store
from submit.input.reader import PromptFile, PromptObjects, digest_of
from submit.input.validate import CHUNK_LINES
from submit.results.read import ordered_records
from submit.upload.sharding import SHARD_LINES
from submit.upload.submitter import Order, Submitted, submit
from submit.upload.uploader import Uploader
from tests.pool import work

MODEL = Defaults({"model": "m"})
DEADLINE_S = 20.0


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"row-{number}", "prompt": f"say {number}"} for number in range(count)]


def send(store: Store, lines: Any, defaults: Defaults = MODEL, **order: Any) -> Submitted:
    return submit(store, PromptObjects(lines), Order(defaults=defaults, **order))


def send_text(store: Store, folder: Path, text: str, **order: Any) -> Submitted:
    path = folder / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with PromptFile(path) as file:
        return submit(store, file, Order(defaults=MODEL, **order))


def rejected(store: Store, lines: Any, **order: Any) -> InputError:
    """The error with which an input is refused; nothing of it is in Redis."""
    with pytest.raises(InputError) as caught:
        send(store, lines, **order)
    assert store.connection.keys("*") == []
    return caught.value


def uploaded(store: Store, batch_id: str) -> list[ShardLine]:
    """All lines as a worker would get them."""
    keys = BatchKeys(batch_id)
    numbers = [orjson.loads(row)[0] for row in store.connection.zrange(keys.table, 0, -1)]
    payloads = [store.payload(batch_id, number) for number in numbers]
    return [line for payload in payloads if payload is not None for line in decode_lines(payload)]


def records(store: Store, batch_id: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.raw) for record in ordered_records(store.connection, batch_id)]


def test_every_line_reaches_the_workers_as_it_was_written(store: Store, tmp_path: Path) -> None:
    """Raw bytes, 0-based index among the lines there are, 1-based number in the file."""
    text = '{"prompt":"a",  "temperature":1}\n\n{"id":"x","prompt":"é"}\r\n'
    done = send_text(store, tmp_path, text)
    assert uploaded(store, done.batch_id) == [
        ShardLine(0, 1, b'{"prompt":"a",  "temperature":1}'),
        ShardLine(1, 3, '{"id":"x","prompt":"é"}'.encode()),
    ]
    assert (done.total, done.rejected, done.shards, done.models) == (2, 0, 1, ("m",))


def test_large_files_become_shards_of_50_lines(store: Store) -> None:
    """Across chunks and parcels no line is lost or doubled, and the batch is live with all of them."""
    count = 2 * CHUNK_LINES + 7
    done = send(store, prompts(count))
    lines = uploaded(store, done.batch_id)
    assert [line.index for line in lines] == list(range(count))
    assert [orjson.loads(line.raw)["id"] for line in lines] == [f"row-{number}" for number in range(count)]
    assert done.shards == -(-count // SHARD_LINES)
    batch = store.batch(done.batch_id)
    assert (batch.status, batch.total) == ("in_progress", count)
    assert store.connection.llen("rq:queue:promptmill:normal:m") == done.shards


def test_lines_are_grouped_by_model_and_adapter(store: Store) -> None:
    """Each to the queue of its own model, or the batch's; results come back in the order of the input."""
    lines = [{"prompt": str(n), **({"model": f"m{n % 3}"} if n % 3 else {})} for n in range(300)]
    lines[7]["adapter_path"] = "lora"
    done = send(store, lines)
    assert done.models == ("m", "m1", "m2")
    queues = {name.decode().removeprefix("rq:queue:") for name in store.connection.smembers("rq:queues")}
    assert queues == {f"promptmill:normal:{key}" for key in ("m", "m1", "m2", "m1+lora")}
    work(store, done.batch_id)
    assert [record["index"] for record in records(store, done.batch_id)] == list(range(300))


def test_batch_carries_what_was_ordered(store: Store) -> None:
    """Name, priority, metadata, defaults and digest are stored; defaults read back are the same."""
    defaults = Defaults({"model": "m", "logit_bias": {"5": 1.0}, "stop": ["a"]})
    done = send(store, prompts(1), defaults, name="nightly", priority="high", metadata={"k": 1}, batch_id="b_mine")
    batch = store.batch("b_mine")
    assert (done.batch_id, batch.name, batch.priority, batch.metadata) == ("b_mine", "nightly", "high", {"k": 1})
    assert Defaults(batch.defaults).fields == defaults.fields
    assert store.connection.hget(BatchKeys("b_mine").info, "digest") == done.digest.encode()


def test_digest_is_the_files(store: Store, tmp_path: Path) -> None:
    """What a submission records is what digest_of says of the same file later."""
    done = send_text(store, tmp_path, '{"prompt":"a"}\n\n')
    assert done.digest == digest_of(tmp_path / "a.jsonl")


def test_one_bad_line_rejects_the_file_and_all_are_listed(store: Store) -> None:
    """Bad lines from the first to the last chunk are listed in order; nothing stays in Redis."""
    lines: list[Any] = prompts(3 * CHUNK_LINES)
    for number in (0, 5, CHUNK_LINES + 1, 3 * CHUNK_LINES - 1):
        lines[number] = {"prompt": "x", "temperature": "hot"}
    error = rejected(store, lines)
    assert [problem.line for problem in error.problems] == [1, 6, CHUNK_LINES + 2, 3 * CHUNK_LINES]
    assert error.count == 4
    assert {(problem.code, problem.field) for problem in error.problems} == {("invalid_type", "temperature")}


def test_bad_last_line_takes_back_what_was_uploaded(store: Store) -> None:
    """Thousands of lines in Redis already, and then one that is wrong: none is left."""
    error = rejected(store, [*prompts(5 * CHUNK_LINES), {"prompt": ""}])
    assert [problem.line for problem in error.problems] == [5 * CHUNK_LINES + 1]


def test_upload_is_taken_back_at_the_first_bad_line(store: Store) -> None:
    """While the rest is read for its problems, nothing waits in Redis for it, and nothing more is uploaded."""
    left: list[Any] = []

    def lines() -> Iterator[Any]:
        yield from prompts(3 * CHUNK_LINES)
        yield None
        for start in range(3):
            yield from ({"id": f"{start}-{number}", "prompt": "x"} for number in range(CHUNK_LINES))
            left.append(store.connection.keys("*"))

    rejected(store, lines())
    assert left[1:] == [[], []]


def test_problems_are_all_counted_even_where_not_all_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of nothing but bad lines does not fill the memory."""
    monkeypatch.setattr("submit.input.validate.KEPT_PROBLEMS", 1500)
    error = rejected(store, (None for _ in range(5000)))
    assert (error.count, len(error.problems)) == (5000, 1500)
    assert error.problems[-1].line == 1500


@pytest.mark.parametrize("text", ["", "\n\n  \n", "\ufeff"])
def test_empty_files_are_refused(store: Store, tmp_path: Path, text: str) -> None:
    """Nothing to do is a mistake worth an error of its own."""
    with pytest.raises(InputError) as caught:
        send_text(store, tmp_path, text)
    assert [problem.code for problem in caught.value.problems] == ["empty_file"]
    assert store.connection.keys("*") == []


def test_lines_without_a_model_are_missing_a_field(store: Store) -> None:
    """Line by line: some may name their own."""
    error = rejected(store, [{"prompt": "a", "model": "m"}, {"prompt": "b"}], defaults=Defaults({}))
    assert [(p.line, p.code, p.field) for p in error.problems] == [(2, "missing_field", "model")]


def test_duplicate_ids_name_both_lines(store: Store) -> None:
    """Explicit ids, default ids and custom_ids share one space, across chunks."""
    lines: list[dict[str, Any]] = prompts(CHUNK_LINES + 10)
    lines[3] = {"prompt": "x"}
    lines[CHUNK_LINES + 1] = {"custom_id": "row-0", "body": {"prompt": "x"}}
    lines[CHUNK_LINES + 2] = {"id": "line-4", "prompt": "x"}
    error = rejected(store, lines)
    first, second = error.problems
    assert (first.line, first.code, first.field) == (CHUNK_LINES + 2, "duplicate_custom_id", "custom_id")
    assert "'row-0' is the id of line 1" in first.message
    assert (second.line, second.field) == (CHUNK_LINES + 3, "id")
    assert "'line-4' is the id of line 4" in second.message


def test_skip_turns_bad_lines_into_records_and_runs_the_rest(store: Store, tmp_path: Path) -> None:
    """Each line ends in exactly one record: index kept, the bad line's own id kept where it has one."""
    text = '{"prompt":"a"}\nnope\n\n{"id":"mine","prompt":"x","temperature":"hot"}\n{"id":"mine","prompt":"x"}\n'
    done = send_text(store, tmp_path, text, on_bad_line="skip")
    assert (done.total, done.rejected, [problem.line for problem in done.problems]) == (4, 3, [2, 4, 5])
    batch = store.batch(done.batch_id)
    assert (batch.status, batch.total, batch.failed, batch.rejected) == ("in_progress", 4, 3, 3)
    work(store, done.batch_id)
    found = records(store, done.batch_id)
    assert [(record["id"], record["index"], record.get("error", {}).get("code")) for record in found] == [
        ("line-1", 0, None),
        ("line-2", 1, "invalid_json_line"),
        ("mine", 2, "invalid_type"),
        ("mine", 3, "duplicate_custom_id"),
    ]
    batch = store.batch(done.batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 1, 3)


def test_error_records_keep_the_users_own_id(store: Store, tmp_path: Path) -> None:
    """Wherever it can be read: of lines that are no JSON, that are cut off, too long, or whose id is a number."""
    text = (
        '{"id":"good","prompt":"a"}\n{"id":"nan","prompt":"x","seed":NaN}\n{"id":"cut","prompt":"x\n{"id":5,"prompt":"x"}\n'
        '{"custom_id":"open","body":{"prompt":""}}\n{"custom_id":"claude","params":{}}\n'
        f'{{"id":"long","prompt":"{"x" * MAX_LINE_BYTES}"}}\n'
    )
    done = send_text(store, tmp_path, text, on_bad_line="skip")
    work(store, done.batch_id)
    found = {record["index"]: record["id"] for record in records(store, done.batch_id) if "error" in record}
    assert found == {1: "nan", 2: "cut", 3: "5", 4: "open", 5: "claude", 6: "long"}


def test_error_records_of_objects_keep_their_id(store: Store) -> None:
    """A dict that is no JSON has one too."""
    done = send(store, [{"id": "mine", "prompt": object()}, {"id": "nan", "top_p": float("nan")}], on_bad_line="skip")
    assert [record["id"] for record in records(store, done.batch_id)] == ["mine", "nan"]


def test_error_records_have_all_problems_of_their_line(store: Store) -> None:
    """The first gives the code and the field, the message has them all; a duplicate id is one of them."""
    lines = [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "x", "temperature": "hot", "num_predict": 5}]
    done = send(store, lines, on_bad_line="skip")
    assert [(p.line, p.field) for p in done.problems] == [(2, "temperature"), (2, "num_predict"), (2, "id")]
    assert done.rejected == 1
    error = records(store, done.batch_id)[-1]["error"]
    assert (error["code"], error["param"]) == ("invalid_type", "temperature")
    assert error["message"].startswith("line 2, field 'temperature': must be a number, not 'hot'; also field ")
    assert "field 'num_predict': is 'max_tokens' here; also field 'id': 'a' is the id of line 1" in error["message"]


def test_a_missing_model_is_said_beside_the_other_problems(store: Store) -> None:
    """So that nobody mends a file twice."""
    error = rejected(
        store, [{"prompt": "a", "seed": -1}, {"prompt": "a", "seed": -1, "model": "m"}], defaults=Defaults({})
    )
    assert [(p.line, p.field) for p in error.problems] == [(1, "seed"), (1, "model"), (2, "seed")]
    assert error.count == 2


def test_lines_that_name_their_own_model_are_counted(store: Store) -> None:
    """Where the batch names another; spellings of the same folder are no other."""
    lines = [{"prompt": "x", "model": model} for model in ("gpt-4o-mini", "gpt-4o-mini", "m", "./m", "m/", "other")]
    done = send(store, [*lines, {"prompt": "x"}])
    assert done.own_models == {"gpt-4o-mini": 2, "other": 1}
    assert done.models == ("gpt-4o-mini", "m", "other")
    assert send(store, lines, Defaults({})).own_models == {}


def test_the_batchs_model_takes_the_place_of_the_lines_own(store: Store) -> None:
    """With override_model all lines go to its queue, as they were written, and its workers run them as its own."""
    defaults = Defaults({"model": "m/", "override_model": True})
    done = send(
        store, [{"prompt": "a", "model": "gpt-4o-mini"}, {"body": {"prompt": "b", "model": "gpt-4o"}}], defaults
    )
    assert done.models == ("m",)
    assert b'"gpt-4o-mini"' in uploaded(store, done.batch_id)[0].raw
    assert store.batch(done.batch_id).defaults == {"model": "m", "override_model": True}
    work(store, done.batch_id)
    assert [record["model"] for record in records(store, done.batch_id)] == ["m", "m"]


def test_skip_with_thousands_of_bad_lines(store: Store) -> None:
    """Every second line bad, across many shards of error records: all there, in order, completed when worked off."""
    count = 3000
    done = send(store, [{"prompt": "x" if n % 2 else ""} for n in range(count)], on_bad_line="skip")
    assert (done.total, done.rejected) == (count, count // 2)
    work(store, done.batch_id)
    found = records(store, done.batch_id)
    assert [record["index"] for record in found] == list(range(count))
    assert all(("error" in record) == (record["index"] % 2 == 0) for record in found)
    assert store.batch(done.batch_id).status == "completed"


def test_skip_of_nothing_but_bad_lines_is_complete_at_once(store: Store) -> None:
    """There is nothing to run, and every line has its record."""
    done = send(store, [{"prompt": ""}, {"prompt": ""}], on_bad_line="skip")
    batch = store.batch(done.batch_id)
    assert (batch.status, batch.failed, done.models) == ("completed", 2, ())


def test_interruption_while_reading_leaves_nothing(store: Store) -> None:
    """Ctrl-C, or an iterable that raises, in the middle of an upload."""

    def lines() -> Iterator[dict[str, Any]]:
        yield from prompts(5 * CHUNK_LINES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(store, lines())
    assert store.connection.keys("*") == []


def test_upload_that_was_swept_says_so(store: Store) -> None:
    """A machine that slept through the lease finds its batch swept: an error, and nothing left behind."""

    def lines() -> Iterator[dict[str, Any]]:
        yield from prompts(2 * CHUNK_LINES)
        late = Store(store.connection, server_time=lambda: time.time() + UPLOAD_LEASE_S + 5)
        assert len(late.sweep()) == 1
        yield from ({"prompt": "x"} for _ in range(2 * CHUNK_LINES))

    with pytest.raises(RedisError, match="submit again"):
        send(store, lines())
    assert store.connection.keys("*") == []


def test_submitting_sweeps_what_others_left(store: Store) -> None:
    """A submitter killed in the middle of an upload is cleaned up by the next one."""
    dead = Store(store.connection, server_time=lambda: time.time() - UPLOAD_LEASE_S - 5)
    dead.create(NewBatch("b_dead", None, "a", "normal", {}, {}))
    done = send(store, prompts(1))
    assert [batch.id for batch in store.batches()] == [done.batch_id]
    assert store.connection.exists(BatchKeys("b_dead").info) == 0


def test_uploader_shows_signs_of_life_while_nothing_comes(store: Store) -> None:
    """However slow the input is, the upload's lease is renewed."""
    batch = NewBatch("b_1", None, "a", "normal", {}, {})
    deadline = time.monotonic() + DEADLINE_S
    with Uploader(store, batch, heartbeat_s=0.01):
        begun = store.connection.zscore(UPLOADING, "b_1")
        while store.connection.zscore(UPLOADING, "b_1") == begun:
            assert time.monotonic() < deadline
    assert store.connection.keys("*") == []


def test_server_that_runs_full_keeps_nothing_of_the_upload(store: Store) -> None:
    """Half a batch in a full server would be in everybody's way."""
    used = store.connection.info("memory")["used_memory"]
    store.connection.config_set("maxmemory", used + (1 << 20))
    try:
        with pytest.raises(OutOfMemoryError):
            send(store, ({"prompt": os.urandom(2000).hex()} for _ in range(2 * CHUNK_LINES)))
        assert store.connection.keys("*") == []
    finally:
        store.connection.config_set("maxmemory", 0)


def test_failed_upload_is_told_to_who_submits(store: Store) -> None:
    """What goes wrong in the upload's thread ends the submission, with nothing left and no thread hanging."""

    class Broken(Store):
        def upload(self, batch: NewBatch, shards: Any) -> None:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        send(Broken(store.connection), prompts(20 * CHUNK_LINES))
    assert store.connection.keys("*") == []


@pytest.mark.parametrize(
    ("order", "named"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"on_bad_line": "ignore"}, "on_bad_line"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"metadata": {"a": object()}}, "metadata"),
        ({"defaults": Defaults({"model": "\ud800"})}, "default"),
    ],
)
def test_orders_that_make_no_sense_are_refused(store: Store, order: dict[str, Any], named: str) -> None:
    """Before anything is read or written."""
    with pytest.raises(RefusedError, match=named):
        send(store, prompts(1), **order)
    assert store.connection.keys("*") == []


def test_progress_is_told_in_lines_and_bytes(store: Store, tmp_path: Path) -> None:
    """For a display: it ends with all lines and the file's size."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt":"x"}\n' * (CHUNK_LINES + 1))
    told: list[tuple[int, int]] = []
    with PromptFile(path) as file:
        submit(store, file, Order(defaults=MODEL), progress=lambda lines, size: told.append((lines, size)))
    assert [lines for lines, _ in told] == [CHUNK_LINES, CHUNK_LINES + 1]
    assert told[-1][1] == path.stat().st_size


def test_redis_holds_little_beyond_the_payload(store: Store) -> None:
    """At most 100 bytes a line: keys, RQ's job and the server's own overhead."""
    text = "".join(chr(97 + n * 7919 % 26) for n in range(400))
    store.connection.script_flush()
    send(store, [{"prompt": "warm up"}])
    before = store.connection.info("memory")["used_memory"]
    count = 5000
    done = send(store, ({"id": f"row-{n}", "prompt": f"{n} {text[n % 100 :]}"} for n in range(count)))
    used = store.connection.info("memory")["used_memory"] - before
    payload = sum(store.connection.strlen(BatchKeys(done.batch_id).payload(n)) for n in range(done.shards))
    assert (used - payload) / count < 100
