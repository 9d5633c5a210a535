"""Webhooks as a user meets them: `submit --webhook`, `status`, and the client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from standardwebhooks import Webhook

from jobs.store.store import Store
from submit.client.client import Client
from submit.webhooks.sender import deliver_due
from submit.webhooks.signature import Signer
from tests.pool import MODEL, work
from tests.receiver import receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwc2VjcmV0IQ=="


def promptmill(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "RQ_"))}
    command = [sys.executable, "-P", "-m", "submit.cli", *map(str, arguments)]
    environment = {**kept, "PROMPTMILL_REDIS_URL": url}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt":"a"}\n{"prompt":"b"}\n')
    return path


def test_a_webhook_from_submit_to_status(store: Store, server_url: str, prompts: Path) -> None:
    """`status` says how far it has come, and of its URL no more than the host."""
    with receiving() as receiver:
        done = promptmill(server_url, "submit", prompts, "--model", MODEL, "--webhook", receiver.url)
        assert done.returncode == 0, done.stderr
        batch_id = done.stdout.strip()
        host = f"http://127.0.0.1:{receiver.port}"
        assert f"webhook   {host}, when the batch is done\n" in promptmill(server_url, "status", batch_id).stdout
        work(store, batch_id)
        deliver_due(store, Signer(SECRET), hosts=["127.0.0.1"])
        [request] = receiver.received
        event = Webhook(SECRET).verify(request.body, request.headers)
    assert event["data"]["id"] == batch_id
    text = promptmill(server_url, "status", batch_id).stdout
    assert f"webhook   {host}: delivered after 1 try, HTTP 204\n" in text
    found = promptmill(server_url, "status", batch_id, "--json").stdout
    assert orjson.loads(found)["webhook"] == {"to": host, "state": "delivered", "tries": 1, "answer": "HTTP 204"}
    assert "token-in-path" not in text + found


def test_a_url_that_is_none_enqueues_nothing(store: Store, server_url: str, prompts: Path) -> None:
    """Exit status 2, and what would be one."""
    done = promptmill(server_url, "submit", prompts, "--model", MODEL, "--webhook", "ftp://example.com/hook")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "promptmill: the webhook does not begin with http:// or https://; give a URL such as "
        "https://example.com/hooks/nightly\n"
    )
    assert store.batches() == []


def test_the_client_takes_a_webhook_too(store: Store, server_url: str) -> None:
    """Its batch says so; without one there is none."""
    with Client(server_url) as client:
        batch = client.submit([{"prompt": "a"}], model=MODEL, webhook="https://example.com/hooks/x")
        assert batch.status().as_dict(0.0)["webhook"] == {
            "to": "https://example.com", "state": "waiting", "tries": 0, "answer": None,
        }  # fmt: skip
        assert client.submit([{"prompt": "a"}], model=MODEL).status().as_dict(0.0)["webhook"] is None
