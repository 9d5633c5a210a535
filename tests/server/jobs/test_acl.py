"""Users of least privilege: what deploy/redis/users.acl allows is enough for everything, and little more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from jobs.store.store import Store
from tests.commands import promptmill
from tests.pool import watched
from tests.servers import running_server

ROOT = Path(__file__).parents[3]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DENIED = "permission|not allowed|can't run this command|can't access"
USERS = ROOT / "deploy" / "redis" / "users.acl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has loaded the file, with a user for the test besides."""
    text = USERS.read_text().replace("SUBMITTER_PASSWORD", "pw-s").replace("WORKER_PASSWORD", "pw-w")
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    file.write_text(text + "user operator on >pw-o ~* &* +@all\n")
    with running_server("--aclfile", str(file)) as url:
        yield url


def as_user(server: str, name: str) -> str:
    return server.replace("unix://", f"unix://{name}:pw-{name[0]}@")


def command(url: str, *arguments: str, program: str = "submit.cli") -> subprocess.CompletedProcess[str]:
    if program == "submit.cli" and arguments[0] != "run":
        return promptmill(*arguments, "--redis", url, check=False)
    return subprocess.run(
        [sys.executable, "-P", "-m", program, *arguments, "--redis", url], capture_output=True, text=True, timeout=90
    )


def test_the_rules_are_enough_for_everything(server: str, tmp_path: Path) -> None:
    """Each command, a worker with its recovery, RQ's own tools: done, and the server denied nothing."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"prompt":"Once","max_tokens":5}\n' * 60 + b"bad\n")
    submitter, worker = as_user(server, "submitter"), as_user(server, "worker")
    submitted = command(submitter, "submit", str(source), "--model", MODEL, "--on-bad-line", "skip")
    batch = submitted.stdout.strip()
    with Redis.from_url(as_user(server, "operator")) as operator:
        # A shard that a worker took and never began, and one whose lease has run out.
        queue = next(iter(operator.smembers(f"promptmill:b:{batch}:q"))).decode()
        moved = operator.lmove(f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate", "LEFT", "RIGHT")
        operator.hset(f"promptmill:dequeued:{queue}", moved, 1)
        leased = operator.lpop(f"rq:queue:{queue}").decode()
        operator.zadd(f"rq:wip:{queue}", {f"{leased}:abc": 1})
        watched(Store(operator), queue)
        worked = command(worker, "--model", MODEL, "--max-idle-time", "7", program="worker")
        assert worked.returncode == 0, worked.stderr
        for arguments in (["status"], ["status", batch, "--json"], ["results", batch, "-o", str(out)]):
            done = command(submitter, *arguments)
            assert done.returncode in (0, 1), done.stderr
        second = command(
            submitter, "submit", str(source), "--model", MODEL, "--on-bad-line", "skip", "--expires-in", "1h"
        )
        other = second.stdout.strip()
        for steps in (["pause", other], ["priority", other, "high"], ["resume", other], ["cancel", other],
                      ["retry", other], ["cancel", other], ["purge", other], ["pause"], ["resume"],
                      ["pause", "--worker", "mini"], ["resume", "--worker", "mini"]):  # fmt: skip
            done = command(submitter, *steps)
            assert done.returncode == 0, done.stderr
        later = command(submitter, "submit", str(source), "--model", MODEL, "--on-bad-line", "skip", "--in", "1h")
        assert later.returncode == 0, later.stderr
        ran = command(worker, "run", str(source), "-o", str(tmp_path / "run.jsonl"), "--model", MODEL,
                      "--on-bad-line", "skip")  # fmt: skip
        assert ran.returncode == 1, ran.stderr
        rq = [str(Path(sys.executable).with_name("rq")), "info", "--url", worker]
        info = subprocess.run(rq, capture_output=True, text=True, timeout=60, check=True)
        assert "promptmill:normal" in info.stdout
        assert len(out.read_bytes().splitlines()) == 60
        assert orjson.loads(command(submitter, "status", batch, "--json").stdout)["request_counts"]["completed"] == 60
        assert operator.acl_log() == []


@pytest.mark.parametrize("name", ["submitter", "worker"])
@pytest.mark.parametrize(
    "denied",
    [
        "FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET maxmemory 1", "SCRIPT FLUSH", "SCRIPT KILL",
        "MODULE LIST", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "ACL LIST", "ACL SETUSER x", "MONITOR", "SAVE", "BGSAVE",
        "REPLICAOF a 1", "CLIENT KILL ID 1", "CLIENT PAUSE 1", "SLOWLOG GET", "LATENCY RESET", "RANDOMKEY",
        "SORT promptmill:x", "FUNCTION LIST", "SWAPDB 0 1", "MIGRATE h 1 k 0 1", "RESTORE k 0 x", "PUBLISH foreign x",
        "GET foreign", "SET foreign 1", "DEL foreign", "EVAL return(redis.call('GET','foreign')) 0",
        "EVAL return(redis.call('FLUSHALL')) 0",
    ],
)  # fmt: skip
def test_all_else_is_denied(server: str, name: str, denied: str) -> None:
    """Neither user may touch foreign keys, other users, or the server itself."""
    with Redis.from_url(as_user(server, name)) as connection, pytest.raises(ResponseError, match=DENIED):
        connection.execute_command(*denied.split())


def test_a_submitter_cannot_command_workers(server: str) -> None:
    """Registrations and the channels of commands are the workers' own."""
    with Redis.from_url(as_user(server, "submitter")) as connection:
        for denied in ("PUBLISH rq:pubsub:mini.1 x", "SET rq:workers 1", "DEL rq:worker:mini.1"):
            with pytest.raises(NoPermissionError):
                connection.execute_command(*denied.split())


