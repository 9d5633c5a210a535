"""The paths `/v1/chat/completions` and `/v1/completions`: each request waits for its line."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from serve.requests.desk import closing
from serve.requests.line import RequestLine, line_of
from serve.requests.sender import once_key
from serve.requests.waiting import Once

if TYPE_CHECKING:
    from serve.requests.desk import Desk

ASK_AGAIN_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Of a request that was sent before it is looked so often whether its record is there: less often, the longer it
takes."""
LONGEST_KEY = 256


@dataclass(frozen=True, slots=True)
class SentLine:
    """Where the line of a request is: the batch, the number of its shard, its index."""

    batch_id: str
    number: int
    index: int


class Completions:
    """One of the two paths, as an ASGI application: no layer of a framework stands before its answer."""

    def __init__(self, url: str, desk: Desk, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._desk, self._clock = url, desk, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise ApiError(405, f"{self._url} takes POST.", headers={"Allow": "POST"})
        raw = await _body(receive)
        line = await self._line(raw, scope)
        record = await self._record(line, _once(scope, self._url, raw), receive)
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

    async def _record(self, line: RequestLine, once: Once | None, receive: Receive) -> bytes | None:
        """The record of a line; None where its client went away before.

        Raises:
            ApiError: there is none in time, or too many wait already.
        """
        desk = self._desk
        if not desk.models.serves(line.group.model, line.group.adapter_path):
            raise no_model(line.group.key)
        sent = None if once is None else await asyncio.to_thread(_sent_before, desk, once)
        if sent is not None:
            return await self._again(sent, receive)
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

    async def _again(self, sent: SentLine, receive: Receive) -> bytes | None:
        """The record of a line that was sent by an earlier request; None where the client went away before.

        Raises:
            ApiError: there is none in time, or too many wait already.
        """
        desk = self._desk
        deadline, pause = self._clock() + desk.limits.request_s, ASK_AGAIN_S
        with desk.place():
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                while self._clock() < deadline:
                    found = await asyncio.to_thread(_record_at, desk, sent)
                    if found is not None:
                        return found
                    if desk.closed:
                        raise closing()
                    await asyncio.wait((gone,), timeout=pause)
                    if gone.done():
                        return None
                    pause = min(pause * 1.5, LONGEST_PAUSE_S)
            finally:
                gone.cancel()
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


def _once(scope: Scope, url: str, raw: bytes) -> Once | None:
    """What names a request that may be sent again.

    Raises:
        ApiError: its name is no good.
    """
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            if not 1 <= len(value) <= LONGEST_KEY:
                raise ApiError(400, f"An Idempotency-Key has 1 to {LONGEST_KEY} characters.", code="invalid_value")
            owner = scope["access"].owner.encode()
            return Once(hashlib.sha256(owner + b"\0" + value).hexdigest(), _digest(url, raw))
    return None


def _digest(url: str, raw: bytes) -> str:
    return hashlib.sha256(url.encode() + b"\0" + raw).hexdigest()


def _sent_before(desk: Desk, once: Once) -> SentLine | None:
    """Where the line of an earlier request of this name is, if it is there still.

    Raises:
        ApiError: the earlier request asked something else.
    """
    raw = cast("bytes | None", desk.store.connection.get(once_key(once.name)))
    parts = [] if raw is None else raw.decode(errors="replace").split()
    if len(parts) != 4 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    if parts[3] != once.asked:
        message = "Conflict: this Idempotency-Key was used for another request; take a new one."
        raise ApiError(409, message, code="idempotency_conflict")
    sent = SentLine(parts[0], int(parts[1]), int(parts[2]))
    return sent if _is_there(desk, sent) else None


def _is_there(desk: Desk, sent: SentLine) -> bool:
    """Whether the line runs, or has run."""
    with contextlib.suppress(BatchNotFoundError, RefusedError):
        return desk.store.batch(sent.batch_id).status in ("in_progress", "completed")
    return False


def _record_at(desk: Desk, sent: SentLine) -> bytes | None:
    """The record of a line; None where there is none yet."""
    live = _is_there(desk, sent)  # before the record: what ends between the two has it
    part = ShardRecords(desk.store.connection, sent.batch_id).part(sent.number, sent.index - 1, [sent.index])
    record = next((loaded(record) for found, record in part.records if found == sent.index), None)
    return record if record is not None or live else GONE


def completion_routes(desk: Desk) -> list[Route]:
    """The two paths."""
    paths: list[tuple[str, Any]] = [
        ("/chat/completions", Completions(CHAT_URL, desk)),
        ("/completions", Completions(COMPLETIONS_URL, desk)),
    ]
    return [Route(path, endpoint) for path, endpoint in paths]
