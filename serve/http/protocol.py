"""The protocol of a connection: uvicorn's, with limits for those who never come to a request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.guard import plain_error
from serve.settings import Limits


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The class of connections under these limits."""

    class LimitedProtocol(H11Protocol):
        """Cuts off who is too many, and whose head of a request does not come to an end."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._refuse(503, "Service Unavailable", "There are too many connections; try again in a moment.")
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0]:  # the next head has begun
                self._unset_keepalive_if_required()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Start the clock where a request's head is awaited; more bytes of it do not start it anew."""
            if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
                self._stop_watching()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(limits.head_s, self._too_slow)

        def _stop_watching(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            if self.conn.their_state is h11.IDLE:
                self._refuse(408, "Request Timeout", "The head of the request came too slowly.")

        def _refuse(self, status: int, reason: str, message: str) -> None:
            if self.transport.is_closing():
                return
            body = plain_error(status, message)
            head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
            head += "Retry-After: 1\r\n\r\n" if status == 503 else "\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()

    return LimitedProtocol
