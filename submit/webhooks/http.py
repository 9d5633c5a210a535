"""One POST to a webhook: bounded in time, not to where nobody else may call, and nothing believed of the other side but
its status."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 15.0
"""The silence that ends a try."""
DEADLINE_S = 30.0
"""The whole of a try, from the look for the host's addresses to the head of the answer: a receiver that sends it byte
by byte is cut off."""
MOST_ADDRESSES = 3
"""Of a host's addresses so many are tried, each for its part of the time."""

Addresses = Callable[..., list[Any]]


class LocalAddressError(Exception):
    """A host has only addresses of this machine, or of its own link, which are not to be called."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came of a try: an HTTP status (None: there was none), in words, and the pause that was asked for.
    ``refused``: it is not to be called from here, and was not."""

    status: int | None
    text: str
    retry_after_s: float | None = None
    refused: bool = False


def post(
    url: str,
    body: bytes,
    headers: dict[str, str],
    *,
    local: bool = False,
    addresses: Addresses = socket.getaddrinfo,
) -> HttpAnswer:
    """POST once; no redirect is followed, no proxy asked, certificates are checked, and nothing but the head of the
    answer is read. With ``local`` the addresses of this machine and link-local ones are called too."""
    try:
        parts = urlsplit(url)
        host, path = parts.hostname or "", parts.path or "/"
        context = ssl.create_default_context() if parts.scheme == "https" else None
        connection = (
            http.client.HTTPConnection(host, parts.port)
            if context is None
            else http.client.HTTPSConnection(host, parts.port, context=context)
        )
        ends_at = time.monotonic() + DEADLINE_S
        with contextlib.closing(connection), contextlib.ExitStack() as stack:
            raw = stack.enter_context(_connected(_found(addresses, host, connection.port, ends_at), ends_at, local))
            _cut_off(stack, raw, ends_at)
            connection.sock = raw if context is None else context.wrap_socket(raw, server_hostname=host)
            target = f"{path}?{parts.query}" if parts.query else path
            connection.request("POST", target, body, {**headers, "Connection": "close"})
            with connection.getresponse() as reply:
                return HttpAnswer(reply.status, f"HTTP {reply.status}", _retry_after(reply.getheader("Retry-After")))
    except LocalAddressError as error:
        return HttpAnswer(None, str(error), refused=True)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return HttpAnswer(None, _reason(error))


def _found(addresses: Addresses, host: str, port: int, ends_at: float) -> list[Any]:
    """What a host's name leads to. The look for it cannot be cut off: it is left alone in a thread of its own."""
    answer: Future[list[Any]] = Future()

    def look() -> None:
        try:
            answer.set_result(addresses(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=look, name="resolving", daemon=True).start()
    return answer.result(max(ends_at - time.monotonic(), 0.0))


def _connected(found: list[Any], ends_at: float, local: bool) -> socket.socket:
    """A connection to one of the addresses. What an address is, is looked at where it is called: a name may lead
    elsewhere later.

    Raises:
        LocalAddressError: there are only local ones, and ``local`` is not set.
        OSError: there is none, or none that answers in time.
    """
    allowed = [entry for entry in found if local or not _is_local(entry[4][0])]
    if found and not allowed:
        raise LocalAddressError(f"{found[0][4][0]!s:.40} is local: name the host in --webhook-hosts")
    wanted, error = allowed[:MOST_ADDRESSES], OSError("the host has no address")
    for place, (family, kind, protocol, _, address) in enumerate(wanted):
        left = ends_at - time.monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(TIMEOUT_S, left / (len(wanted) - place)))
            connection.connect(address)
            connection.settimeout(TIMEOUT_S)
            return connection
        except OSError as caught:
            error = caught
            connection.close()
    raise error


def _is_local(text: str) -> bool:
    """Whether an address is this machine's own or a neighbour's on the link, as services of hosting companies are."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def _cut_off(stack: contextlib.ExitStack, raw: socket.socket, ends_at: float) -> None:
    """Hear nothing more from this time on, whatever still trickles in, unless the stack is left before."""
    handle = stack.enter_context(raw.dup())  # TLS takes the socket itself over

    def shut() -> None:
        # Sending has a timeout of its own; and a receiver that hears of the end resets, which hides its status.
        with contextlib.suppress(OSError):
            handle.shutdown(socket.SHUT_RD)

    cut = threading.Timer(max(ends_at - time.monotonic(), 0.0), shut)
    cut.daemon = True
    cut.start()
    stack.callback(cut.cancel)


def _reason(error: Exception) -> str:
    """Why there was no answer, without anything that the other side wrote."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"no answer ({type(error).__name__})"


def _retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After``, which gives those or a date; None where it is neither."""
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        at = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(at - time.time(), 0.0)
