"""Who is let in, and what each sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.store import Store
from serve.access.keyfile import changed_keys
from tests.commands import promptmill
from tests.pool import make_batch, prompts, publish
from tests.server.serve.conftest import Client, as_key

FILE = {"file": ("x.jsonl", b'{"a": 1}\n')}
PURPOSE = {"purpose": "batch"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        as_key("forged"),
        as_key("late"),
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_a_good_key_nobody_comes_in(client_of: Client, keys: Path, headers: dict[str, str]) -> None:
    """None, a wrong one, one that has expired, another scheme, a long one."""
    client = client_of(keys=keys)
    for path in ("/v1/files", "/v1/batches", "/v1/models", "/v1/nothing"):
        answer = client.get(path, headers={name: value.encode("latin-1") for name, value in headers.items()})  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_revoked_key_is_out_at_once(client_of: Client, keys: Path) -> None:
    """The file is read again when it has changed."""
    client = client_of(keys=keys)
    assert client.get("/v1/files", headers=as_key("ann")).status_code == 200
    with changed_keys(keys) as held:
        held[:] = [key for key in held if key.name != "ann"]
    assert client.get("/v1/files", headers=as_key("ann")).status_code == 401
    assert client.get("/v1/files", headers=as_key("ben")).status_code == 200


def test_each_key_sees_its_own(client_of: Client, keys: Path, store: Store) -> None:
    """Files and batches of others look as if they were not there; an admin sees all, that of the command line too."""
    client = client_of(keys=keys)
    file = client.post("/v1/files", headers=as_key("ann"), files=FILE, data=PURPOSE).json()
    order = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.post("/v1/batches", headers=as_key("ann"), json=order).json()
    other = make_batch(store, prompts(1))
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content", f"/v1/batches/{batch['id']}"):
        seen = {name: client.get(path, headers=as_key(name)).status_code for name in ("ann", "ben", "boss")}
        assert seen == {"ann": 200, "ben": 404, "boss": 200}
    assert client.delete(f"/v1/files/{file['id']}", headers=as_key("ben")).status_code == 404
    assert client.post(f"/v1/batches/{batch['id']}/cancel", headers=as_key("ben")).status_code == 404
    listed = {
        name: {item["id"] for item in client.get("/v1/batches", headers=as_key(name)).json()["data"]}
        for name in ("ann", "ben", "boss")
    }
    assert listed == {"ann": {batch["id"]}, "ben": set(), "boss": {batch["id"], other}}
    assert client.get("/v1/files", headers=as_key("ben")).json()["data"] == []
    assert client.get(f"/v1/batches/{other}", headers=as_key("ann")).status_code == 404


def test_a_key_may_be_limited_to_models(client_of: Client, keys: Path, store: Store) -> None:
    """Others are not listed for it, and look as if nobody served them."""
    queues = ["promptmill:normal:a/b", "promptmill:normal:c/d"]
    publish(store, "w", models=["a/b", "c/d"], queues=queues)
    client = client_of(keys=keys)
    listed = [model["id"] for model in client.get("/v1/models", headers=as_key("limited")).json()["data"]]
    assert listed == ["a/b"]
    asked = {"model": "c/d", "prompt": "x"}
    answer = client.post("/v1/completions", headers=as_key("limited"), json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8577", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403), ("[x", 403)],
)
def test_without_keys_only_this_machine_is_answered(client_of: Client, host: str, status: int) -> None:
    """A web page whose name points here sends its own name as the host."""
    assert client_of().get("/v1/files", headers={"Host": host}).status_code == status


def test_other_origins_are_let_in_by_name_only(client_of: Client) -> None:
    """A browser is told nothing unless the flag names the page."""
    page = {"Origin": "https://tools.example"}
    assert "access-control-allow-origin" not in client_of().get("/v1/files", headers=page).headers
    allowed = client_of(origins=("https://tools.example",)).get("/v1/files", headers=page)
    assert allowed.headers["access-control-allow-origin"] == "https://tools.example"


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    """A key is shown once; the file has only its hash, and is for its owner alone."""
    path = tmp_path / "keys.json"
    key = promptmill("key", "add", "ann", "--keys", str(path), "--models", "a/b").stdout.strip()
    assert key.startswith("sk-pm-")
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert promptmill("key", "add", "ann", "--keys", str(path), check=False).returncode == 2
    assert promptmill("key", "list", "--keys", str(path)).stdout == "ann  models: a/b\n"
    promptmill("key", "revoke", "ann", "--keys", str(path))
    assert promptmill("key", "revoke", "ann", "--keys", str(path), check=False).returncode == 2


def test_other_machines_need_keys(tmp_path: Path) -> None:
    """An address that is not this machine's own is not served without them."""
    refused = promptmill("serve", "--host", "0.0.0.0", "--files", str(tmp_path), check=False)
    assert refused.returncode == 2
    assert "promptmill key add" in refused.stderr
