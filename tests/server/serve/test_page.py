"""What the page at / lives on: its files, its JSON, and who may do what there."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from pyarrow import parquet
from starlette.testclient import TestClient

from jobs.errors import LineError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.store import Store
from serve.files.store import Files
from serve.intake.process import Intake
from serve.page import batches, records
from serve.page.assets import FOLDER
from serve.page.spread import histogram
from serve.settings import Limits
from submit.results.destination import WHOLE, Destination
from submit.results.read import ordered_records
from submit.results.tables.open import table_blocks
from tests.pool import MODEL, echo, make_batch, prompts, publish, work
from tests.server.serve.conftest import Client, as_key

MARK = {"X-Promptmill-Page": "1"}


@pytest.fixture
def intake(store: Store, tmp_path: Path) -> Intake:
    """What the process does that makes batches."""
    return Intake(store, Files(store.connection, tmp_path / "files"), Limits())


def odd_fail(job: Job) -> list[Choice]:
    if job.index % 2:
        raise LineError("context_length_exceeded", "prompt", "it is too long")
    return echo(job)


def uploaded(client: TestClient, *lines: Any, headers: dict[str, str] = MARK) -> str:
    data = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    answer = client.post("/api/files", files={"file": ("x.jsonl", data)}, data={"purpose": "batch"}, headers=headers)
    return str(answer.json()["id"])


def all_records(client: TestClient, batch_id: str, **asked: Any) -> list[dict[str, Any]]:
    """The records of every page."""
    found: list[dict[str, Any]] = []
    at = ""
    while True:
        page = client.get(f"/api/batches/{batch_id}/records", params={**asked, "at": at}).json()
        found += page["records"]
        if page["next"] is None:
            return found
        at = str(page["next"])


# --- the files ---


def test_the_page_takes_nothing_from_elsewhere(client_of: Client) -> None:
    """Each file it names is there, under a policy that lets only these in; none names another site."""
    client = client_of()
    index = client.get("/")
    assert "default-src 'none'" in index.headers["content-security-policy"]
    assert "unsafe" not in index.headers["content-security-policy"]
    names = {path.name for path in FOLDER.iterdir()}
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"https?://[^\s\"'<>]+", text)
        assert set(links) <= {"http://www.w3.org/2000/svg"}
        assert set(re.findall(r"(?:page|\.)/([a-z]+\.[a-z]+)", text)) <= names
        answer = client.get(f"/page/{path.name}")
        assert (answer.status_code, answer.text) == (200, text)
        assert client.get(f"/page/{path.name}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/%2e%2e%2fassets.py").status_code == 404


# --- who may do what ---


def test_a_change_takes_the_header_of_the_page(client_of: Client, store: Store) -> None:
    """Another site's form can send none: nothing happens."""
    client, batch_id = client_of(), make_batch(store, prompts(1))
    for path in (f"batches/{batch_id}/cancel", "pool/pause", "files", "schedules/x/run"):
        assert client.post(f"/api/{path}").status_code == 403
    assert store.batch(batch_id).status == "in_progress"
    assert client.post(f"/api/batches/{batch_id}/cancel", headers=MARK).json() == {"done": "cancelled"}


def test_a_key_that_was_typed_in_comes_back_as_a_cookie(client_of: Client, keys: Path) -> None:
    """For the page alone, out of reach of scripts and other sites; not after the end, and not for the API."""
    client = client_of(keys=keys)
    assert client.get("/").status_code == client.get("/page/app.js").status_code == 200
    assert client.get("/api/session").status_code == 401
    assert client.post("/api/session", headers={**MARK, "Authorization": "Bearer wrong-secret"}).status_code == 401
    entered = client.post("/api/session", headers={**MARK, **as_key("ann")})
    cookie = entered.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/api/"))
    assert client.get("/api/session").json() == {"keys": True, "name": "ann", "admin": False, "models": []}
    kept = {"Cookie": f"promptmill_key={as_key('ann')['Authorization'].split()[1]}"}
    assert client.get("/v1/models", headers=kept).status_code == 401
    client.request("DELETE", "/api/session", headers=MARK)
    assert client.get("/api/session").status_code == 401


