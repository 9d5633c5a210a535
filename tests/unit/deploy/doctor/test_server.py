"""What the doctor makes of what a Redis says of itself, of its clock, and of a pool."""

from __future__ import annotations

from typing import Any

import pytest
from redis.connection import parse_url
from redis.exceptions import NoPermissionError

from deploy.doctor.access import check_encryption, check_password, judge_permissions
from deploy.doctor.finding import Finding, FindingState
from deploy.doctor.pool import Pool, check_pool
from deploy.doctor.server import check_clock, check_latency, check_server, operator_tool
from jobs.redis.permissions import Refusal
from submit.status.worker_state import WorkerState
from submit.status.workers import LostWorker

GOOD: dict[str, Any] = {
    "redis_version": "7.2.4",
    "role": "master",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "used_memory": 2**30,
    "total_system_memory": 2**34,
    "evicted_keys": 0,
    "connected_clients": 12,
    "maxclients": 10000,
    "rejected_connections": 0,
}


def found(**said: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_server({**GOOD, **said})}


def test_a_server_that_is_set_up_well_passes() -> None:
    """All of it is good; Valkey is named by its own version."""
    assert {finding.state for finding in found().values()} == {FindingState.OK}
    assert found()["version"].reason == "Redis 7.2.4"
    assert found(valkey_version="9.1.2")["version"].reason == "Valkey 9.1.2"


@pytest.mark.parametrize(
    ("said", "name", "state", "word"),
    [
        ({"role": "slave", "master_host": "mini", "master_port": 6379}, "role", FindingState.FAIL, "mini:6379"),
        ({"aof_enabled": 0}, "append-only file", FindingState.FAIL, "loses"),
        ({"aof_last_write_status": "err"}, "append-only file", FindingState.FAIL, "last write failed"),
        ({"rdb_last_bgsave_status": "err"}, "append-only file", FindingState.FAIL, "snapshot"),
        ({"aof_last_bgrewrite_status": "err"}, "append-only file", FindingState.WARN, "grows"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 2**31}, "eviction", FindingState.FAIL, "allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "eviction", FindingState.WARN, "volatile-ttl"),
        ({"evicted_keys": 7}, "eviction", FindingState.FAIL, "7 keys"),
        ({"maxmemory": 2**30}, "server memory", FindingState.FAIL, "full"),
        ({"maxmemory": 2**30 + 2**28}, "server memory", FindingState.WARN, "1.2 GiB"),
        ({"used_memory": 14 * 2**30}, "server memory", FindingState.WARN, "no maxmemory is set"),
        ({"total_system_memory": 0}, "server memory", FindingState.SKIP, "does not say"),
        ({"connected_clients": 9000}, "clients", FindingState.WARN, "9,000"),
        ({"rejected_connections": 3}, "clients", FindingState.WARN, "3 were refused"),
        ({"maxclients": None}, "clients", FindingState.OK, "12 connected"),
    ],
)
def test_what_is_wrong_with_a_server_is_found(said: dict[str, Any], name: str, state: FindingState, word: str) -> None:
    """The finding says it, and has a remedy; the others stay good."""
    findings = found(**said)
    assert findings[name].state is state
    assert word in findings[name].reason
    assert bool(findings[name].remedy) is (state in (FindingState.WARN, FindingState.FAIL))
    assert {finding.state for other, finding in findings.items() if other != name} == {FindingState.OK}


def test_latency_is_judged_by_its_median() -> None:
    """A single slow ping is nothing, as long as it is no stall."""
    assert check_latency([0.001] * 49 + [0.5]).state is FindingState.OK
    assert check_latency([0.001] * 49 + [1.5]).state is FindingState.WARN
    assert check_latency([0.03] * 10).state is FindingState.WARN
    slow = check_latency([1.2, 1.3])
    assert slow.state is FindingState.FAIL
    assert "1250.0 ms at the median, 1300.0 ms at worst of 2 pings" in slow.reason


