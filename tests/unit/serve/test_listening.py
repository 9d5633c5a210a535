"""The socket that a server listens at."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from serve.server import listening_socket
from serve.settings import ServeSettings


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Connections that come in have Nagle's algorithm off."""
    with listening_socket(ServeSettings(tmp_path, port=0)) as listening:
        assert asyncio.run(_nodelay_of_a_connection(listening))


async def _nodelay_of_a_connection(listening: socket.socket) -> int:
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accepted(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(accepted, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname())
        try:
            return await found
        finally:
            writer.close()
