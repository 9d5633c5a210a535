"""Clients of a server: connections that stay open, and what is sent over them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

HEAD = "Host: localhost\r\n"
COMPLETIONS = "/v1/completions"


def place_of(url: str) -> tuple[str, int]:
    """The host and port of a server's URL."""
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or 80


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with a body."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"POST {path} HTTP/1.1\r\n{HEAD}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def completion(model: str, prompt: str, *headers: str, **fields: object) -> bytes:
    """A request for a completion."""
    return post(COMPLETIONS, json.dumps({"model": model, "prompt": prompt, **fields}).encode(), *headers)


class Connection:
    """A connection that stays open from one request to the next."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> Connection:
        return cls(*await asyncio.open_connection(*place_of(url)))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and body of the answer."""
        self._writer.write(request)
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        """The next answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), await self._reader.readexactly(size)

    async def send(self, data: bytes) -> None:
        """Send anything."""
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """The memory of a process now, or at its ``peak``; where there is no /proc it is that of now."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
        return int(said.stdout) / 1000
    return int(text.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) * 1.024 / 1000


@contextmanager
def beside(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process beside this one that runs a module, and is ended with the block."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
