"""One POST to a webhook: bounded in time, and nothing believed of the other side but its status."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["TIMEOUT_S", "Answer", "post"]

TIMEOUT_S = 15.0
DEADLINE_S = 30.0
"""The whole of an answer: a receiver that sends its byte by byte is cut off."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try: an HTTP status (None: there was none), in words, and the pause that was asked for."""

    status: int | None
    text: str
    retry_after_s: float | None = None


def post(url: str, body: bytes, headers: dict[str, str]) -> Answer:
    """POST once; no redirect is followed, certificates are checked, and nothing but the head of the answer is read."""
    opener = urllib.request.build_opener(_NoRedirects, _Http, _Https)
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with opener.open(request, timeout=TIMEOUT_S) as reply:
            return Answer(reply.status, f"HTTP {reply.status}")
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, f"HTTP {error.code}", _retry_after(error.headers.get("Retry-After")))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(None, _reason(error))


def _reason(error: Exception) -> str:
    """Why there was no answer, without anything that the other side wrote."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {reason.verify_message}"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return f"no answer ({type(reason).__name__})"


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


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """A receiver that has moved is given to `submit` as it is now: where it points might be anywhere."""
        return


class _Bounded(http.client.HTTPConnection):
    """A connection that is cut off some time after it was made, whatever still trickles in."""

    _cut: threading.Timer | None = None

    def connect(self) -> None:
        super().connect()
        self._handle = self.sock.dup()  # TLS, which begins only now, takes the socket itself over
        self._cut = threading.Timer(DEADLINE_S, _shut, [self._handle])
        self._cut.daemon = True
        self._cut.start()

    def close(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._handle.close()
        super().close()


def _shut(handle: socket.socket) -> None:
    with handle, contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


class _BoundedTls(http.client.HTTPSConnection, _Bounded):
    """The same with TLS."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Bounded, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_BoundedTls, request, context=ssl.create_default_context())
