"""A connection to a host that somebody else has named: bounded in time, and not to where nobody else may call."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Addresses", "LocalAddressError", "dial"]

MOST_ADDRESSES = 3
"""Of a host's addresses so many are tried, each for its part of the time."""

Addresses = Callable[..., list[Any]]


class LocalAddressError(Exception):
    """A host has only addresses of this machine, or of its own link, which are not to be called."""


def dial(
    host: str,
    port: int,
    ends_at: float,
    *,
    timeout_s: float,
    local: bool = False,
    addresses: Addresses = socket.getaddrinfo,
    clock: Callable[[], float] = time.monotonic,
) -> socket.socket:
    """A connection to one of the host's addresses, made until ``ends_at`` on the clock; its operations have
    ``timeout_s`` seconds each. What the address is, is looked at where it is called: a name may lead elsewhere later.

    Raises:
        LocalAddressError: there are only local ones, and ``local`` is not set.
        OSError: there is none, or none that answers in time.
    """
    found = _found(addresses, host, port, ends_at - clock())
    allowed = [entry for entry in found if local or not _is_local(entry[4][0])]
    if found and not allowed:
        address = str(found[0][4][0])
        raise LocalAddressError(f"{address:.40} is local: name the host in --webhook-hosts")
    wanted, error = allowed[:MOST_ADDRESSES], OSError(f"{host} has no address")
    for place, (family, kind, protocol, _, address) in enumerate(wanted):
        left = ends_at - clock()
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(timeout_s, left / (len(wanted) - place)))
            connection.connect(address)
            connection.settimeout(timeout_s)
            return connection
        except OSError as caught:
            error = caught
            connection.close()
    raise error


def _found(addresses: Addresses, host: str, port: int, seconds: float) -> list[Any]:
    """What a host's name leads to. The look for it cannot be cut off: it is left alone in a thread of its own."""
    answers: queue.Queue[list[Any] | Exception] = queue.Queue()

    def look() -> None:
        try:
            answers.put(addresses(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # raised where it is waited for
            answers.put(error)

    threading.Thread(target=look, name="resolving", daemon=True).start()
    try:
        answer = answers.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise TimeoutError(f"{host} was not found in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_local(text: str) -> bool:
    """Whether an address is this machine's own or a neighbour's on the link, as services of hosting companies are."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
