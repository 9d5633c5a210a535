"""One request and its answer: its body is bounded in size, time and memory, and what goes wrong becomes an error."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from serve.errors import ApiError
from serve.settings import Limits

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Answered = Callable[[str, str, int, float, int], object]

LONGEST_NUMBER = 18
FORM_BYTES = 1 << 20
"""What a form may have beside its file."""
PLAIN_BYTES = 256 << 10
"""A body that is neither a form nor a line has at most so many bytes."""
SMALL_BYTES = 64 << 10
"""A body up to so large always finds room."""
VERSIONS = ("1.0", "1.1")


class Room:
    """The memory that large bodies share: those who come when it is full are sent away. Thread: the event loop's."""

    def __init__(self, most: int) -> None:
        self.left = most

    def take(self, size: int) -> bool:
        """Take so many bytes of it; False: there are not so many."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        limits: Limits,
        room: Room,
        answered: Answered,
        clock: Callable[[], float],
    ) -> None:
        self._receive, self._send, self._limits, self._clock = receive, send, limits, clock
        self._answered, self._path, self._method = answered, scope["path"], scope["method"]
        self._version = scope.get("http_version", "1.1")
        self._head_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        self.id = f"req_{uuid.uuid4().hex}"
        scope["request_id"] = self.id
        path = scope["path"].rstrip("/")
        self._is_file = scope["method"] == "POST" and path.endswith("/files")
        if self._is_file:
            self._most = limits.file_bytes + FORM_BYTES
        else:
            self._most = limits.body_bytes if path.endswith("/completions") else PLAIN_BYTES
        self._room, self._held = room, 0
        self._size = 0
        self._begun = clock()
        self._body_ended = self._left_small = self.started = False

    def check_head(self, headers: dict[bytes, bytes]) -> None:
        """See that the body can be read.

        Raises:
            ApiError: it cannot, or it or the head is too large.
        """
        if self._head_bytes > self._limits.header_bytes:  # the protocol counts only what comes in pieces
            message = f"The head of the request is larger than {self._limits.header_bytes:,} bytes."
            raise ApiError(431, message, code="request_too_large", headers={"Connection": "close"})
        length, chunked = headers.get(b"content-length"), b"transfer-encoding" in headers
        if self._version not in VERSIONS:
            message = f"HTTP/{self._version} is not spoken here: send HTTP/1.1."
            raise ApiError(505, message, code="http_version_not_supported", headers={"Connection": "close"})
        if length is not None and chunked:
            # A proxy before the server may believe the one, and the server the other.
            raise ApiError(
                400,
                "The request has both a Content-Length and a Transfer-Encoding: give one of them.",
                code="invalid_framing",
                headers={"Connection": "close"},
            )
        self._body_ended = length in (None, b"0") and not chunked
        if length is not None and length.isdigit():
            size = int(length[: LONGEST_NUMBER + 1])
            if size > self._most:
                raise self._too_large()
            self._left_small = size <= SMALL_BYTES and b"expect" not in headers
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
            message = "Compressed bodies are not taken: leave Content-Encoding out, and send the body as it is."
            raise ApiError(415, message, code="unsupported_content_encoding")

    def _too_large(self) -> ApiError:
        remedy = "split it" if self._is_file else "put it into the file of a batch, or split it"
        return ApiError(
            413,
            f"The request is larger than the {self._most:,} bytes that are taken here: {remedy}.",
            code="request_too_large",
            headers={"Connection": "close"},
        )

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            ApiError: it is too large, or comes too slowly, or there is no room for it now.
        """
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
            if not self._is_file:
                self._hold()
            elapsed = self._clock() - self._begun
            if elapsed > self._limits.quiet_s and self._size < elapsed * self._limits.slowest and not self._body_ended:
                raise self._too_slow()
        return message

    def _hold(self) -> None:
        more = self._size - SMALL_BYTES - self._held
        if more <= 0:
            return
        if not self._room.take(more):
            raise ApiError(
                503,
                "Other large requests fill the server's memory; try again in a moment.",
                code="too_much_at_once",
                headers={"Retry-After": "1"},
            )
        self._held += more

    def end(self) -> None:
        """Give back what the body held."""
        self._room.left += self._held
        self._held = 0

    def _too_slow(self) -> ApiError:
        return ApiError(
            408, "The request's body came too slowly.", code="request_timeout", headers={"Connection": "close"}
        )

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            elapsed = self._clock() - self._begun
            self._answered(self._path, self._method, message["status"], elapsed, self._size)
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            headers.append((b"x-content-type-options", b"nosniff"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def fail(self, told: ApiError) -> None:
        """Answer with an error. What is left of a large body is thrown away for a moment: a client that still sends
        would else never see the answer."""
        body = orjson.dumps(told.body())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in told.headers.items()]
        close = not (self._body_ended or self._left_small)
        if close and "Connection" not in told.headers:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": told.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": close})
        if close:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.linger_s):
                    await self._throw_away()
            await self.send({"type": "http.response.body", "body": b""})

    async def _throw_away(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
