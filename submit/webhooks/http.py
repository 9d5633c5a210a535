"""One POST to a webhook: bounded in time, and nothing believed of the other side but its status."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from submit.webhooks.address_guard import Addresses, LocalAddressError, dial

__all__ = ["TIMEOUT_S", "HttpAnswer", "post"]

TIMEOUT_S = 15.0
"""The silence that ends a try."""
DEADLINE_S = 30.0
"""The whole of a try, from the look for the host's addresses to the head of the answer: a receiver that sends it byte
by byte is cut off."""


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
        connection = _connection(host, parts.port, context)
        target = f"{path}?{parts.query}" if parts.query else path
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            ends_at = time.monotonic() + DEADLINE_S
            raw = dial(host, connection.port, ends_at, timeout_s=TIMEOUT_S, local=local, addresses=addresses)
            stack.enter_context(raw)
            _cut_off(stack, raw, ends_at)
            connection.sock = raw
            if context is not None:
                connection.sock = context.wrap_socket(raw, server_hostname=host)
            connection.request("POST", target, body, {**headers, "Connection": "close"})
            with connection.getresponse() as reply:
                return HttpAnswer(reply.status, f"HTTP {reply.status}", _retry_after(reply.getheader("Retry-After")))
    except LocalAddressError as error:
        return HttpAnswer(None, str(error), refused=True)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return HttpAnswer(None, _reason(error))


def _connection(host: str, port: int | None, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    if context is not None:
        return http.client.HTTPSConnection(host, port, context=context)
    return http.client.HTTPConnection(host, port)


def _cut_off(stack: contextlib.ExitStack, raw: socket.socket, ends_at: float) -> None:
    """Hear nothing more from this time on, whatever still trickles in, unless the stack is left before."""
    handle = stack.enter_context(raw.dup())  # TLS takes the socket itself over
    cut = threading.Timer(max(ends_at - time.monotonic(), 0.0), _shut, [handle])
    cut.daemon = True
    cut.start()
    stack.callback(cut.cancel)


def _shut(handle: socket.socket) -> None:
    # What is sent has its timeout; and a receiver that hears of the end answers with a reset, which hides its status.
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RD)


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
