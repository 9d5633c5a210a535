"""The protocol of a connection: uvicorn's, with limits for who never comes to a request, or never takes an answer."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from http import HTTPStatus
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.errors import error_body
from serve.settings import Limits

log = logging.getLogger("promptmill.serve")

LONGEST_REASON = 200


class LimitedProtocol(H11Protocol):
    """Cuts off who is too many, whose head of a request does not come to an end, and who does not read."""

    limits: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _end_timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "There are too many connections; try again in a moment.")
            self._close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if not self._refused:
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # the next head has begun
            self._unset_keepalive_if_required()
        self._watch()
        self._close_in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._stop_ending()
        super().connection_lost(exc)

    # --- who does not come to a request ---

    def _watch(self) -> None:
        """Start the clock where a request's head is awaited, or the rest of a body that nobody reads; more bytes of
        it do not start it anew."""
        skipping = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        idle = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not (skipping or idle):
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_s, self._too_slow)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self._refuse(408, "The head of the request came too slowly.")
        else:
            self._close()

    def _should_upgrade(self) -> bool:
        """Never: a request for another protocol is answered in this one."""
        return False

    # --- who does not take an answer ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_within(self.limits.quiet_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_ending()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_in_time()

    def _close(self) -> None:
        self.transport.close()
        self._close_in_time()

    def _close_in_time(self) -> None:
        """See that a connection that is being closed is closed, whether its client reads the rest or not."""
        if self.transport.is_closing():
            self._end_within(self.limits.quiet_s)

    def _end_within(self, seconds: float) -> None:
        if self._end_timer is None:
            self._end_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_ending(self) -> None:
        if self._end_timer is not None:
            self._end_timer.cancel()
            self._end_timer = None

    # --- what is no request ---

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, which is known from the error that is being handled."""
        error = sys.exception()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self._close()
                return
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            self._refuse(status, f"The head of the request is larger than {self.limits.header_bytes:,} bytes.")
        else:
            why = str(error).partition(": bytearray")[0]  # behind that are its bytes
            self._refuse(status, f"The request is no HTTP that can be read: {why[:LONGEST_REASON]}.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer, and hear nothing more. What is still sent is thrown away for a moment: the client would else
        never see the answer."""
        if self.transport.is_closing():
            return
        self._refused = True
        self._stop_watching()
        self._unset_keepalive_if_required()
        request_id = f"req_{uuid.uuid4().hex}"
        log.debug("request %s refused: %s", request_id, message)
        body = orjson.dumps(error_body(status, message))
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
        head += [f"Content-Length: {len(body)}", "Connection: close", f"x-request-id: {request_id}"]
        head += ["Retry-After: 1"] if status == HTTPStatus.SERVICE_UNAVAILABLE else []
        self.transport.write("\r\n".join([*head, "\r\n"]).encode() + body)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end_within(self.limits.linger_s)


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The class of connections under these limits: uvicorn makes one of each connection by itself."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
