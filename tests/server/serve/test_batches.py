"""Batches over HTTP, with the process that makes them called by hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.batch import new_batch_id
from jobs.errors import LineError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.cancel import cancel_line
from jobs.store.keys import INTAKE
from jobs.store.store import Store
from serve.access.access import Access
from serve.files.store import Files
from serve.intake.orders import Orders, owned_key
from serve.intake.process import Intake
from serve.settings import Limits
from submit.upload.submitter import Order, new_batch
from tests.pool import echo, finished_line, make_batch, prompts, work
from tests.server.serve.conftest import Client

LINES = [
    {"custom_id": f"row-{n}", "method": "POST", "url": "/v1/completions", "body": {"model": "a/b", "prompt": "x"}}
    for n in range(4)
]
ORDER = {"endpoint": "/v1/completions", "completion_window": "1h"}


def odd_fail(job: Job) -> list[Choice]:
    if job.index % 2:
        raise LineError("context_length_exceeded", "prompt", "it is too long")
    return echo(job)


def ordered(client: Any, lines: list[dict[str, Any]] = LINES, more: Mapping[str, Any] | None = None) -> str:
    """A batch that is to be made of these lines; its id."""
    data = b"\n".join(map(orjson.dumps, lines))
    file = client.post("/v1/files", files={"file": ("x.jsonl", data)}, data={"purpose": "batch"}).json()
    batch = client.post("/v1/batches", json={**ORDER, "input_file_id": file["id"], **(more or {})}).json()
    assert batch["status"] == "validating"
    return str(batch["id"])


@pytest.fixture
def intake(store: Store, tmp_path: Path) -> Intake:
    """What the process does."""
    return Intake(store, Files(store.connection, tmp_path / "files"), Limits())


def test_failed_lines_say_so_twice(client_of: Client, store: Store, intake: Intake) -> None:
    """In a response with its status and at the top of the line; exactly as OpenAI's with the flag."""
    client, strict = client_of(), client_of(strict_openai=True)
    batch_id = ordered(client)
    assert intake.work()
    work(store, batch_id, answer=odd_fail)
    batch = client.get(f"/v1/batches/{batch_id}").json()
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    both, openai = (
        orjson.loads(served.get(f"/v1/files/{batch['error_file_id']}/content").content.split(b"\n")[0])
        for served in (client, strict)
    )
    assert both["response"]["status_code"] == openai["response"]["status_code"] == 400
    assert both["error"]["code"] == both["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert openai["error"] is None


def test_what_is_there_of_a_running_batch_can_be_fetched(client_of: Client, store: Store, intake: Intake) -> None:
    """Line by line as it grows: the headers say how far it is, and lines that were there stay where they are."""
    client = client_of()
    batch_id = ordered(client)
    intake.work()
    assert client.get(f"/v1/batches/{batch_id}").json()["output_file_id"] is None
    work(store, batch_id, only=[2, 0])
    path = f"/v1/files/{client.get(f'/v1/batches/{batch_id}').json()['output_file_id']}/content"
    first = client.get(path)
    assert (first.headers["x-incomplete"], first.headers["x-last-line"]) == ("true", "2")
    assert [orjson.loads(line)["custom_id"] for line in first.content.splitlines()] == ["row-2", "row-0"]
    assert client.delete(path.removesuffix("/content")).status_code == 409
    work(store, batch_id)
    rest, whole = client.get(path, params={"offset": 2}), client.get(path)
    assert "x-incomplete" not in rest.headers
    assert whole.content == first.content + rest.content
    assert client.get(path, headers={"Range": "bytes=-10"}).content == whole.content[-10:]
    assert client.get(path, headers={"Range": "bytes=999999-"}).status_code == 416


def test_an_order_whose_process_died_is_taken_up(client_of: Client, store: Store, intake: Intake) -> None:
    """What the dead one left in Redis is replaced, and the batch has each line once."""
    batch_id = ordered(client_of())
    orders = Orders(store.connection)
    assert orders.take() == batch_id
    store.create(new_batch("x.jsonl", Order(batch_id=batch_id)))  # it died while it uploaded
    assert not intake.work()  # it is held still
    store.connection.zadd(INTAKE, {batch_id: 1.0})
    assert intake.work()
    batch = store.batch(batch_id)
    assert (batch.status, batch.total) == ("in_progress", 4)
    assert orders.ids() == []
    # And one that died after it: nothing is made twice.
    store.connection.zadd(INTAKE, {batch_id: 1.0})
    assert intake.work()
    assert store.batch(batch_id) == batch


def test_a_batch_is_cancelled_before_its_file_was_checked(client_of: Client, intake: Intake) -> None:
    """It never runs."""
    client = client_of()
    batch_id = ordered(client)
    assert client.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
    intake.work()
    batch = client.get(f"/v1/batches/{batch_id}").json()
    assert (batch["status"], batch["request_counts"]["total"]) == ("cancelled", 0)


def test_a_failed_batch_is_kept_as_long_as_others(client_of: Client, store: Store, intake: Intake) -> None:
    """It can be listed, and purged like any other."""
    client = client_of()
    batch_id = ordered(client, [*LINES, LINES[0]])
    intake.work()
    assert [item["status"] for item in client.get("/v1/batches").json()["data"]] == ["failed"]
    assert store.connection.zscore("promptmill:keeping", batch_id)
    store.discard(batch_id)
    assert client.get(f"/v1/batches/{batch_id}").status_code == 404
    assert store.connection.keys(f"promptmill:b:{batch_id}*") == []


def test_batches_are_listed_a_page_at_a_time(client_of: Client, store: Store) -> None:
    """In either order, without a gap, those that wait to be made too."""
    client = client_of()
    made = [make_batch(store, prompts(1)), ordered(client), make_batch(store, prompts(1))]
    pages = []
    after = ""
    while True:
        page = client.get("/v1/batches", params={"limit": 2, "order": "asc", "after": after}).json()
        pages += [item["id"] for item in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert pages == sorted(made)
    assert client.get("/v1/batches", params={"limit": 0}).status_code == 400


def test_a_line_is_cancelled_by_itself(store: Store) -> None:
    """Its worker is told, what it writes of it is void, and the batch ends with the others."""
    batch_id = make_batch(store, prompts(2))
    attempt = store.claim(batch_id, 0)
    assert attempt is not None
    record = orjson.dumps({"id": "row-1", "index": 1, "batch_id": batch_id, "error": {"code": "cancelled"}})
    assert cancel_line(store, batch_id, 0, 1, record)
    assert not cancel_line(store, batch_id, 0, 1, record)
    assert store.dropped([attempt], store.connection) == [{1}]
    work_of_dead = finished_line_of(store, batch_id)
    store.write(attempt, work_of_dead)
    assert store.finish(attempt, 2)
    batch = store.batch(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 1, 1)


def finished_line_of(store: Store, batch_id: str) -> list[Any]:
    from jobs.lines.line import Defaults, check_line
    from jobs.shard import decode_lines

    payload = store.payload(batch_id, 0)
    assert payload is not None
    defaults = Defaults(store.batch(batch_id).defaults)
    return [
        finished_line(
            check_line(line.raw).job(index=line.index, line=line.line, batch_id=batch_id, defaults=defaults),
            echo,
            batch_id,
        )
        for line in decode_lines(payload)
    ]


def test_ids_of_batches_that_nobody_made_are_not_found(client_of: Client) -> None:
    """Also where they look like ours."""
    assert client_of().get(f"/v1/batches/{new_batch_id()}").status_code == 404


def test_a_list_goes_on_behind_a_file_that_was_deleted(client_of: Client) -> None:
    """Its id tells when it was; what is no id is refused, so that no list begins again for ever."""
    client = client_of()
    ids = [
        client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"}).json()["id"]
        for _ in range(4)
    ]
    assert client.delete(f"/v1/files/{ids[1]}").status_code == 200
    for order, expected in (("asc", ids[2:]), ("desc", ids[:1])):
        page = client.get("/v1/files", params={"after": ids[1], "order": order}).json()
        assert [item["id"] for item in page["data"]] == expected
    for path in ("/v1/files", "/v1/batches"):
        refused = client.get(path, params={"after": "nonsense"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


def test_ranges_of_both_kinds_of_files(client_of: Client, store: Store) -> None:
    """One range is answered with its bytes, an impossible one with an error as all others, and what is none is
    passed over."""
    client = client_of()
    batch = make_batch(store, prompts(3))
    work(store, batch)
    made = client.post("/v1/files", files={"file": ("a.jsonl", b"0123456789")}, data={"purpose": "batch"}).json()
    for file_id in (made["id"], f"file-{batch}-output"):
        path = f"/v1/files/{file_id}/content"
        whole = client.get(path)
        assert whole.headers["accept-ranges"] == "bytes"
        for given, part in (("bytes=2-5", whole.content[2:6]), ("bytes=-3", whole.content[-3:])):
            answer = client.get(path, headers={"Range": given})
            assert (answer.status_code, answer.content) == (206, part)
        impossible = client.get(path, headers={"Range": "bytes=999999-"})
        assert (impossible.status_code, list(impossible.json())) == (416, ["error"])
        for given in ("bytes=a-b", "bytes=-", "bytes=0-1,3-4", "lines=0-1"):
            answer = client.get(path, headers={"Range": given})
            assert (answer.status_code, answer.content) == (200, whole.content)


def test_files_end_by_themselves(client_of: Client, store: Store, tmp_path: Path) -> None:
    """From that moment on nobody sees them, and their bytes go."""
    client = client_of()
    data = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file_id = client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data=data).json()["id"]
    folder = tmp_path / "files"
    for hours, there in ((0.9, True), (1.1, False)):
        files = Files(store.connection, folder, now=lambda later=hours * 3600: time.time() + later)
        files.tidy()
        assert (files.find(file_id, Access()) is not None) is there
        assert bool(list(folder.iterdir())) is there
    assert client.get(f"/v1/files/{file_id}").status_code == 404


def test_results_end_when_it_was_said(client_of: Client, store: Store, intake: Intake) -> None:
    """So long after the batch's end, as its files say; without it after the usual time."""
    client = client_of()
    said = ordered(client, more={"output_expires_after": {"anchor": "created_at", "seconds": 3600}})
    for batch_id, seconds in ((said, 3600), (ordered(client), 14 * 86400)):
        intake.work()
        work(store, batch_id)
        ended = store.batch(batch_id).ended_at
        assert ended is not None
        assert client.get(f"/v1/files/file-{batch_id}-output").json()["expires_at"] == int(ended + seconds)
        due = store.connection.zscore("promptmill:keeping", batch_id)
        assert due == pytest.approx(ended + seconds, abs=1)


def test_metadata_of_the_command_line_are_texts(client_of: Client, store: Store) -> None:
    """As OpenAI's clients expect; what is none is shown as JSON."""
    batch_id = make_batch(store, prompts(1), metadata={"run": "a", "about": {"n": 1}})
    assert client_of().get(f"/v1/batches/{batch_id}").json()["metadata"] == {"run": "a", "about": '{"n":1}'}


def test_batches_of_a_key_are_not_remembered_for_ever(client_of: Client, store: Store) -> None:
    """Those that can be there no more leave its list when another one is created."""
    store.connection.zadd(owned_key(""), {"b_0": 1.0})
    ordered(client_of())
    assert store.connection.zscore(owned_key(""), "b_0") is None
