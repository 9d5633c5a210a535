"""A network between client and server that can be broken."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Passes bytes between clients and the server; when told to, it loses the next reply and the connection."""

    def __init__(self, server: str) -> None:
        self._server = server.removeprefix("unix://")
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
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._sockets += [client, server]
                for arguments in ((client, server, False), (server, client, True)):
                    self._threads.append(threading.Thread(target=self._pass, args=arguments))
                    self._threads[-1].start()

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