def test_a_key_sees_its_own(client_of: Client, keys: Path, store: Store) -> None:
    """Its batches and what workers do; others' batches, machines, schedules and the pool's pause are an admin's."""
    client = client_of(keys=keys)
    hers, his = (make_batch(store, prompts(1), metadata={"_openai": {"owner": name}}) for name in ("ann", "ben"))
    store.connection.zadd("promptmill:batches:of:ann", {hers: 1.0, his: 2.0})
    publish(store, "mini.1", models=["a/b"], hostname="mini.local", in_flight=[{"batch_id": his, "index": 0}])
    ann, boss = as_key("ann"), as_key("boss")
    assert [item["id"] for item in client.get("/api/batches", headers=ann).json()["batches"]] == [hers]
    assert len(client.get("/api/batches", headers=boss).json()["batches"]) == 2
    for path in ("", "/records", "/records/0", "/spread", "/download"):
        assert client.get(f"/api/batches/{his}{path}", headers=ann).status_code == 404
    for act in ("cancel", "retry", "pause", "resume", "priority", "remove"):
        body = {"priority": "high"}
        assert client.post(f"/api/batches/{his}/{act}", json=body, headers={**MARK, **ann}).status_code == 404
    pool = client.get("/api/pool", headers=ann)
    assert "mini.1" in pool.text
    assert his not in pool.text
    assert "mini.local" not in pool.text
    assert "mini.local" in client.get("/api/pool", headers=boss).text
    assert client.get("/api/schedules", headers=ann).status_code == 403
    assert client.post("/api/pool/pause", headers={**MARK, **ann}).status_code == 403
    assert client.post("/api/pool/pause", headers={**MARK, **boss}).json() == {"done": True}


# --- batches and records ---


