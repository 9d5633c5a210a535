"""The paths `/v1/chat/completions` and `/v1/completions`: each request waits for its line."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from starlette.routing import Route

from jobs.errors import BatchNotFoundError, RefusedError
from jobs.lines.line import CHAT_URL, COMPLETIONS_URL
from jobs.store.shard_records import ShardRecords, loaded
from serve.errors import ApiError
from serve.http.exchange import SMALL_BYTES, Message, Receive, Scope, Send
from serve.pool.routes import no_model
from serve.requests.answering import answer_of
from serve.requests.answers import GONE
from serve.requests.line import RequestLine, line_of
from serve.requests.sender import once_key

if TYPE_CHECKING:
    from serve.requests.desk import Desk

ASK_AGAIN_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Of a request that was sent before it is looked so often whether its record is there: less often, the longer it
takes."""
LONGEST_KEY = 256


class Completions:
    """One of the two paths, as an ASGI application: no layer of a framework stands before its answer."""

    def __init__(self, url: str, desk: Desk, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._desk, self._clock = url, desk, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise ApiError(405, f"{self._url} takes POST.", headers={"Allow": "POST"})
        line = await self._line(await _body(receive), scope)
        record = await self._record(line, _once(scope), receive)
        if record is None:
            return  # the client has gone
        status, body = answer_of(record, self._url)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _line(self, raw: bytes, scope: Scope) -> RequestLine:
        """The line of a request. Large ones are looked at in a thread, one after the other, while others are served."""
        if len(raw) <= SMALL_BYTES:
            return line_of(raw, self._url, scope["request_id"], scope["access"])
        async with self._desk.checking:
            return await asyncio.to_thread(line_of, raw, self._url, scope["request_id"], scope["access"])

    async def _record(self, line: RequestLine, once: str | None, receive: Receive) -> bytes | None:
        """The record of a line; None where its client went away before.

        Raises:
            ApiError: there is none in time, or too many wait already.
        """
        desk = self._desk
        if not desk.models.serves(line.group.model, line.group.adapter_path):
            raise no_model(line.group.key)
        sent = None if once is None else await asyncio.to_thread(_sent_before, desk, once)
        if sent is not None:
            return await self._again(*sent)
        waiter = desk.enter(line, once)
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait(
                (waiter.answer, gone), timeout=desk.limits.request_s, return_when=asyncio.FIRST_COMPLETED
            )
            if waiter.answer.done():
                return waiter.answer.result()
            if gone.done():
                return None
            raise ApiError(
                504,
                f"The request was not answered within {desk.limits.request_s:.0f} s, and was given up.",
                code="request_timeout",
            )
        finally:
            gone.cancel()
            desk.leave(waiter)

    async def _again(self, batch_id: str, number: int, index: int) -> bytes:
        """The record of a line that was sent by an earlier request."""
        deadline, pause = self._clock() + self._desk.limits.request_s, ASK_AGAIN_S
        while self._clock() < deadline:
            # In this order: what ends between the two has its record.
            live = await asyncio.to_thread(_is_there, self._desk, batch_id)
            found = await asyncio.to_thread(_record_at, self._desk, batch_id, number, index)
            if found is not None or not live:
                return found or GONE
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)
        raise ApiError(504, "The request was not answered in time.", code="request_timeout")


async def _body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        ApiError: it is too large, or its client went away.
    """
    blocks: list[bytes] = []
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The request ended before its body did.")
        blocks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return blocks[0] if len(blocks) == 1 else b"".join(blocks)


async def _disconnected(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _once(scope: Scope) -> str | None:
    """What names a request that may be sent again."""
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            if not 1 <= len(value) <= LONGEST_KEY:
                raise ApiError(400, f"An Idempotency-Key has 1 to {LONGEST_KEY} characters.", code="invalid_value")
            return hashlib.sha256(scope["access"].owner.encode() + b"\0" + value).hexdigest()
    return None


def _sent_before(desk: Desk, once: str) -> tuple[str, int, int] | None:
    """Where the line of an earlier request of this name is, if it is there still."""
    raw = cast("bytes | None", desk.store.connection.get(once_key(once)))
    parts = [] if raw is None else raw.decode(errors="replace").split()
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    return (parts[0], int(parts[1]), int(parts[2])) if _is_there(desk, parts[0]) else None


def _is_there(desk: Desk, batch_id: str) -> bool:
    """Whether lines of a batch run, or have run."""
    with contextlib.suppress(BatchNotFoundError, RefusedError):
        return desk.store.batch(batch_id).status in ("in_progress", "completed")
    return False


def _record_at(desk: Desk, batch_id: str, number: int, index: int) -> bytes | None:
    part = ShardRecords(desk.store.connection, batch_id).part(number, index - 1, [index])
    return next((loaded(record) for found, record in part.records if found == index), None)


def completion_routes(desk: Desk) -> list[Route]:
    """The two paths."""
    paths: list[tuple[str, Any]] = [
        ("/chat/completions", Completions(CHAT_URL, desk)),
        ("/completions", Completions(COMPLETIONS_URL, desk)),
    ]
    return [Route(path, endpoint) for path, endpoint in paths]
