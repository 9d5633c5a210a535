"""A worker that cannot go on: it hands back, says why, and leaves with a status that its supervisor understands."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson

from jobs.shard import Group
from jobs.store.store import Store
from tests import commands
from tests.mixed import audit, records
from worker.faults.crash_loop import TROUBLE_LIMIT, note_trouble
from worker.rq.worker import machine

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 90.0
DEATHS = 2


def worker(url: str, module: str) -> subprocess.CompletedProcess[str]:
    """A worker that ends when the queues are empty, if not before."""
    return subprocess.run(
        [sys.executable, "-m", module, "--redis", url, "--model", MODEL, "--burst"],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=ROOT,
    )  # fmt: skip


def promptmill(url: str, *arguments: str) -> str:
    return commands.promptmill(*arguments, "--redis", url).stdout.strip()


def test_a_device_that_fails_ends_the_worker_and_at_last_the_model(
    store: Store, server_url: str, tmp_path: Path
) -> None:
    """Status 1 with the reason and all lines handed back; after the fifth time, three of them noted beforehand, 5: the
    model is no longer served on this machine. No line fails for it, and a worker in order finishes them."""
    for number in range(TROUBLE_LIMIT - DEATHS):
        note_trouble(store.connection, machine(), Group(MODEL), f"life {number}", "RuntimeError")
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b"".join(orjson.dumps({"id": str(n), "prompt": "Once", "max_tokens": 4}) + b"\n" for n in range(40))
    )
    batch = promptmill(server_url, "submit", str(source), "--model", MODEL)
    for _ in range(DEATHS):
        done = worker(server_url, "tests.sick_worker")
        assert done.returncode == 1
        assert "the model fails at the simplest prompt: RuntimeError: [METAL] Command buffer" in done.stderr
        assert store.connection.keys("rq:wip:*") == []
    refused = worker(server_url, "worker")
    assert refused.returncode == 5
    assert "is not served here: it ended its worker again and again within the hour" in refused.stderr
    assert "Traceback" not in refused.stderr
    store.connection.delete(*store.connection.keys("promptmill:trouble:*"))
    assert worker(server_url, "worker").returncode == 0
    out = tmp_path / "out.jsonl"
    promptmill(server_url, "results", batch, "-o", str(out))
    assert audit(source, out, tmp_path / "out.errors.jsonl") == []
    attempts = Counter(record["attempt"] for record in records(out))
    assert attempts == {1: 40 - (DEATHS - 1), 2: DEATHS - 1}  # a line each was alone when it failed