def test_batches_are_listed_a_page_at_a_time(client_of: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, the newest first; searched and by state; the next page goes on where one was removed."""
    monkeypatch.setattr(batches, "LISTED", 2)
    monkeypatch.setattr(batches, "AT_A_TIME", 2)
    client = client_of()
    made = [make_batch(store, prompts(1), name=f"night {number}") for number in range(5)]
    found: list[str] = []
    after = ""
    while True:
        page = client.get("/api/batches", params={"after": after}).json()
        found += [item["id"] for item in page["batches"]]
        if page["next"] is None:
            break
        after = page["next"]
        if len(found) == 2:
            store.discard(after)
    assert found == made[::-1]
    work(store, made[0])
    ended = client.get("/api/batches", params={"state": "ended"}).json()["batches"]
    assert [(item["id"], item["state"], item["ran"]) for item in ended] == [(made[0], "completed", 1)]
    named = client.get("/api/batches", params={"text": "NIGHT 2"}).json()["batches"]
    assert [item["id"] for item in named] == [made[2]]
    assert client.get("/api/batches", params={"state": "odd"}).status_code == 400


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_records_are_searched_a_page_at_a_time(
    client_of: Client, store: Store, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """In either order, each once, however they are cut into pages; by text, stop reason and error."""
    monkeypatch.setattr(records, "LISTED", 4)
    monkeypatch.setattr(records, "BLOCK", 3)
    client, batch_id = client_of(), make_batch(store, prompts(21))
    work(store, batch_id, answer=odd_fail)
    lines = [record["line"] for record in all_records(client, batch_id, order=order)]
    assert sorted(lines) == list(range(1, 22))
    failed = all_records(client, batch_id, order=order, error="context_length_exceeded")
    assert len(failed) == 10
    assert {record["error"]["code"] for record in failed} == {"context_length_exceeded"}
    assert len(all_records(client, batch_id, order=order, stop="eos")) == 11
    assert all_records(client, batch_id, order=order, stop="max_tokens") == []
    (one,) = all_records(client, batch_id, order=order, text="ANSWER to row-12")
    whole = client.get(f"/api/batches/{batch_id}/records/{one['place']}").json()
    assert whole["record"]["text"] == "answer to row-12"
    assert whole["prompt"] == "Once upon a time"
    assert client.get(f"/api/batches/{batch_id}/records/9999").status_code == 404


def test_a_request_looks_at_a_bounded_number_of_records(
    client_of: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that finds nothing says where to go on."""
    monkeypatch.setattr(records, "MOST_LOOKED_AT", 6)
    monkeypatch.setattr(records, "BLOCK", 3)
    client, batch_id = client_of(), make_batch(store, prompts(20))
    work(store, batch_id)
    page = client.get(f"/api/batches/{batch_id}/records", params={"text": "nowhere"}).json()
    assert (page["records"], page["looked_at"], page["next"], page["finished"]) == ([], 6, 6, 20)


def test_of_a_cancelled_batch_what_was_finished_is_listed(client_of: Client, store: Store) -> None:
    """Lines that never ran have no record to list; the download has one for each line."""
    client, batch_id = client_of(), make_batch(store, prompts(5))
    work(store, batch_id, only=[1, 3])
    client.post(f"/api/batches/{batch_id}/cancel", headers=MARK)
    assert [record["line"] for record in all_records(client, batch_id, order="oldest")] == [2, 4]
    assert client.get(f"/api/batches/{batch_id}").json()["unrun"] == 3
    assert len(client.get(f"/api/batches/{batch_id}/download").content.splitlines()) == 5


def test_every_format_can_be_downloaded(client_of: Client, store: Store) -> None:
    """As the command line writes it; what a format cannot hold is said before anything is sent."""
    client, batch_id = client_of(), make_batch(store, prompts(4), name="my batch/1")
    work(store, batch_id, answer=odd_fail)
    known = client.get("/api/models").json()
    lines, content = {}, {}
    for name in known["formats"]:
        answer = client.get(f"/api/batches/{batch_id}/download", params={"format": name})
        assert answer.status_code == 200
        assert f'filename="my-batch-1.{name}' in answer.headers["content-disposition"]
        content[name] = answer.content
        if name not in WHOLE:
            lines[name] = [orjson.loads(line) for line in answer.content.splitlines()]
    rows = list(csv.DictReader(io.StringIO(content["csv"].decode())))
    table = parquet.read_table(io.BytesIO(content["parquet"])).to_pylist()
    for found in (lines["flat"], rows, table):
        assert [row["id"] for row in found] == ["row-0", "row-1", "row-2", "row-3"]
        assert found[0]["completion"] == "answer to row-0"
        assert found[1]["error"] == "context_length_exceeded: it is too long"
    assert [line["index"] for line in lines["native"]] == [0, 1, 2, 3]
    assert [line["custom_id"] for line in lines["openai"]] == ["row-0", "row-1", "row-2", "row-3"]
    assert lines["completions"][0] == {"prompt": "Once upon a time", "completion": "answer to row-0"}
    assert len(lines["chat"]) == 2
    failed = client.get(f"/api/batches/{batch_id}/download", params={"which": "failed"}).content.splitlines()
    assert len(failed) == 2
    talk = [{"messages": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]}]
    batch_id = make_batch(store, talk)
    work(store, batch_id)
    refused = client.get(f"/api/batches/{batch_id}/download", params={"format": "completions"})
    assert refused.status_code == 400
    assert "--format chat" in refused.json()["error"]["message"]
    assert client.get(f"/api/batches/{batch_id}/download", params={"format": "odd"}).status_code == 400


