"""The outermost layer: each request gets an id and is let in or not, bodies are bounded, errors become OpenAI's."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import redis.exceptions

from jobs.errors import BatchNotFoundError, PromptmillError, RedisError
from jobs.lines.line import MAX_LINE_BYTES
from serve.access.access import Gate
from serve.errors import ApiError, error_body, unavailable
from serve.page.session import API, cookie_token
from serve.settings import Limits

log = logging.getLogger("promptmill.serve")

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Answered = Callable[[str, str, int, float, int], object]

OPEN_PATHS = frozenset({"/health", "/healthz", "/"})
OPEN_FILES = "/page/"
"""What needs no key: that the process answers, and the page's files."""
LONGEST_NUMBER = 18
FORM_BYTES = 1 << 20
"""What a form may have beside its file."""


class Guard:
    """An ASGI application around another. ``answered`` is told of each answer when its head is sent: the path, the
    method, the status, the seconds it took, the bytes of the request's body."""

    def __init__(
        self,
        app: App,
        gate: Gate,
        limits: Limits,
        *,
        answered: Answered = lambda path, method, status, seconds, received: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._gate, self._limits, self._answered, self._clock = app, gate, limits, answered, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits, self._answered, self._clock)
        try:
            headers = dict(scope["headers"])
            path = scope["path"]
            if path not in OPEN_PATHS and not path.startswith(OPEN_FILES):
                cookie = headers.get(b"cookie", b"") if path.startswith(API) else b""
                scope["access"] = self._gate.enter(headers, cookie=cookie_token(cookie.decode("latin-1")))
            exchange.check_length(headers)
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            await exchange.fail(error)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        limits: Limits,
        answered: Answered,
        clock: Callable[[], float],
    ) -> None:
        self._receive, self._send, self._limits, self._clock = receive, send, limits, clock
        self._answered, self._path, self._method = answered, scope["path"], scope["method"]
        self._id = f"req_{uuid.uuid4().hex}"
        scope["request_id"] = self._id
        file = scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/files")
        self._most = limits.file_bytes + FORM_BYTES if file else MAX_LINE_BYTES
        self._size = 0
        self._begun = clock()
        self._body_ended = self._started = False

    def check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > LONGEST_NUMBER or int(length) > self._most):
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is larger than the {self._most:,} bytes that are taken here: split it.",
            code="request_too_large",
            headers={"Connection": "close"},
        )

    async def receive(self) -> Message:
        if self._body_ended:
            return await self._receive()  # which waits until the client goes
        try:
            async with asyncio.timeout(self._limits.quiet_s):
                message = await self._receive()
        except TimeoutError:
            raise self._too_slow() from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._body_ended = not message.get("more_body", False)
            if self._size > self._most:
                raise self._too_large()
            elapsed = self._clock() - self._begun
            if elapsed > self._limits.quiet_s and self._size < elapsed * self._limits.slowest and not self._body_ended:
                raise self._too_slow()
        return message

    def _too_slow(self) -> ApiError:
        return ApiError(
            408, "The request's body came too slowly.", code="request_timeout", headers={"Connection": "close"}
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            elapsed = self._clock() - self._begun
            self._answered(self._path, self._method, message["status"], elapsed, self._size)
            headers = [*message.get("headers", ()), (b"x-request-id", self._id.encode())]
            headers.append((b"x-content-type-options", b"nosniff"))
            message = {**message, "headers": headers}
        async with asyncio.timeout(self._limits.quiet_s):
            await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answer with an error; where the answer has begun already the connection breaks off, so that nobody takes it
        for whole."""
        told = _told(error)
        if told.status >= 500 and told.status != 503:
            log.error("request %s failed: %r", self._id, error, exc_info=error, extra={"action": "request_failed"})
        if self._started:
            raise error
        body = orjson.dumps(told.body())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in told.headers.items()]
        if not self._body_ended:  # what is left of the body is not read
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": told.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _told(error: Exception) -> ApiError:
    """What a client is told of an error: nothing of addresses and paths."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RedisError | redis.exceptions.RedisError):
        return unavailable()
    if isinstance(error, BatchNotFoundError):
        return ApiError(404, "There is no such batch.")
    if isinstance(error, PromptmillError) and error.exit_status == 2:
        return ApiError(400, str(error))
    return ApiError(500, "The server had an error while it worked on your request; its log says more.")


def plain_error(status: int, message: str) -> bytes:
    """An error for a connection that never came to a request."""
    return orjson.dumps(error_body(status, message))
