"""Requests that are meant to harm: a clear refusal, and nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve.access.access import Gate
from serve.http.guard import Guard
from serve.settings import Limits
from tests.server.serve.conftest import Client

BOUNDARY = "multipart/form-data; boundary=B"


def form(*parts: str, end: str = "--B--\r\n") -> bytes:
    return ("".join(f"--B\r\n{part}\r\n" for part in parts) + end).encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n{}'
EXPIRY = 'Content-Disposition: form-data; name="expires_after{}"\r\n\r\n{}'
PURPOSE = 'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", form(PURPOSE, FILE)),
        (f"multipart/form-data; boundary={'x' * 300}", b""),
        (BOUNDARY, b""),
        (BOUNDARY, b"no form at all"),
        (BOUNDARY, form(PURPOSE, FILE, end="")),
        (BOUNDARY, form(PURPOSE, FILE, FILE)),
        (BOUNDARY, form(FILE)),
        (BOUNDARY, form(PURPOSE, FILE, EXPIRY.format("", "[3600]"))),
        (BOUNDARY, form(PURPOSE, FILE, EXPIRY.format("", '{"anchor": "created_at"}'))),
        (BOUNDARY, form(PURPOSE, FILE, EXPIRY.format("", '{"anchor": "created_at", "seconds": 5}'))),
        (BOUNDARY, form(PURPOSE, FILE, EXPIRY.format("[anchor]", "created_at"), EXPIRY.format("[seconds]", "²"))),
        (BOUNDARY, form(PURPOSE)),
        (BOUNDARY, form(PURPOSE, 'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n')),
        (BOUNDARY, form("A" * 20_000 + ": x\r\n\r\nx")),
        (BOUNDARY, form('Content-Disposition: form-data; name="purpose"\r\n\r\n' + "x" * 10_000, FILE)),
        (BOUNDARY, form(PURPOSE, *['Content-Disposition: form-data; name="a"\r\n\r\nx'] * 99, FILE)),
        (
            BOUNDARY,
            form(
                PURPOSE,
                FILE,
                EXPIRY.format("[anchor]", "created_at"),
                EXPIRY.format("[seconds]", "0000003600" + "9" * 400),
            ),
        ),
        (BOUNDARY, form(*(f'Content-Disposition: form-data; name="{n}"\r\n\r\nx' for n in range(99)), FILE)),
    ],
)
def test_a_form_that_is_none_is_refused(client_of: Client, tmp_path: Path, kind: str, body: bytes) -> None:
    """Whatever is wrong with it: with a status of 400, and no bytes of it stay."""
    answer = client_of().post("/v1/files", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert list((tmp_path / "files").iterdir()) == []


def test_an_expiry_may_be_one_field(client_of: Client) -> None:
    """In JSON, as forms may hold objects, beside the two fields that OpenAI's client sends."""
    whole = form(PURPOSE, FILE, EXPIRY.format("", '{"anchor": "created_at", "seconds": 3600}'))
    file = client_of().post("/v1/files", content=whole, headers={"Content-Type": BOUNDARY}).json()
    assert file["expires_at"] - file["created_at"] == 3600


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../../etc/passwd", "passwd"),
        ("C:\\x\\y.jsonl", "y.jsonl"),
        ("a\x1b[2Jb.jsonl", "a__2Jb.jsonl"),
        ("..", "upload.jsonl"),
        ("n" * 500, "n" * 200),
    ],
)
def test_names_of_files_are_no_paths(client_of: Client, tmp_path: Path, name: str, kept: str) -> None:
    """Only the last part counts, without what steers terminals; on disk a file has a name of our own."""
    part = FILE.replace('"x"', f'"{name}"')
    answer = client_of().post("/v1/files", content=form(PURPOSE, part), headers={"Content-Type": BOUNDARY}).json()
    assert answer["filename"] == kept
    assert [path.name for path in (tmp_path / "files").iterdir()] == [f"{answer['id']}.jsonl"]


