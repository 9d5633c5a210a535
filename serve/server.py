"""The server as a process: its parts, its sockets, the process that makes batches beside it, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from jobs.app.process_name import process_name
from jobs.errors import RefusedError
from jobs.store.maintenance import upkeep
from jobs.store.store import Store
from serve.access.access import Gate
from serve.access.keyfile import KeyRing
from serve.app import Api, make_app
from serve.batches.book import BatchBook
from serve.batches.routes import BatchRoutes
from serve.files.results import Results
from serve.files.routes import FileRoutes
from serve.files.store import Files
from serve.files.upload import Uploads
from serve.http.exchange import App
from serve.http.metrics import Metrics
from serve.http.protocol import limited_protocol
from serve.intake.orders import Orders
from serve.page.pool import SAMPLE_S
from serve.page.routes import PageRoutes
from serve.pool.models import Models
from serve.pool.presence import SAID_S, Presence
from serve.pool.routes import ModelRoutes
from serve.requests.desk import Desk
from serve.settings import Limits, ServeSettings

log = logging.getLogger("promptmill.serve")

BACKLOG = 2048
OTHER_FILES = 256
"""Files that are open beside connections."""
TIDY_FILES_S = 60.0
UPKEEP_S = 15.0
"""Batches whose time is up end also while there is no worker: those of a server that died too."""
END_S = 10.0
INTAKE_PAUSE_S = 1.0
LOUD = ("uvicorn.error", "python_multipart")
"""Logs of others that have a line for each bad request: anybody could fill the disk."""


class ServerParts:
    """What one server is made of."""

    def __init__(self, store: Store, settings: ServeSettings) -> None:
        self.settings = settings
        self.files = Files(store.connection, settings.files)
        self.files.prepare()
        self.models = Models(store.connection)
        orders = Orders(store.connection)
        book = BatchBook(store, orders)
        results = Results(store, strict=settings.strict_openai)
        self.presence = Presence(store, process_name(None))
        uploads = FileRoutes(self.files, book, results, Uploads(self.files, settings.limits))
        self.page = PageRoutes(store, settings, self.files, uploads, book, orders, self.models)
        chores = [
            Every(TIDY_FILES_S, self.files.tidy),
            Every(UPKEEP_S, lambda: upkeep(store, orphans=False)),
            Every(SAID_S, self.presence.say),
            Every(SAMPLE_S, self.page.pool.sample),
        ]
        self.desk = Desk(store, self.models, settings.limits, also=chores)
        self.api = Api(
            uploads,
            BatchRoutes(store, orders, book),
            ModelRoutes(self.models),
            self.desk,
            Metrics(lambda: self.desk.count),
        )
        keys = None if settings.keys is None else KeyRing(settings.keys, say=log.error)
        self.gate = Gate(keys, self.settings.origins)

    def app(self) -> App:
        return make_app(
            self.api, self.gate, self.settings.limits, origins=self.settings.origins, more=self.page.routes()
        )


class Every:
    """Does something when it is called, but not more often than each so many seconds."""

    def __init__(self, seconds: float, act: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._act, self._clock = seconds, act, clock
        self._next = 0.0

    def __call__(self) -> None:
        if self._clock() >= self._next:
            self._next = self._clock() + self._seconds
            self._act()


class StopHandlers:
    """Calls ``handle(number, frame)`` for the signals that ask a process to stop, as long as the block runs."""

    def __init__(self, handle: Callable[[int, Any], object]) -> None:
        self._handle = handle
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """uvicorn's server, whose desk opens and closes with it. It ends once ``over`` says so, too."""

    def __init__(
        self, config: uvicorn.Config, desk: Desk, ready: Callable[[], object], over: Callable[[], bool]
    ) -> None:
        super().__init__(config)
        self._desk, self._ready, self._over = desk, ready, over

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._over()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Being asked to stop is no failure: the process goes on to its end."""
        with StopHandlers(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            log.info("stopping: requests that wait are answered first, for up to %.0f s", self._desk.limits.drain_s)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._desk.open()
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = asyncio.get_running_loop().call_later(self._desk.limits.drain_s, self._desk.refuse_rest)
        await super().shutdown(sockets)
        waiting.cancel()
        self._desk.refuse_rest()
        await asyncio.to_thread(self._desk.close)


def run_server(
    store: Store,
    settings: ServeSettings,
    redis_url: str,
    say: Callable[[str], object],
    *,
    over: Callable[[], bool] = lambda: False,
) -> int:
    """Serve until asked to stop, or it is ``over``; the exit status.

    Raises:
        RefusedError: the address cannot be served, or a file that was named cannot be used.
    """
    settings = replace(settings, limits=_with_room(settings.limits, say))
    with contextlib.ExitStack() as stack:
        try:
            parts = ServerParts(store, settings)
        except OSError as error:
            raise RefusedError(f"{settings.files}: files cannot be kept there: {error.strerror or error}") from None
        parts.models.expect(settings.models)
        parts.models.look()
        listening = stack.enter_context(listening_socket(settings))
        stack.enter_context(intake_process(settings, redis_url))
        scheme = "http" if settings.certificate is None else "https"
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host

        url = f"{scheme}://{shown}:{port}/v1"
        parts.presence.at(url)
        stack.callback(parts.presence.leave)

        def ready() -> None:
            say(f"serving at {url}")

        for name in LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        server = Server(_config(parts, settings), parts.desk, ready, over)
        server.run(sockets=[listening])
    return 0


def _with_room(limits: Limits, say: Callable[[str], object]) -> Limits:
    """The limits, with as many connections as the system lets this process have open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + OTHER_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    found = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if found == resource.RLIM_INFINITY or found >= wanted:
        return limits
    connections = max(found - OTHER_FILES, 1)
    say(f"this process may have {found} files open: at most {connections} connections are taken (see `ulimit -n`)")
    return replace(limits, connections=connections)


