"""What `promptmill serve` was told: where it listens, where files lie, and its limits."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by name or address: ``127.0.0.1.example.com`` is another's."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of the server; bytes and seconds."""

    file_bytes: int = 512 * MEBIBYTE
    unpacked_bytes: int = 2048 * MEBIBYTE
    """Of a file that is compressed, once it is unpacked."""
    file_lines: int = 1_000_000
    body_bytes: int = 4 * MEBIBYTE
    """Of a request that waits for its answer: longer lines go into the file of a batch."""
    bodies_bytes: int = 64 * MEBIBYTE
    """Of all such requests together, beside those with small bodies."""
    header_bytes: int = 64 << 10
    connections: int = 4096
    head_s: float = 15.0
    """A client has so long for the head of a request, from its first byte on."""
    quiet_s: float = 30.0
    """A body may stand still for so long, and so may a reader of an answer."""
    slowest: int = 1024
    """Bytes per second that a body must come with, once it has come for :attr:`quiet_s`."""
    linger_s: float = 2.0
    """What a client still sends that was refused is thrown away for so long, so that it gets to read why."""
    keep_alive_s: float = 75.0
    waiting: int = 10_000
    """Requests that wait for an answer at once."""
    request_s: float = 600.0
    """A request is given up after so long."""
    drain_s: float = 30.0
    """Requests that wait have so long to be answered when the server ends."""
    gather_s: float = 0.003
    """A request waits so long for others that share its shard."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The flags of the command, checked."""

    files: Path
    host: str = "127.0.0.1"
    port: int = 8577
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    origins: tuple[str, ...] = ()
    """Web pages of these origins may call the server from a browser."""
    strict_openai: bool = False
    models: tuple[str, ...] = ()
    """A worker beside it serves these, once it has loaded them."""
    limits: Limits = Limits()

    @property
    def local(self) -> bool:
        """Whether it listens on a loopback address."""
        return is_loopback(self.host)