@pytest.mark.parametrize(
    ("ahead", "state", "word"),
    [
        (0.0, FindingState.OK, "0.1 s"),
        (-1.9, FindingState.OK, "1.9 s"),
        (5.0, FindingState.WARN, "ahead of"),
        (-3600.0, FindingState.FAIL, "behind"),
    ],
)
def test_a_clock_that_is_wrong_is_found(ahead: float, state: FindingState, word: str) -> None:
    """Seconds are warned of, minutes fail; the remedy is of this system."""
    finding = check_clock(ahead, mac=True)
    assert finding.state is state
    assert word in finding.reason
    if state is not FindingState.OK:
        assert "sntp" in (finding.remedy or "")
        assert "timedatectl" in (check_clock(ahead, mac=False).remedy or "")


def test_encryption_and_password_matter_in_a_network() -> None:
    """Not at a socket, nor at an address of this machine."""
    assert check_encryption(network=False, encrypted=False, loopback=True).state is FindingState.SKIP
    assert check_encryption(network=True, encrypted=False, loopback=True).state is FindingState.SKIP
    assert check_encryption(network=True, encrypted=True, loopback=False).state is FindingState.OK
    assert check_encryption(network=True, encrypted=False, loopback=False).state is FindingState.WARN
    assert check_password(False, loopback=False).state is FindingState.OK
    assert check_password(None, loopback=False).state is FindingState.SKIP
    assert check_password(True, loopback=True).state is FindingState.SKIP
    assert check_password(True, loopback=False).state is FindingState.WARN


def test_refusals_are_said_by_command_and_by_key() -> None:
    """A command is refused whatever the key; keys are named by their beginning, each once."""
    command = NoPermissionError("User me has no permissions to run the 'hset' command")
    key = NoPermissionError("No permissions to access a key")
    refused = [
        Refusal("HSET", "promptmill:permissions:doctor-1", command),
        Refusal("HSET", "rq:job:permissions:doctor-1", command),
        Refusal("DEL", "rq:wip:permissions:doctor-1", key),
        Refusal("PUBLISH", "rq:pubsub:doctor-1:permissions", key),
    ]
    finding = judge_permissions(refused, "redis://me:secret@host", worker=True)
    assert "user 'me' may not use HSET, the keys rq:wip:*, the channels rq:pubsub:*, which" in finding.reason
    assert "users.acl" in (finding.remedy or "")
    assert judge_permissions([], "redis://host", worker=False).reason.startswith("user 'default' may")
    many = [Refusal(f"C{number}", "", command) for number in range(9)]
    assert "C5 and 3 more" in judge_permissions(many, "redis://host", worker=False).reason


def worker(name: str, *queues: str) -> WorkerState:
    return WorkerState(name, "idle", None, ("m",), queues, None, None, None, ())


def pool(**given: Any) -> dict[str, Finding]:
    known = {"paused": False, "workers": (worker("mini.1", "promptmill:normal:m"),), **given}
    return {finding.name: finding for finding in check_pool(Pool(**known))}


def test_a_pool_at_work_passes() -> None:
    """Its workers are named with their models; what waits for one of them is fine."""
    findings = pool(waiting={"promptmill:normal:m": 3})
    assert {finding.state for finding in findings.values()} == {FindingState.OK}
    assert "1 at work: mini.1 (m)" in findings["workers"].reason
    assert "3 shards" in findings["waiting"].reason


def test_a_paused_pool_and_unserved_work_are_warned_of() -> None:
    """With the command that serves it; a run's own queue is its own worker's."""
    run = "promptmill:normal:b_01M7WG05KZ5PJASS6ZWSDHE2FY:m"
    findings = pool(paused=True, waiting={"promptmill:high:org/x+/ad": 1, "promptmill:low:org/x+/ad": 2, run: 1})
    assert findings["pause"].remedy == "promptmill resume"
    assert findings["waiting org/x+/ad"].state is FindingState.WARN
    assert "3 shards" in findings["waiting org/x+/ad"].reason
    assert findings["waiting org/x+/ad"].remedy == "promptmill worker --model org/x --adapter-path /ad"


