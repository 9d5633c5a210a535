"""A network between clients and servers that can be broken."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading


class Proxy:
    """Passes bytes between clients and the server, ``unix://PATH``; when told to, it loses the next reply and the
    connection. Of several servers, which may be ``tcp://HOST:PORT``, each connection gets the next that is there."""

    def __init__(self, *servers: str) -> None:
        self._servers = servers
        self._turn = itertools.count()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._lose = threading.Event()
        self.lost = 0
        self._sockets = [self._listening]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}"

    def lose_next_reply(self) -> None:
        self._lose.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = self._connected()
                if server is None:
                    client.close()
                    continue
                self._sockets += [client, server]
                for arguments in ((client, server, False), (server, client, True)):
                    self._threads.append(threading.Thread(target=self._pass, args=arguments))
                    self._threads[-1].start()

    def _connected(self) -> socket.socket | None:
        """A connection to the next server that is there."""
        for _ in self._servers:
            scheme, _, place = self._servers[next(self._turn) % len(self._servers)].partition("://")
            with contextlib.suppress(OSError):
                if scheme == "tcp":
                    host, _, port = place.rpartition(":")
                    return socket.create_connection((host, int(port)))
                server = socket.socket(socket.AF_UNIX)
                server.connect(place)
                return server
        return None

    def _pass(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if replies and self._lose.is_set():
                    self._lose.clear()
                    self.lost += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()
