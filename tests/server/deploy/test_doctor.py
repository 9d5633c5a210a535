"""`promptmill doctor` on real servers: what is good passes, what is wrong is found, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis import Redis
from redis.exceptions import ResponseError

from deploy.doctor.access import open_to_strangers
from deploy.doctor.mac import Mac
from deploy.doctor.machine import Machine, Package
from jobs.store.keys import trouble_key
from submit.cli import main
from tests.servers import Server, free_port, private_server

ROOT = Path(__file__).parents[3]
MODEL = str(ROOT / "examples" / "pocket" / "model")
USERS = ROOT / "deploy" / "redis" / "users.acl"

Checks = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("PROMPTMILL_REDIS_URL", raising=False)
    monkeypatch.delenv("RQ_REDIS_URL", raising=False)


def doctor(capsys: pytest.CaptureFixture[str], url: str, *flags: str, worker: bool = False) -> tuple[int, Checks]:
    """The exit status, and the checks by name."""
    status = main(["doctor", "--json", "--worker" if worker else "--no-worker", "--redis", url, *flags])
    said = orjson.loads(capsys.readouterr().out)
    assert said["ok"] is (status == 0)
    assert sum(said["summary"].values()) == len(said["checks"])
    return status, {check["name"]: check for check in said["checks"]}


def states(checks: Checks, *names: str) -> Sequence[str]:
    return [checks[name]["state"] for name in names]


def as_user(server: Server, user: str) -> str:
    return server.url.replace("unix://", f"unix://{user}@")


def test_a_server_as_it_should_be_passes(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """Nothing fails and nothing is left behind, for submitters and for a worker with a model."""
    status, checks = doctor(capsys, server.url)
    assert status == 0
    names = ("version", "role", "append-only file", "eviction", "server memory", "permissions", "pause", "waiting")
    assert states(checks, *names) == ["ok"] * len(names)
    assert states(checks, "network", "encryption", "device") == ["skip"] * 3
    status, checks = doctor(capsys, server.url, "--model", MODEL, worker=True)
    assert status == 0
    names = ("mlx", "mlx-lm", "device", f"model {MODEL}", f"memory {MODEL}", "permissions")
    assert states(checks, *names) == ["ok"] * len(names)
    with server.client() as connection:
        assert connection.keys("*") == []


def test_what_is_wrong_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that evicts and keeps nothing on disk: each failure has its remedy below it, and the end counts them."""
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", "--appendonly", "no")
    with private_server(*options) as server:
        assert main(["doctor", "--no-worker", "--redis", server.url]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if "FAIL  append-only file" in line)
    assert "-> `appendonly yes`" in lines[place + 1]
    assert any(line.startswith("  FAIL  eviction          allkeys-lru") for line in lines)
    assert lines[-1].endswith("2 FAILED")
    assert [line for line in lines if len(line) > 100 and "/" not in line] == []  # a path is not broken