def _config(parts: ServerParts, settings: ServeSettings) -> uvicorn.Config:
    limits = settings.limits
    tls: dict[str, Any] = {}
    if settings.certificate is not None:
        tls = {"ssl_certfile": str(settings.certificate), "ssl_keyfile": _text(settings.private_key)}
    return uvicorn.Config(
        parts.app(),
        http=limited_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(limits.keep_alive_s),
        timeout_graceful_shutdown=int(limits.drain_s + END_S),
        h11_max_incomplete_event_size=limits.header_bytes,
        **tls,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


@contextlib.contextmanager
def listening_socket(settings: ServeSettings) -> Iterator[socket.socket]:
    """A socket at the address that is to be served.

    Raises:
        RefusedError: there can be none.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Of a socket that names TCP, asyncio turns Nagle's algorithm off: else each answer waits 40 ms for an ACK.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((settings.host, settings.port))
        except OSError as error:
            where, why = f"{settings.host}:{settings.port}", error.strerror or error
            raise RefusedError(f"{where} cannot be served: {why}; give another --host or --port") from None
        yield made


@contextlib.contextmanager
def intake_process(settings: ServeSettings, redis_url: str) -> Iterator[None]:
    """The process that makes batches of files, as long as the block runs; started again where it dies."""
    import threading

    environ = intake_environ(settings, redis_url, os.environ)
    # -P: a folder named serve in the current directory must not be taken for ours.
    command = [sys.executable, "-P", "-m", "serve.intake.process", str(settings.files.absolute())]
    over = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        while not over.is_set():
            with subprocess.Popen(command, stdin=subprocess.PIPE, env=environ, start_new_session=True) as process:
                running[:] = [process]
                if over.is_set():
                    return
                status = process.wait()
            if not over.is_set():
                log.error("the process that makes batches ended with status %d; starting it again", status)
                over.wait(INTAKE_PAUSE_S)

    thread = threading.Thread(target=keep, name="intake", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        for process in running:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def intake_environ(settings: ServeSettings, redis_url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of that process: the URL may hold a password, and command lines can be seen by everybody."""
    folders = [str(Path(__file__).resolve().parents[1]), environ.get("PYTHONPATH")]
    return {
        **environ,
        "PROMPTMILL_REDIS_URL": redis_url,
        "PROMPTMILL_FILE_LINES": str(settings.limits.file_lines),
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
    }
