"""What the doctor makes of the way to Redis: each error of the system has its meaning and remedy."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deploy.doctor.finding import FindingState
from deploy.doctor.mac import Mac
from deploy.doctor.machine import Machine
from deploy.doctor.network import explain, is_loopback, reach

LINUX = Machine("Linux", "x86_64", (3, 12, 0), 2**36)
MAC = Machine("Darwin", "arm64", (3, 12, 0), 2**36, Mac(version=(15, 5)))
OLD_MAC = Machine("Darwin", "arm64", (3, 12, 0), 2**36, Mac(version=(14, 7)))


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@contextmanager
def listener(greeting: bytes = b"") -> Iterator[int]:
    """A port of this machine that takes one connection, says something and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken, _ = server.accept()
            with taken:
                if greeting:
                    taken.sendall(greeting)
                else:
                    taken.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def test_a_port_that_answers_is_reached() -> None:
    """The address that answered is given, for what depends on whether it is this machine's."""
    with listener() as port:
        found = reach(LINUX, "localhost", port)
    assert found.finding.state is FindingState.OK
    assert f"localhost:{port} (127.0.0.1)" in found.finding.reason
    assert found.address == "127.0.0.1"


def test_protected_mode_and_too_many_clients_are_read() -> None:
    """Redis says so and hangs up; a client that sends first would never read it."""
    denied = b"-DENIED Redis is running in protected mode because protected mode is enabled and no password is set\r\n"
    with listener(denied) as port:
        found = reach(LINUX, "127.0.0.1", port)
    assert (found.finding.state, found.address) == (FindingState.FAIL, None)
    assert "requirepass" in (found.finding.remedy or "")
    with listener(b"-ERR max number of clients reached\r\n") as port:
        found = reach(LINUX, "127.0.0.1", port)
    assert found.finding.state is FindingState.FAIL
    assert found.finding.reason.endswith("ERR max number of clients reached")


def test_a_port_where_nothing_listens() -> None:
    """The machine is there, Redis is not."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and not listening
        found = reach(LINUX, "127.0.0.1", bound.getsockname()[1])
    assert found.address is None
    assert "nothing listens" in found.finding.reason


@pytest.mark.parametrize("failure", [socket.gaierror(8, "nodename nor servname provided"), UnicodeError("label empty")])
def test_a_name_that_is_not_found(failure: Exception) -> None:
    """The name is in the message; names of the local network have a remedy of their own."""

    def lookup(*_: Any, **__: Any) -> list[Any]:
        raise failure

    finding = reach(MAC, "mini.local", 6379, lookup=lookup).finding
    assert finding.state is FindingState.FAIL
    assert finding.reason.startswith("'mini.local' is not found")
    assert "one network" in (finding.remedy or "")
    assert "host redis.example" in (reach(MAC, "redis.example", 6379, lookup=lookup).finding.remedy or "")


def test_a_name_without_an_address() -> None:
    """A name server may answer with nothing at all."""
    assert reach(MAC, "odd", 6379, lookup=lambda *_, **__: []).finding.state is FindingState.FAIL


def test_macos_that_denies_the_local_network_is_told_from_no_route() -> None:
    """Since macOS 15 "No route to host" within the local network is its privacy's; else it is what it says."""
    denied = explain(MAC, error(errno.EHOSTUNREACH), "mini.local:6379", "192.168.1.20")
    assert "Privacy & Security > Local Network" in (denied.remedy or "")
    assert f"(errno {errno.EHOSTUNREACH}); one reason is" in denied.reason  # on a Mac that is 65
    assert "ping 192.168.1.20" in (denied.remedy or "")
    assert "LaunchDaemon" in (denied.remedy or "")
    for host, address in ((OLD_MAC, "192.168.1.20"), (LINUX, "192.168.1.20"), (MAC, "8.8.8.8")):
        plain = explain(host, error(errno.EHOSTUNREACH), "mini:6379", address)
        assert "Privacy" not in (plain.remedy or "")
        assert f"ping {address}" in (plain.remedy or "")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (TimeoutError("timed out"), "firewall"),
        (error(errno.ETIMEDOUT), "firewall"),
        (error(errno.ECONNREFUSED), "bind"),
        (error(errno.ENETUNREACH), "one network"),
        (error(errno.EACCES), "firewall"),
        (error(errno.EIO), "--redis"),
    ],
)
def test_other_errors_have_their_remedies(failure: OSError, said: str) -> None:
    """Each names the address and what to look at."""
    finding = explain(MAC, failure, "mini:6379", "192.168.1.20")
    assert finding.state is FindingState.FAIL
    assert "mini:6379" in finding.reason
    assert said in (finding.remedy or "")


@pytest.mark.parametrize(
    ("address", "own"),
    [("127.0.0.1", True), ("::1", True), ("192.168.1.2", False), ("fe80::1%en0", False), ("", False), ("host", False)],
)
def test_addresses_of_this_machine(address: str, own: bool) -> None:
    """What never leaves this machine needs no TLS and no password."""
    assert is_loopback(address) is own