def test_evicted_keys_are_lost_data(capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the policy was mended since."""
    with private_server("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru") as server:
        with server.client() as connection:
            for number in range(4000):
                connection.set(str(number), b"x" * 1000)
            connection.config_set("maxmemory-policy", "noeviction")
            connection.config_set("maxmemory", 0)
        status, checks = doctor(capsys, server.url)
    assert status == 1
    assert checks["eviction"]["state"] == "fail"
    assert "RESETSTAT" in checks["eviction"]["remedy"]


def test_a_full_server(capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory is what fails: all else is said as far as it can be tried."""
    with private_server("--maxmemory", "4mb") as server:
        with server.client() as connection, connection.pipeline(transaction=False) as pipe:
            for number in range(8000):
                pipe.set(str(number), b"x" * 1000)
            with pytest.raises(ResponseError, match="maxmemory"):
                pipe.execute()
        status, checks = doctor(capsys, server.url, worker=True)
    assert status == 1
    assert [name for name, check in checks.items() if check["state"] == "fail"] == ["server memory"]
    assert "full" in checks["server memory"]["reason"]


def test_a_replica(capsys: pytest.CaptureFixture[str]) -> None:
    """It answers, and takes no writes: the primary is named."""
    with private_server("--replicaof", "127.0.0.1", "1") as server:
        status, checks = doctor(capsys, server.url)
    assert status == 1
    assert "127.0.0.1:1" in checks["role"]["reason"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the users of the project's file, and an operator."""
    text = USERS.read_text().replace("SUBMITTER_PASSWORD", "s").replace("WORKER_PASSWORD", "w")
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    file.write_text(text + "user operator on >o ~* &* +@all\n")
    with private_server("--aclfile", str(file)) as server:
        yield server


@pytest.mark.parametrize(("user", "worker"), [("submitter:s", False), ("worker:w", True), ("worker:w", False)])
def test_users_of_least_privilege_are_enough(
    capsys: pytest.CaptureFixture[str], guarded: Server, user: str, worker: bool
) -> None:
    """Nothing fails for them; what a submitter may not see is skipped."""
    status, checks = doctor(capsys, as_user(guarded, user), worker=worker)
    assert status == 0
    assert checks["permissions"]["state"] == "ok"
    seen = user == "worker:w" or "~rq:suspended" in USERS.read_text().splitlines()[1]
    assert checks["pause"]["state"] == ("ok" if seen else "skip")


@pytest.mark.parametrize(
    ("rules", "worker", "said"),
    [
        ("-hincrby -zadd", False, "HINCRBY, ZADD, which a submitter needs"),
        ("-time", False, "TIME, which"),
        ("-scan", False, "SCAN, which"),
        ("-memory", False, "MEMORY, which"),
        ("-evalsha", True, "EVALSHA, which a worker needs"),
        ("-subscribe", True, "SUBSCRIBE, which"),
        ("resetchannels", True, "the channels rq:pubsub:*, which"),
        ("resetkeys ~promptmill:*", True, "the keys rq:*, the keys rq:queues, the keys rq:suspended, which"),
        ("resetkeys ~promptmill:* ~rq:queue*", False, "the keys rq:job:*, the keys rq:wip:*, the keys rq:executions:*"),
        ("-del", False, "DEL, which"),
    ],
)
def test_what_a_user_lacks_is_named(
    capsys: pytest.CaptureFixture[str], guarded: Server, rules: str, worker: bool, said: str
) -> None:
    """Exactly that; nothing else fails, and no key is left behind, also where DEL is what is not allowed."""
    with Redis.from_url(as_user(guarded, "operator:o")) as operator:
        base = "on >l resetkeys ~promptmill:* ~rq:* resetchannels &rq:* +@all"
        operator.execute_command("ACL", "SETUSER", "limited", *base.split(), *rules.split())
        before = operator.keys("*")
        status, checks = doctor(capsys, as_user(guarded, "limited:l"), worker=worker)
        assert operator.keys("*") == before
        operator.execute_command("ACL", "DELUSER", "limited")
    assert status == 1
    assert said in checks["permissions"]["reason"]
    assert "user 'limited'" in checks["permissions"]["reason"]
    assert "users.acl" in checks["permissions"]["remedy"]
    assert [name for name, check in checks.items() if check["state"] == "fail"] == ["permissions"]


def test_a_user_that_may_not_even_ask(capsys: pytest.CaptureFixture[str], guarded: Server) -> None:
    """Without INFO nothing of the server is known: that fails, with the remedy of all commands."""
    with Redis.from_url(as_user(guarded, "operator:o")) as operator:
        operator.execute_command("ACL", "SETUSER", "blind", "on", ">b", "~*", "&*", "+@all", "-info")
        status, checks = doctor(capsys, as_user(guarded, "blind:b"))
        operator.execute_command("ACL", "DELUSER", "blind")
    assert status == 1
    assert "'info'" in checks["connection"]["reason"]
    assert checks["connection"]["remedy"] == "give it the rules of deploy/redis/users.acl"
    assert checks["version"]["state"] == "skip"


def test_a_wrong_password_is_a_failed_check(capsys: pytest.CaptureFixture[str], guarded: Server) -> None:
    """Exit status 1, not 3: to say so is the doctor's work. The password is shown nowhere."""
    assert main(["doctor", "--no-worker", "--redis", as_user(guarded, "worker:s3cret")]) == 1
    shown = capsys.readouterr()
    assert "s3cret" not in shown.out + shown.err
    assert "check the URL's user and password" in " ".join(shown.out.split())
    assert shown.err == ""


@pytest.mark.parametrize(
    ("url", "name", "said"),
    [
        ("redis://127.0.0.1:1", "network", "nothing listens"),
        ("unix:///nonexistent/redis.sock", "connection", "No such file"),
        ("http://127.0.0.1", "connection", "not a Redis URL"),
        ("redis://:a/b@host", "connection", "not a Redis URL"),
        ("redis://a..b", "network", "'a..b' is not found"),
    ],
)
def test_no_redis_is_a_failed_check(capsys: pytest.CaptureFixture[str], url: str, name: str, said: str) -> None:
    """What depends on it is skipped, and the machine is examined all the same."""
    status, checks = doctor(capsys, url)
    assert status == 1
    assert checks[name]["state"] == "fail"
    assert said in checks[name]["reason"]
    assert states(checks, "version", "permissions", "workers") == ["skip"] * 3
    assert checks["python"]["state"] == "ok"


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """One that takes connections and says nothing is told from one that is not there."""
    server.signal(signal.SIGSTOP)
    status, checks = doctor(capsys, server.url)
    server.signal(signal.SIGCONT)
    assert status == 1
    assert "does not answer" in checks["connection"]["remedy"]


def test_a_server_of_this_machine_by_tcp(capsys: pytest.CaptureFixture[str]) -> None:
    """It is reached and named; without a password it is no danger at an address of this machine."""
    port = free_port()
    with private_server("--port", str(port), "--bind", "127.0.0.1") as server:
        status, checks = doctor(capsys, f"redis://127.0.0.1:{port}")
        assert status == 0
        assert states(checks, "network", "encryption", "password") == ["ok", "skip", "skip"]
        server.configure("requirepass", "pw")
        status, checks = doctor(capsys, f"redis://:pw@127.0.0.1:{port}")
        assert (status, checks["password"]["state"]) == (0, "ok")


def test_the_state_of_the_pool(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """A pause, work that nobody serves, a dead worker and a model in trouble: warnings, and exit status 0."""
    with server.client() as connection:
        connection.set("rq:suspended", 1)
        connection.hset("promptmill:paused", "mini.4", 1)
        connection.sadd("rq:queues", "rq:queue:promptmill:normal:org/m", "rq:queue:others")
        connection.rpush("rq:queue:promptmill:normal:org/m", "b_1-0", "b_1-1")
        connection.sadd("rq:workers", "rq:worker:mini.9", "rq:worker:forgotten.1")
        old = {"last_heartbeat": "2020-01-01T00:00:00.000000Z", "queues": "promptmill:normal:m", "hostname": "mini"}
        connection.hset("rq:worker:mini.9", mapping=old)
        connection.sadd("promptmill:schedules", "nightly")
        connection.zadd("promptmill:webhooks", {"b_1": 1})
        key = trouble_key("0123456789ab", "org/bad")
        connection.sadd(key, "one", "two")
        connection.set(f"{key}:reason", b"the device was \x1b[31mlost\xff")
        before = sorted(connection.keys("*"))
        status, checks = doctor(capsys, server.url)
        assert sorted(connection.keys("*")) == before
    assert status == 0
    assert "mini.4" in checks["paused workers"]["reason"]
    assert states(checks, "pause", "waiting org/m", "trouble org/bad", "workers") == ["warn", "warn", "warn", "skip"]
    assert checks["waiting org/m"]["remedy"] == "promptmill worker --model org/m"
    assert "it ended its worker 2 times" in checks["trouble org/bad"]["reason"]
    assert checks["trouble org/bad"]["reason"].isprintable()
    assert states(checks, "silent workers", "scheduler") == ["warn", "warn"]
    assert "mini.9 (for" in checks["silent workers"]["reason"]
    assert "forgotten" not in checks["silent workers"]["reason"]
    assert "1 schedule and 1 webhook wait" in checks["scheduler"]["reason"]


def test_foreign_data_is_no_traceback(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """Whoever may write to a Redis may have put anything under our names."""
    with server.client() as connection:
        ours = [f"promptmill:{name}" for name in ("worker:x", "schedules", "scheduler", "webhooks")]
        for key in ("rq:queues", "rq:workers", "rq:suspended", trouble_key("0123456789ab", "m"), *ours):
            connection.lpush(key, "x")
        status, checks = doctor(capsys, server.url)
    assert status == 0
    assert checks["pause"]["state"] == "warn"


def test_without_a_url_the_embedded_server_is_examined() -> None:
    """As other commands do; the process imports no MLX, whatever it examines."""
    script = (
        "import sys; from submit.cli import main\n"
        "status = main(['doctor', '--worker'])\n"
        "print(status, sorted({'mlx', 'mlx_lm', 'transformers', 'worker'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=90, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert "this user's embedded server" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_without_the_worker_package_a_machine_is_a_submitters(
    capsys: pytest.CaptureFixture[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a model is named for it: then what a worker lacks fails. A model in the environment is for `submit`."""
    bare = Machine("Darwin", "arm64", (3, 12, 0), 2**36, Mac(version=(15, 5)), {"mlx": Package(None, ">=0.32")})
    monkeypatch.setattr("deploy.doctor.machine.ask_machine", lambda _host: bare)
    monkeypatch.setenv("PROMPTMILL_MODEL", "org/m")
    assert main(["doctor", "--json", "--redis", server.url]) == 0
    checks = {check["name"]: check for check in orjson.loads(capsys.readouterr().out)["checks"]}
    assert states(checks, "mlx", "device", "model org/m", "sleep") == ["skip"] * 4
    assert "--worker" in checks["device"]["reason"]
    assert main(["doctor", "--json", "--redis", server.url, "--model", "org/m"]) == 1
    checks = {check["name"]: check for check in orjson.loads(capsys.readouterr().out)["checks"]}
    assert checks["mlx"]["remedy"] == "pip install --upgrade 'promptmill[worker]'"
    assert states(checks, "processor", "mlx", "device", "model org/m") == ["ok", "fail", "skip", "warn"]


def test_a_live_worker_is_shown(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """With its models; what waits for it is nothing to warn of."""
    state = {"name": "mini.1", "state": "idle", "models": ["org/m"], "queues": ["promptmill:normal:org/m"]}
    with server.client() as connection:
        connection.set("promptmill:worker:mini.1", orjson.dumps(state))
        connection.sadd("rq:queues", "rq:queue:promptmill:normal:org/m")
        connection.rpush("rq:queue:promptmill:normal:org/m", "b_1-0")
        status, checks = doctor(capsys, server.url)
    assert status == 0
    assert checks["workers"]["reason"] == "1 at work: mini.1 (org/m)"
    assert states(checks, "workers", "waiting") == ["ok", "ok"]


def test_strangers_are_tried_and_not_supposed(guarded: Server) -> None:
    """A refusal is one of a user; a server that takes no more connections proves nothing."""
    with private_server("--maxclients", "1") as server, server.client() as connection:
        assert connection.ping()
        assert open_to_strangers(connection) is None
    with Redis.from_url(as_user(guarded, "operator:o")) as connection:
        connection.execute_command("ACL", "SETUSER", "default", "off")
        assert open_to_strangers(connection) is False
        connection.execute_command("ACL", "SETUSER", "default", "on")
        assert open_to_strangers(connection) is ("nopass" in default_user(connection))


def default_user(connection: Redis) -> str:
    return next(str(rule) for rule in connection.acl_list() if "user default" in str(rule))
