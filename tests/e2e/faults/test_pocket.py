"""The real worker with the real engine on the pocket model: files that cannot be written, and a worker that dies."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.store.keys import BatchKeys
from tests.e2e.faults.auditor import Audit
from tests.e2e.faults.pool import DEADLINE_S, ROOT, Pool, Submitted
from tests.e2e.faults.table import Case
from tests.mixed import audit, records
from tests.programs import needs

POCKET = str(ROOT / "examples" / "pocket" / "model")
LINES = 60
LONG = 600


def run(
    pool: Pool, source: Path, out: Path, prefix: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """`promptmill run` to its end."""
    command = [*prefix, sys.executable, "-P", "-m", "submit.cli", "run", str(source), "-o", str(out), "--model", POCKET]
    environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(pool.folder / "data")}
    return subprocess.run(
        [*command, "--redis", pool.server.url], capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        env=environ, **options,
    )  # fmt: skip


def lines() -> list[dict[str, Any]]:
    """Lines of a handful of tokens."""
    return [{"id": f"row-{n}", "prompt": "Once upon a time", "max_tokens": 4, "seed": n} for n in range(LINES)]


def complete(pool: Pool, source: Path, out: Path) -> None:
    """Run again to the end: each line has one record, and none was generated a second time."""
    done = run(pool, source, out)
    assert done.returncode == 0, done.stderr
    assert audit(source, out, out.with_suffix(".errors.jsonl")) == []
    assert {record["attempt"] for record in records(out)} == {1}
    (batch,) = pool.store.batches()
    assert (batch.total, batch.completed, batch.failed) == (LINES, LINES, 0)


def test_disk_is_full(pool: Pool, case: Case) -> None:
    """OUT cannot grow: it is said which file that is and why, without a traceback; with room again the same command
    goes on."""
    source, out = pool.write(lines()), pool.folder / "out.jsonl"
    size = 16 * 1024  # of about 40 that OUT needs
    full = run(pool, source, out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert full.returncode != 0
    assert "Traceback" not in full.stderr
    assert str(out) in full.stderr
    complete(pool, source, out)
    case.note("disk full (real engine)", "while OUT is written", Audit(lines=LINES, records=LINES))


@pytest.mark.faults
def test_worker_killed(pool: Pool, case: Case) -> None:
    """SIGKILL in the middle of a batch; another worker of this host sees that the process is gone, and goes on."""
    jobs = [{"id": f"row-{n}", "prompt": "Once", "max_tokens": 60, "ignore_eos": True, "seed": n} for n in range(200)]
    source, out = pool.write(jobs), pool.folder / "out.jsonl"
    command = [sys.executable, "-P", "-m", "worker", "--redis", pool.server.url, "--model", POCKET]
    with subprocess.Popen([*command, "--decode-concurrency", "8"], stderr=subprocess.DEVNULL) as victim:
        batch = pool.command("submit", str(source), "--model", POCKET).stdout.strip()
        pool.until(lambda: pool.store.batch(batch).completed > 10, "some lines are done")
        victim.kill()
    killed = time.monotonic()
    before = pool.store.batch(batch).completed
    with subprocess.Popen([*command, "--burst"], stderr=subprocess.DEVNULL) as heir:
        pool.until(lambda: pool.store.batch(batch).completed > before, "the heir is at work")
        recovery = round(time.monotonic() - killed, 2)
        assert heir.wait(DEADLINE_S) == 0
    pool.settled()
    pool.command("results", batch, "-o", str(out))
    assert audit(source, out, out.with_suffix(".errors.jsonl")) == []
    case.note("kill (real engine, same host)", "mid batch", Audit(lines=200, records=200), recovery=recovery)


@pytest.mark.faults
def test_long_texts_after_a_kill(pool: Pool, case: Case) -> None:
    """32 rows of long texts, and the worker dies in the middle of them: from the next one's first line on, it takes as
    long as without a death, within a third."""
    jobs = [
        {"id": f"row-{n}", "prompt": "Once upon a time", "max_tokens": LONG, "ignore_eos": True, "seed": n}
        for n in range(40)
    ]
    source, out = pool.write(jobs), pool.folder / "out.jsonl"
    command = [sys.executable, "-P", "-m", "worker", "--redis", pool.server.url, "--model", POCKET]

    def under_way(batch: str, pid: int) -> int:
        lives = pool.store.connection.hgetall(BatchKeys(batch).flights(0)).values()
        return sum(f".{pid}/".encode() in life for life in lives)

    def seconds(kills: int) -> float:
        """From the last worker's first lines to the end of a batch."""
        batch = pool.command("submit", str(source), "--model", POCKET).stdout.strip()
        for _ in range(kills):
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as victim:
                pool.until(lambda victim=victim: under_way(batch, victim.pid) >= 32, "its rows are busy")
                victim.kill()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as last:
            pool.until(lambda: under_way(batch, last.pid) > 0, "the last worker is at work")
            begun = time.monotonic()
            pool.until(lambda: pool.done(Submitted(batch, jobs)), "it is done", 600)
            last.terminate()
        pool.command("results", batch, "-o", str(out))
        assert audit(source, out, out.with_suffix(".errors.jsonl")) == []
        return time.monotonic() - begun

    whole, after = seconds(0), seconds(1)
    assert after < 1.3 * whole, f"{after:.1f} s after a death, {whole:.1f} s without"
    case.note("kill, long texts (real engine)", "mid batch", Audit(lines=40, records=40))


@pytest.mark.faults
def test_torn_last_line(pool: Pool, case: Case) -> None:
    """OUT ends in the middle of a record, as after a power cut: the same command makes it whole."""
    source, out = pool.write(lines()), pool.folder / "out.jsonl"
    assert run(pool, source, out).returncode == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    complete(pool, source, out)
    assert out.read_bytes() == whole
    case.note("torn last line (real engine)", "OUT", Audit(lines=LINES, records=LINES))


DROPPED = "-dac_override,-dac_read_search"
ORDINARY = ["setpriv", f"--bounding-set={DROPPED}", f"--inh-caps={DROPPED}"] if os.geteuid() == 0 else []
"""Root may write anywhere, unless it gives that up."""


@pytest.mark.faults
@needs(*ORDINARY[:1])
def test_folder_is_read_only(pool: Pool, case: Case) -> None:
    """It is said before anything is generated, and nothing is left in Redis."""
    folder = pool.folder / "locked"
    folder.mkdir(mode=0o500)
    refused = run(pool, pool.write(lines()), folder / "out.jsonl", prefix=ORDINARY)
    assert refused.returncode == 2
    assert str(folder) in refused.stderr
    assert "Traceback" not in refused.stderr
    assert pool.store.batches() == []
    case.note("read-only folder (real engine)", "before the run", Audit())