@pytest.mark.parametrize("missing", ["-hincrby", "-zadd", "-evalsha", "-subscribe", "-lmove", "resetchannels", "-info"])
def test_a_worker_that_may_not_do_its_work_says_so_at_the_start(server: str, missing: str) -> None:
    """The message names the user and what is missing; the exit status is 3, and nothing was taken."""
    with Redis.from_url(as_user(server, "operator")) as operator:
        rules = USERS.read_text().splitlines()[-1].replace("WORKER_PASSWORD", "pw-l").split()[2:]
        operator.execute_command("ACL", "SETUSER", "limited", *rules, missing)
        worked = command(as_user(server, "limited"), "--model", MODEL, "--burst", program="worker")
        operator.execute_command("ACL", "DELUSER", "limited")
        operator.acl_log_reset()
    assert worked.returncode == 3, worked.stderr
    assert "user 'limited'" in worked.stderr
    assert "users.acl" in worked.stderr
    assert "pw-l" not in worked.stderr
    assert "serves" not in worked.stderr


def test_a_run_whose_user_may_not_work_ends_at_once(server: str, tmp_path: Path) -> None:
    """Exit status 3 with the worker's own words, once, and no batch is left for a pool that nobody meant."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt":"Once","max_tokens":5}\n')
    submitter = as_user(server, "submitter")
    with Redis.from_url(as_user(server, "operator")) as operator:
        before = set(operator.scan_iter("promptmill:b:*"))
        ran = command(submitter, "run", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", MODEL)
        left = set(operator.scan_iter("promptmill:b:*")) - before
        operator.acl_log_reset()
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr.count("does not allow user 'submitter' what is needed") == 1
    assert "use `promptmill submit --wait`" in ran.stderr
    for noise in ("Warning", "died", "starting it again", "pw-s"):
        assert noise not in ran.stderr
    assert left == set()


def test_a_worker_as_the_submitter_is_told_so_alone(server: str) -> None:
    """Nothing but the one message: RQ, which finds less than it would like, has not begun."""
    worked = command(as_user(server, "submitter"), "--model", MODEL, "--burst", program="worker")
    with Redis.from_url(as_user(server, "operator")) as operator:
        operator.acl_log_reset()
    assert worked.returncode == 3
    assert worked.stderr.startswith("promptmill worker: Redis at ")
    assert len(worked.stderr.splitlines()) == 1


def test_a_wrong_password_is_said(server: str) -> None:
    """Exit status 3, with the remedy and without the password."""
    done = command(server.replace("unix://", "unix://worker:s3cret@"), "status")
    assert done.returncode == 3
    assert "user and password" in done.stderr
    assert "s3cret" not in done.stderr
