"""Clients that mean harm, each kind in a process of its own: ``python -m bench.serve.hostile KIND URL COUNT``.

It prints how often each status came, as JSON; 0 is a connection that broke off.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from bench.serve.clients import COMPLETIONS, HEAD, Connection, post

CLIENTS = 100
FORM = "Content-Type: multipart/form-data; boundary=B"
PART = b'--B\r\nContent-Disposition: form-data; name="file"; filename="'
TINY = (
    f"GET /v1/nothing HTTP/1.1\r\n{HEAD}\r\n".encode(),
    f"GET /v1/batches/..%2f..%2fetc%2fpasswd HTTP/1.1\r\n{HEAD}\r\n".encode(),
    post(COMPLETIONS, b"{"),
    post(COMPLETIONS, b'{"model":"a/b","prompt":1}'),
    post("/v1/batches", b"[]"),
    f"PUT /v1/files HTTP/1.1\r\n{HEAD}\r\n".encode(),
)

Found = Counter[int]


async def _asked(url: str, count: int, request: Callable[[random.Random], bytes]) -> Found:
    """So many requests of :data:`CLIENTS` clients; those whose connection breaks connect again."""
    found: Found = Counter()
    numbers = iter(range(count))

    async def client(seed: int) -> None:
        draw, connection = random.Random(seed), await Connection.to(url)
        for _ in numbers:
            try:
                status, _ = await connection.ask(request(draw))
            except (OSError, EOFError, IndexError):
                status, connection = 0, await Connection.to(url)
            found[status] += 1
        connection.close()

    await asyncio.gather(*map(client, range(min(CLIENTS, count))))
    return found


async def _afresh(url: str, count: int, request: Callable[[random.Random], bytes]) -> Found:
    """So many requests, each over a connection of its own, a hundred at once."""
    room = asyncio.Semaphore(CLIENTS)

    async def client(seed: int) -> int:
        async with room:
            return await _status_of(url, request(random.Random(seed)))

    return Counter(await asyncio.gather(*map(client, range(count))))


async def _status_of(url: str, request: bytes) -> int:
    """The answer's status to what is sent over a connection of its own; 0 where that broke off."""
    connection = await Connection.to(url)
    try:
        await connection.send(request)
        status, _ = await connection.answer()
    except (OSError, EOFError, IndexError):
        return 0
    finally:
        connection.close()
    return status


async def tiny(url: str, count: int) -> Found:
    """Small requests that are none."""
    return await _asked(url, count, lambda draw: draw.choice(TINY))


async def forged(url: str, count: int) -> Found:
    """Keys that are none."""
    return await _asked(
        url,
        count,
        lambda draw: f"GET /v1/models HTTP/1.1\r\n{HEAD}Authorization: Bearer {draw.random()}\r\n\r\n".encode(),
    )


async def forms(url: str, count: int) -> Found:
    """Forms that are none: cut off, of noise, of a flood of parts."""

    def request(draw: random.Random) -> bytes:
        bodies = (
            PART + b'x"\r\n\r\n{}\r\n',
            draw.randbytes(50_000),
            (PART[:-12] + b'"\r\n\r\nx\r\n') * 500,
            b"--B\r\n" + b"X: y\r\n" * 5000,
        )
        return post("/v1/files", draw.choice(bodies), FORM)

    return await _afresh(url, count, request)


async def names(url: str, count: int) -> Found:
    """Uploads whose names are paths, for purposes that there are not."""

    def request(draw: random.Random) -> bytes:
        name = draw.choice((b"../../etc/passwd", b"\0", b"\xff\xfe", b"C:\\x", b"a" * 3000))
        return post("/v1/files", PART + name + b'"\r\n\r\n{}\r\n--B--\r\n', FORM)

    return await _asked(url, count, request)


async def lengths(url: str, count: int) -> Found:
    """Ten gigabytes announced."""
    head = f"POST /v1/files HTTP/1.1\r\n{HEAD}{FORM}\r\nContent-Length: {10 << 30}\r\n\r\n".encode()
    return await _afresh(url, count, lambda draw: head + PART + draw.randbytes(1 << 16))


async def heads(url: str, count: int) -> Found:
    """Floods of headers."""
    return await _afresh(url, count, lambda draw: f"GET / HTTP/1.1\r\n{HEAD}".encode() + b"a:b\r\n" * 200_000)


async def slow(url: str, count: int) -> Found:
    """Heads and bodies that never come to an end, until the server has enough."""
    begins = (
        f"POST {COMPLETIONS} HTTP/1.1\r\n{HEAD}Content-Length: 1000\r\n\r\n".encode(),
        f"POST /v1/files HTTP/1.1\r\n{HEAD}{FORM}\r\nContent-Length: 1000000\r\n\r\n".encode() + PART,
        b"GET /v1/models HTTP/1.1\r\nHost: local",
    )
    return Counter(await asyncio.gather(*(_status_of(url, begins[number % len(begins)]) for number in range(count))))


async def unread(url: str, count: int) -> Found:
    """Requests without end over connections that take no answers, until the server has enough."""
    found: Found = Counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split("/")[0].split(":"))
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            while True:
                writer.write(TINY[0] * 100)
                await writer.drain()
        except OSError:
            found[0] += 1

    await asyncio.gather(*(client() for _ in range(count)))
    return found


KINDS: dict[str, tuple[Callable[[str, int], Awaitable[Found]], int, str]] = {
    "forms": (forms, 2000, "malformed forms"),
    "lengths": (lengths, 300, "10 GB announced"),
    "names": (names, 5000, "names of files that are paths"),
    "heads": (heads, 500, "floods of headers, 1 MB each"),
    "forged": (forged, 50_000, "forged keys"),
    "slow": (slow, 900, "heads and bodies that do not end"),
    "unread": (unread, 10, "answers that nobody reads"),
    "tiny": (tiny, 1_000_000, "tiny requests"),
}
"""By name: what it does, how often, and what it is called."""


async def run(kind: str, url: str, count: int) -> Found:
    """So many of a kind."""
    return await KINDS[kind][0](url, count)


def main(kind: str, url: str, count: str) -> None:
    found = asyncio.run(run(kind, url, int(count)))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