def test_workers_that_are_paused_by_name_are_warned_of() -> None:
    """Three are named, and the command for the first."""
    found = pool(resting=("mini-1", "mini-2", "mini-3", "mini-4"))["paused workers"]
    assert found.state is FindingState.WARN
    assert "mini-1, mini-2, mini-3 and 1 more" in found.reason
    assert found.remedy == "promptmill resume --worker mini-1"


def test_what_a_user_may_not_see_is_skipped() -> None:
    """A submitter of least privilege does not see whether the pool is paused."""
    assert pool(paused=None)["pause"].state is FindingState.SKIP


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedules": 2}, "2 schedules wait"),
        ({"schedules": 1}, "1 schedule waits"),
        ({"webhooks": 1}, "1 webhook waits"),
        ({"schedules": 1, "webhooks": 3}, "1 schedule and 3 webhooks wait"),
    ],
)
def test_work_of_a_scheduler_that_is_not_there_is_warned_of(given: dict[str, int], said: str) -> None:
    """Schedules do not run, and nobody is told: but where a scheduler is active, or there is nothing for it, all is
    well."""
    found = pool(**given)["scheduler"]
    assert found.state is FindingState.WARN
    assert said in found.reason
    assert "promptmill scheduler" in (found.remedy or "")
    assert pool(**given, scheduler="mini.7")["scheduler"].state is FindingState.OK
    assert "scheduler" not in pool()


@pytest.mark.parametrize(
    ("url", "tool"),
    [
        ("redis://localhost", "redis-cli"),
        ("redis://:pw@mini:6380/0", "redis-cli -h mini -p 6380 --askpass"),
        ("unix:///tmp/redis.sock", "redis-cli -s /tmp/redis.sock"),
        (
            "rediss://worker:pw@redis.local:6379/0?ssl_ca_certs=/etc/promptmill/ca.crt",
            "redis-cli -h redis.local --tls --cacert /etc/promptmill/ca.crt --user operator --askpass",
        ),
        ("rediss://127.0.0.1?ssl_cert_reqs=none&ssl_certfile=c&ssl_keyfile=k",
         "redis-cli -h 127.0.0.1 --tls --cert c --key k --insecure"),
    ],
)  # fmt: skip
def test_the_operators_command_gets_in(url: str, tool: str) -> None:
    """With the address, TLS and the operator where the server has users: no password is in it."""
    settings = parse_url(url)
    assert operator_tool(settings, encrypted=url.startswith("rediss:")) == tool
    remedy = {finding.name: finding for finding in check_server({**GOOD, "aof_enabled": 0}, tool)}
    assert f"{tool} CONFIG SET appendonly yes" in (remedy["append-only file"].whole_remedy or "")


def test_dead_workers_and_models_in_trouble_are_said() -> None:
    """What a worker wrote of its end cannot steer the terminal."""
    findings = pool(
        workers=(), silent=(LostWorker("mini.9", 70.0, "mini"),), trouble={"org/x": (2, "lost \x1b[31mdevice\r\n")}
    )
    assert findings["workers"].state is FindingState.SKIP
    assert findings["silent workers"].state is FindingState.WARN
    assert "mini.9 (for 1m10s)" in findings["silent workers"].reason
    assert findings["trouble org/x"].state is FindingState.WARN
    assert "2 times" in findings["trouble org/x"].reason
    assert findings["trouble org/x"].reason.isprintable()


def test_a_batch_that_waits_for_an_http_server_is_warned_of() -> None:
    """Nobody checks its file; servers that are there are named, and a pool without either lacks nothing."""
    found = pool(unchecked=2)["http"]
    assert (found.state, "2 batches wait" in found.reason) == (FindingState.WARN, True)
    assert "promptmill serve" in (found.remedy or "")
    there = pool(unchecked=2, servers=("mini.7 http://mini:8577/v1",))["http"]
    assert (there.state, "http://mini:8577/v1" in there.reason) == (FindingState.OK, True)
    assert "http" not in pool()
