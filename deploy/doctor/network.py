"""Whether this machine reaches Redis at all: its name, the way to it, and what the system says where there is none."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from deploy.doctor.finding import Finding, failed, good
from deploy.doctor.machine import Machine

NAME_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0
LEAST_TIMEOUT_S = 1.0
"""A host may have several addresses, and the first of them may be dead."""
GREETING_S = 0.2
PRIVACY_SINCE = (15,)
"""The first macOS that asks for leave before a program may talk to the local network."""

_UNREACHABLE = ("{where}: {said}", "bring both machines into one network: `ping {address}`")
_FORBIDDEN = ("{where}: {said}", "allow Python in this machine's firewall")
_MEANINGS: Mapping[int | None, tuple[str, str]] = {
    errno.ETIMEDOUT: (
        "{where} does not answer",
        "see that the machine is on and awake, and that no firewall drops the port",
    ),
    errno.ECONNREFUSED: (
        "{where}: the machine is there, but nothing listens at this port",
        "start Redis; if it runs, see that its `bind` has an address of that network, and give its port",
    ),
    errno.EHOSTUNREACH: _UNREACHABLE,
    errno.ENETUNREACH: _UNREACHABLE,
    errno.EHOSTDOWN: _UNREACHABLE,
    errno.EPERM: _FORBIDDEN,
    errno.EACCES: _FORBIDDEN,
}
"""What an error of a connection means, and its remedy."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of a connection: the address that answered, None where none did."""

    finding: Finding
    address: str | None = None


def reach(
    machine: Machine,
    name: str,
    port: int,
    *,
    lookup: Callable[..., list[Any]] = socket.getaddrinfo,
    timeout_s: float = CONNECT_TIMEOUT_S,
    clock: Callable[[], float] = time.monotonic,
) -> Reached:
    """Open a connection to a port by TCP, and close it."""
    where = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    try:
        addresses = _resolve(name, port, lookup)
    except (OSError, UnicodeError) as error:
        return Reached(_unknown_name(name, error))
    deadline = clock() + timeout_s
    failure: tuple[OSError, str] | None = None
    for *_, address in addresses:
        begun = clock()
        try:
            with socket.create_connection(address[:2], max(deadline - begun, LEAST_TIMEOUT_S)) as probe:
                took = (clock() - begun) * 1000
                greeting = _greeting(probe)
        except OSError as error:
            failure = error, str(address[0])
            continue
        if greeting.startswith("-"):
            return Reached(_turned_away(where, greeting))
        shown = where if name == address[0] else f"{where} ({address[0]})"
        return Reached(good("network", f"{shown} takes connections, in {took:.1f} ms"), str(address[0]))
    last, tried = failure or (OSError(errno.EADDRNOTAVAIL, "it has no address"), "")
    return Reached(explain(machine, last, where, tried))


def _greeting(probe: socket.socket) -> str:
    """What the other side says unasked, which Redis does where it turns somebody away; it may take a moment."""
    probe.settimeout(GREETING_S)
    try:
        return probe.recv(1000).decode(errors="replace")
    except OSError:
        return ""


def _turned_away(where: str, greeting: str) -> Finding:
    if "protected mode" in greeting:
        reason = f"{where}: Redis is in protected mode, and takes no connection of another machine"
        remedy = "give it a password (`requirepass`), or the users of deploy/redis/users.acl, and restart it"
        return failed("network", reason, remedy)
    said = greeting.lstrip("-").partition("\r")[0][:200]
    remedy = "end clients that are no longer needed, or raise its maxclients"
    return failed("network", f"{where} turns everybody away: {said}", remedy)


def explain(machine: Machine, error: OSError, where: str, address: str) -> Finding:
    """What an error of a connection means, and what to do."""
    version, said = machine.mac.version if machine.mac is not None else (), _said(error)
    if error.errno == errno.EHOSTUNREACH and version >= PRIVACY_SINCE and is_local(address):
        return failed(
            "network",
            f"{where}: {said} (errno {error.errno}); one reason is that macOS {version[0]} denies this program "
            "the local network",
            "allow it in System Settings > Privacy & Security > Local Network; or start it from Terminal or by ssh, "
            "and workers as a LaunchDaemon (no LaunchAgent): those need no leave. Otherwise a firewall or a router is "
            f"in the way, or the host is in no network of this Mac: `ping {address}`",
        )
    number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno
    reason, remedy = _MEANINGS.get(number, ("{where}: {said}", "give its address with --redis"))
    return failed("network", reason.format(where=where, said=said), remedy.format(address=address))


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own."""
    found = _parsed(address)
    return found is not None and found.is_loopback


def is_local(address: str) -> bool:
    """Whether it is one of a local network."""
    found = _parsed(address)
    return found is not None and (found.is_private or found.is_link_local) and not found.is_loopback


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None


def _resolve(name: str, port: int, lookup: Callable[..., list[Any]]) -> list[Any]:
    """The addresses of a machine. The system's own patience with a name server is long, and cannot be set."""
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(lookup(name, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    # A pool of threads would wait for the answer at the end of the process.
    threading.Thread(target=ask, name="lookup", daemon=True).start()
    try:
        return answer.result(NAME_TIMEOUT_S)
    except TimeoutError:
        raise TimeoutError(f"no answer of the name server within {NAME_TIMEOUT_S:.0f} s") from None


def _unknown_name(name: str, error: Exception) -> Finding:
    said = _said(error) if isinstance(error, OSError) else "it is no name of a host"
    bonjour = name.endswith(".local")
    how = f"`ping {name}`; names in .local are found within one network only" if bonjour else f"`host {name}`"
    return failed("network", f"'{name}' is not found: {said}", f"check the name ({how}), or give an IP address")


def _said(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