def test_a_large_table_is_sent_in_blocks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group at a time, and each row once; as the command writes it where keys of texts are columns."""
    monkeypatch.setattr("submit.results.tables.parquet.STREAMED_GROUP_BYTES", 1000)
    monkeypatch.setattr("submit.results.tables.arrow.BATCH_ROWS", 10)
    batch_id = make_batch(store, prompts(95))
    work(store, batch_id, answer=lambda job: [Choice(0, f'{{"n": {job.index}}}', "eos")])
    batch = store.batch(batch_id)
    destination = Destination(fmt="parquet", json_columns=True)
    blocks = list(table_blocks(destination, store, batch, ordered_records(store.connection, batch_id)))
    assert len(blocks) > 5
    assert parquet.read_table(io.BytesIO(b"".join(blocks)))["n"].to_pylist() == list(range(95))


def test_parquet_says_what_it_needs(client_of: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyarrow is missing: in the choices, before a download and in its place."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    client, batch_id = client_of(), make_batch(store, prompts(1))
    assert "needs the package pyarrow" in client.get("/api/models").json()["missing"]["parquet"]
    for more in ("", "&try=1"):
        answer = client.get(f"/api/batches/{batch_id}/download?format=parquet{more}")
        assert answer.status_code == 400
        assert "needs the package pyarrow" in answer.json()["error"]["message"]
    assert client.get(f"/api/batches/{batch_id}/download?format=csv&try=1").json() == {"begins": True}


def test_a_batch_is_paused_moved_and_retried(client_of: Client, store: Store) -> None:
    """As by the commands; what cannot be done is said."""
    client, batch_id = client_of(), make_batch(store, prompts(4))

    def act(what: str, **body: Any) -> Any:
        return client.post(f"/api/batches/{batch_id}/{what}", json=body, headers=MARK)

    act("pause")
    assert client.get(f"/api/batches/{batch_id}").json()["state"] == "paused"
    act("resume")
    act("priority", priority="high")
    assert (store.batch(batch_id).paused, store.batch(batch_id).priority) == (False, "high")
    assert "odd" in act("priority", priority="odd").json()["error"]["message"]
    assert act("remove").status_code == 400
    work(store, batch_id, answer=odd_fail)
    assert act("pause").status_code == 400
    assert act("retry").json() == {"done": 2}
    assert act("odd").status_code == 404
    work(store, batch_id)
    assert client.get(f"/api/batches/{batch_id}").json()["completed"] == 4
    assert act("remove").status_code == 200
    assert client.get(f"/api/batches/{batch_id}").status_code == 404


def test_lengths_and_speeds_are_counted(client_of: Client, store: Store) -> None:
    """With how the records ended."""
    client, batch_id = client_of(), make_batch(store, prompts(9))
    work(store, batch_id, answer=odd_fail)
    spread = client.get(f"/api/batches/{batch_id}/spread").json()
    assert (spread["records"], spread["of"]) == (9, 9)
    assert (spread["stops"], spread["errors"]) == ({"eos": 5}, {"context_length_exceeded": 4})
    assert spread["completion_tokens"]["counts"] == [5]
    assert spread["tokens_per_second"]["median"] == 40.0


def test_histograms_hold_every_value() -> None:
    """Whole numbers that are few have a bin each."""
    assert histogram([]) is None
    made = histogram([3, 4, 4, 6])
    assert made is not None
    assert made["counts"] == [1, 2, 0, 1]
    wide = histogram([0.5 * number for number in range(1000)])
    assert wide is not None
    assert sum(wide["counts"]) == 1000
    assert (wide["low"], wide["high"], wide["median"]) == (0.0, 499.5, 250.0)


# --- a new batch ---


def test_a_new_batch_of_plain_lines(client_of: Client, store: Store, intake: Intake) -> None:
    """Lines as `promptmill submit` takes them, with a model and values for those that name none."""
    client = client_of()
    file_id = uploaded(client, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y", "model": "other/m"})
    body = {"model": MODEL, "name": "mine", "priority": "low", "defaults": {"max_tokens": 7}, "window": "24h"}
    batch_id = client.post(f"/api/files/{file_id}/submit", json=body, headers=MARK).json()["id"]
    assert client.get(f"/api/batches/{batch_id}").json()["state"] == "validating"
    assert client.get("/api/batches").json()["batches"][0]["id"] == batch_id
    assert intake.work()
    batch = store.batch(batch_id)
    assert (batch.status, batch.name, batch.priority, batch.total) == ("in_progress", "mine", "low", 2)
    assert sorted(batch.models) == ["other/m", MODEL]
    assert dict(batch.defaults) == {"max_tokens": 7, "model": MODEL}
    shown = client.get(f"/api/batches/{batch_id}").json()
    assert shown["source"] == "x.jsonl"
    assert shown["metadata"] == {}


def test_bad_lines_fail_a_batch_or_are_left_out(client_of: Client, store: Store, intake: Intake) -> None:
    """Which of these is said with it; the errors are in the words of our own lines."""
    client = client_of()
    file_id = uploaded(client, {"id": "a", "prompt": "x"}, {"id": "b", "promt": "y"})

    def made(**body: Any) -> dict[str, Any]:
        answer = client.post(f"/api/files/{file_id}/submit", json={"model": MODEL, **body}, headers=MARK).json()
        intake.work()
        return dict(client.get(f"/api/batches/{answer['id']}").json())

    failed = made()
    assert failed["state"] == "failed"
    assert {(item["line"], item["param"]) for item in failed["errors"]} == {(2, "promt"), (2, "prompt")}
    skipped = made(on_bad_line="skip")
    assert (skipped["status"], skipped["total"], skipped["rejected"]) == ("in_progress", 2, 1)


def test_a_check_says_what_is_wrong_with_each_line(client_of: Client) -> None:
    """Without a worker that serves the model nothing is rendered, and nothing of the host is told."""
    client = client_of()
    file_id = uploaded(client, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y", "temperature": -1}, b"{")
    answer = client.post(f"/api/files/{file_id}/check", json={"model": MODEL}, headers=MARK)
    result = orjson.loads(answer.content.splitlines()[-1])["result"]
    assert (result["lines"], result["bad_lines"], result["rendered"]) == (3, 2, None)
    assert [(item["line"], item["field"]) for item in result["problems"]] == [(2, "temperature"), (2, "id"), (3, None)]
    assert "/" not in answer.text.replace(MODEL, "")


# --- schedules ---


WHEN = {"name": "nightly", "cron": "0 2 * * *", "zone": "Europe/Berlin"}


def test_a_schedule_of_a_file_that_was_uploaded(client_of: Client, store: Store) -> None:
    """With all that is said of its batches; nothing of the host is told. It is paused, resumed and removed."""
    client = client_of()
    body = {"model": MODEL, "defaults": {"top_p": 0.9}, "priority": "low", "keep": "forever", "metadata": {"k": 1}}
    body |= {"file_id": uploaded(client, {"id": "a", "prompt": "x"})}
    added = client.post("/api/schedules", json={**body, "schedule": {**WHEN, "catch_up": True}}, headers=MARK)
    assert added.json() == {"name": "nightly"}
    (shown,) = client.get("/api/schedules").json()["schedules"]
    assert (shown["source"], shown["lines"], shown["catch_up"], shown["paused"]) == ("x.jsonl", 1, True, False)
    again = client.post("/api/schedules", json={**body, "schedule": WHEN}, headers=MARK)
    assert "there is a schedule 'nightly' already" in again.json()["error"]["message"].lower()
    batch = store.batch(client.post("/api/schedules/nightly/run", headers=MARK).json()["done"])
    assert (batch.priority, batch.keep_s, batch.metadata, batch.source) == ("low", None, {"k": 1}, "x.jsonl")
    assert (dict(batch.defaults), "expires" in batch.times) == ({"top_p": 0.9, "model": MODEL}, False)
    for act, paused in (("pause", True), ("resume", False)):
        assert client.post(f"/api/schedules/nightly/{act}", headers=MARK).json() == {"done": True}
        assert client.get("/api/schedules").json()["schedules"][0]["paused"] is paused
    assert client.post("/api/schedules/nightly/remove", headers=MARK).json() == {"done": True}
    assert client.post("/api/schedules/nightly/pause", headers=MARK).status_code == 400


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "a name"}, "expected up to 48 letters"),
        ({"cron": "1 2"}, "A cron expression has 5 fields"),
        ({"cron": None}, "Missing required parameter: 'cron'"),
        ({"zone": "Mars/North"}, "is no time zone here"),
        ({"path": "../x"}, "give the absolute path"),
        ({"pth": "/x"}, "did you mean 'path'"),
        ({}, "line 1, field 'prompt'"),
    ],
)
def test_a_schedule_that_makes_no_sense(client_of: Client, store: Store, schedule: dict[str, Any], said: str) -> None:
    """Is refused by name, as are bad lines."""
    client = client_of()
    body = {"model": MODEL, "file_id": uploaded(client, {"prompt": 5}), "schedule": {**WHEN, **schedule}}
    answer = client.post("/api/schedules", json=body, headers=MARK)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert client.get("/api/schedules").json()["counted"] == 0


def test_when_a_schedule_would_run(client_of: Client, keys: Path) -> None:
    """Its next times, for admins."""
    client, when = client_of(keys=keys), {"cron": "@hourly", "zone": "UTC"}
    found = client.get("/api/schedules/next", params=when, headers=as_key("boss")).json()
    assert [later - earlier for earlier, later in pairwise(found["next"])] == [3600, 3600]
    assert client.get("/api/schedules/next", params=when, headers=as_key("ann")).status_code == 403
    others = {**MARK, **as_key("ann")}
    assert client.post("/api/schedules", json={"schedule": WHEN}, headers=others).status_code == 403


def test_a_worker_is_paused(client_of: Client, keys: Path, store: Store) -> None:
    """By its name, by admins: others do not see the names either."""
    client, boss = client_of(keys=keys), {**MARK, **as_key("boss")}
    assert client.post("/api/workers/pause", json={"name": "mini.1"}, headers=boss).json() == {"done": True}
    assert client.get("/api/pool", headers=boss).json()["paused_names"] == ["mini.1"]
    assert client.get("/api/pool", headers=as_key("ann")).json()["paused_names"] == []
    for body in ({}, {"name": ""}, {"name": 5}):
        assert client.post("/api/workers/pause", json=body, headers=boss).status_code == 400
    others = {**MARK, **as_key("ann")}
    assert client.post("/api/workers/resume", json={"name": "mini.1"}, headers=others).status_code == 403
    assert client.post("/api/workers/resume", json={"name": "mini.1"}, headers=boss).json() == {"done": True}
    assert client.get("/api/pool", headers=boss).json()["paused_names"] == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"defaults": {"temperature": -1}}, "temperature"),
        ({"defaults": {"odd": 1}}, "odd"),
        ({"defaults": []}, "defaults"),
        ({"window": "1s"}, "window"),
        ({"window": 5}, "window"),
        ({"priority": "odd"}, "priority"),
        ({"name": "x" * 1000}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"keep": "5 moons"}, "keep"),
        ({"webhook": "ftp://x"}, "webhook"),
        ({"metadata": {"_openai": {}}}, "metadata"),
        ({"modle": "x"}, "did you mean 'model'"),
    ],
)
def test_what_makes_no_sense_is_refused(client_of: Client, body: dict[str, Any], said: str) -> None:
    """By name, before a batch is made."""
    client = client_of()
    answer = client.post(f"/api/files/{uploaded(client, {'prompt': 'x'})}/submit", json=body, headers=MARK)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_limited_key_cannot_choose_another_model(client_of: Client, keys: Path) -> None:
    """Neither for a check nor for a batch; nor another's file."""
    client = client_of(keys=keys)
    limited = {**MARK, **as_key("limited")}
    file_id = uploaded(client, {"prompt": "x"}, headers=limited)
    for act in ("check", "submit"):
        assert client.post(f"/api/files/{file_id}/{act}", json={"model": "c/d"}, headers=limited).status_code == 404
        others = {**MARK, **as_key("ann")}
        assert client.post(f"/api/files/{file_id}/{act}", json={"model": "a/b"}, headers=others).status_code == 404
