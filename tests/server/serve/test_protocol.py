"""Connections: who never comes to a request is cut off, and the others are served."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from serve.http.protocol import limited_protocol
from serve.settings import Limits

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 4 << 20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def app(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def large(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def connected(
    limits: Limits, scenario: Callable[[Callable[[], Awaitable[Streams]]], Awaitable[None]], app: Any = app
) -> None:
    """Run a scenario with a server under these limits; it is given what connects."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            config = uvicorn.Config(
                app,
                http=limited_protocol(limits),
                lifespan="off",
                ws="none",
                log_config=None,
                h11_max_incomplete_event_size=limits.header_bytes,
            )
            server = uvicorn.Server(config)
            task = asyncio.create_task(server._serve([listening]))
            opened: list[Streams] = []

            async def connect() -> Streams:
                opened.append(await asyncio.open_connection(*listening.getsockname()))
                return opened[-1]

            try:
                await scenario(connect)
            finally:
                for _, writer in opened:
                    writer.close()
                server.should_exit = True
                await task

    asyncio.run(run())


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The status line of an answer whose body is ``ok``."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(2)
    return head.split(b"\r\n")[0]


def test_a_head_that_comes_too_slowly_is_cut_off() -> None:
    """Also where some bytes of it come, and after a request that was whole."""

    async def scenario(connect: Callable[[], Awaitable[Streams]]) -> None:
        for begin in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA:"):
            reader, writer = await connect()
            writer.write(begin)
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        reader, writer = await connect()
        writer.write(REQUEST + b"GET /")
        assert await answer(reader) == b"HTTP/1.1 200 OK"
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")

    connected(Limits(head_s=0.05), scenario)


def test_a_connection_serves_many_requests() -> None:
    """One after the other, and sent together."""

    async def scenario(connect: Callable[[], Awaitable[Streams]]) -> None:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(REQUEST)
            assert await answer(reader) == b"HTTP/1.1 200 OK"
        writer.write(REQUEST * 3)
        for _ in range(3):
            assert await answer(reader) == b"HTTP/1.1 200 OK"

    connected(Limits(), scenario)


def test_too_many_connections_are_told_to_come_again() -> None:
    """Those there are go on; when one ends there is room again."""

    async def scenario(connect: Callable[[], Awaitable[Streams]]) -> None:
        reader, writer = await connect()
        writer.write(REQUEST)
        await answer(reader)
        refused, _ = await connect()
        assert (await refused.read()).startswith(b"HTTP/1.1 503 ")
        writer.write(REQUEST)
        assert await answer(reader) == b"HTTP/1.1 200 OK"
        writer.close()
        await writer.wait_closed()
        status = b""
        while b" 200 " not in status:
            reader, writer = await connect()
            writer.write(REQUEST)
            status = await reader.readline()

    connected(Limits(connections=1), scenario)


def test_a_head_that_is_too_large_is_refused() -> None:
    """Its bytes are not kept."""

    async def scenario(connect: Callable[[], Awaitable[Streams]]) -> None:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
        head, body = (await reader.read()).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert b"x-request-id: req_" in head
        assert "4,096 bytes" in json.loads(body)["error"]["message"]

    connected(Limits(header_bytes=4096), scenario)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x00\xc2", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ],
)
def test_what_is_no_http_is_refused(request_: bytes, status: int) -> None:
    """As all else is: with an error of OpenAI's form and an id."""

    async def scenario(connect: Callable[[], Awaitable[Streams]]) -> None:
        reader, writer = await connect()
        writer.write(request_ + b"\r\n")
        head, body = (await reader.read()).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"x-request-id: req_" in head
        assert b"bytearray" not in body
        assert json.loads(body)["error"]["type"] == ("server_error" if status == 501 else "invalid_request_error")

    connected(Limits(), scenario)


def test_who_does_not_read_is_cut_off() -> None:
    """Its connection does not stay open for what it never takes."""

    async def scenario(connect: Callable[[], Awaitable[Streams]]) -> None:
        _, writer = await connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):  # noqa: PT012
            while True:
                writer.write(REQUEST)
                await asyncio.sleep(0.001)
                await writer.drain()

    connected(Limits(quiet_s=0.05), scenario, large)