@pytest.mark.parametrize("file_id", ["../keys.json", "..%2f..%2fetc%2fpasswd", "file-x", "file-b_0-output", "%00"])
def test_ids_are_no_paths(client_of: Client, file_id: str) -> None:
    """What is no id is not found."""
    client = client_of()
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{file_id}"):
        assert client.get(path).status_code == 404


def test_what_is_too_large_is_refused(client_of: Client, tmp_path: Path) -> None:
    """By its announced length before anything is read, by its bytes while they come, by its lines in the end."""
    client = client_of(limits=Limits(file_bytes=1 << 21, file_lines=10))
    announced = client.post(
        "/v1/files", content=b"", headers={"Content-Type": BOUNDARY, "Content-Length": str(10 << 30)}
    )
    large = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("x", b"x" * (5 << 20))})
    lines = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("x", b"{}\n" * 11)})
    body = client.post("/v1/chat/completions", content=b"x" * (5 << 20))
    assert [answer.status_code for answer in (announced, large, lines, body)] == [413, 413, 400, 413]
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"null", b"\xff", b'{"model": 1}', b'{"model": "a/b"}', b"[" * 100_000, b'{"a":' * 5000],
)
def test_bodies_that_are_no_requests_are_refused(client_of: Client, body: bytes) -> None:
    """At every path that takes one."""
    client = client_of()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/batches"):
        assert client.post(path, content=body).status_code == 400


def test_a_body_that_stands_still_is_cut_off() -> None:
    """And the client is told."""

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()

    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"5")]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": headers}
    asyncio.run(Guard(app, Gate(None), Limits(quiet_s=0.01))(scope, silent, send))
    assert said[0]["status"] == 408
    assert (b"connection", b"close") in said[0]["headers"]


def test_a_deeply_nested_request_is_refused(client_of: Client) -> None:
    """Deeper than it can be written again."""
    body = b'{"model":"a/b","prompt":"x","metadata":' + b'{"a":' * 500 + b"1" + b"}" * 501
    assert client_of().post("/v1/completions", content=body).status_code == 400


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"Content-Length": "2", "Transfer-Encoding": "chunked"}, 400),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Host": "127.0.0.1.example.com"}, 403),
    ],
)
def test_heads_that_mislead_are_refused(client_of: Client, header: dict[str, str], status: int) -> None:
    """Two lengths of a body, a compressed one, a name that looks like an address of this machine."""
    assert client_of().post("/v1/completions", content=b"{}", headers=header).status_code == status


def test_large_bodies_share_a_room() -> None:
    """Who comes when it is full is told to come again; small bodies and, afterwards, others are taken."""
    answers: list[int] = []

    async def ask(guard: Guard, size: int, inside: asyncio.Event, leave: asyncio.Event | None = None) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if "status" in message:
                answers.append(message["status"])

        headers = [(b"host", b"localhost"), (b"content-length", b"%d" % size)]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await guard({**scope, "inside": inside, "leave": leave}, receive, send)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["inside"].set()
        if scope["leave"] is not None:
            await scope["leave"].wait()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def scenario() -> None:
        guard = Guard(app, Gate(None), Limits(bodies_bytes=100_000))
        inside, leave = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(ask(guard, 150_000, inside, leave))
        await inside.wait()
        await ask(guard, 150_000, asyncio.Event())
        await ask(guard, 60_000, asyncio.Event())
        leave.set()
        await first
        await ask(guard, 150_000, asyncio.Event())

    asyncio.run(scenario())
    assert answers == [503, 200, 200, 200]


def test_a_head_that_comes_in_one_piece_is_counted(client_of: Client) -> None:
    """However fast it comes, and whatever is asked."""
    for path in ("/health", "/v1/models"):
        refused = client_of().get(path, headers={"X-Long": "a" * 70_000})
        assert (refused.status_code, refused.json()["error"]["code"]) == (431, "request_too_large")
