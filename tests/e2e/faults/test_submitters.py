"""Submitters that die, and submitters that come twice."""

from __future__ import annotations

import subprocess
import sys

import orjson

from jobs.store.keys import UPLOADING, BatchKeys
from tests.e2e.faults.pool import MODEL, Pool, job_lines
from tests.e2e.faults.table import Case


def test_submitter_killed_mid_upload(pool: Pool, case: Case) -> None:
    """Half of a batch never runs, and is swept when its submitter has been silent for long; others run meanwhile."""
    worker = pool.worker()
    command = [sys.executable, "-P", "-m", "submit.cli", "submit", "-", "--model", MODEL, "--redis", pool.server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as submitter:
        assert submitter.stdin is not None
        for line in job_lines(20_000):
            submitter.stdin.write(orjson.dumps(line) + b"\n")
        submitter.stdin.flush()
        redis = pool.store.connection
        pool.until(lambda: redis.keys("rq:job:*"), "some shards are uploaded")
        submitter.kill()
    (half,) = (found.decode() for found in redis.zrange(UPLOADING, 0, -1))
    pool.ready(worker)
    batch = pool.submit(job_lines(100, prompt="other"))
    pool.wait(batch)
    redis.zadd(UPLOADING, {half: 0.0})  # long ago
    pool.until(lambda: not redis.keys(f"{BatchKeys(half).info}*"), "the upload is swept")
    pool.settled()
    assert not [event for event in pool.events() if event.batch == half]
    case.note("submitter: kill -9", "mid upload", case.check(batch, most_regenerated=0), most=0)


def test_the_same_file_twice(pool: Pool, case: Case) -> None:
    """Two batches, each complete."""
    pool.ready(pool.worker(), pool.worker())
    lines = job_lines(100)
    batches = [pool.submit(lines), pool.submit(lines)]
    assert batches[0].id != batches[1].id
    for batch in batches:
        pool.wait(batch)
    pool.settled()
    found = [case.check(batch, most_regenerated=0) for batch in batches]
    case.note("submitted twice", "", *found, most=0)
