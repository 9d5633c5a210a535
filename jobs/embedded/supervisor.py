"""The process that keeps an embedded Redis running: ``python -m jobs.embedded.supervisor FOLDER [SERVER]``.

Started by the first user of a folder (:mod:`jobs.embedded.server` explains the locks), it outlives that user,
keeps the server running while users are there, and ends it after the last one. It speaks to the server by
signals only: on SIGTERM the server does what SHUTDOWN does, and a signal needs no socket, which may be gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

from jobs.embedded.server import (
    LOG,
    SERVER_LOCK,
    SUPERVISOR_LOCK,
    USERS_LOCK,
    Clock,
    Sleep,
    find_server,
    locked_within,
    open_lock,
    socket_path,
    try_lock,
)
from jobs.errors import RedisError

POLL = 1.0
GRACE = 2.0  # seconds before a supervisor may end: one that is asked for again at once should not start anew
TAKEOVER = 0.5  # seconds of trying to become the supervisor; users look at the lock, and hold it for an instant
STABLE = 10.0  # a server that ran this long and then crashed is started again at once
LONGEST_PAUSE = 30.0
SHUTDOWN_PATIENCE = 15.0  # seconds for the AOF to reach the disk; together less than a user's LOCK_PATIENCE
KILL_PATIENCE = 5.0
TICK = 0.02

log = logging.getLogger("promptmill.guardian")


def server_options(folder: Path) -> list[str]:
    """The server's command line: its own socket only, every write in the AOF, and never an eviction."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path(folder)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / LOG),
        "pidfile": str(folder / "redis.pid"),
        "daemonize": "no",
        "save": "",  # the AOF is enough
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",  # a torn last write, after a power cut, is dropped
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "64mb",
        "maxmemory-policy": "noeviction",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


class Server:
    """The one server of a folder, whoever started it: started, found again, restarted and ended."""

    def __init__(
        self,
        folder: Path,
        program: Path | None,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._folder = folder
        self._program = program
        self._clock = clock
        self._sleep = sleep
        self._lock = open_lock(folder / SERVER_LOCK)
        self._child: subprocess.Popen[bytes] | None = None
        self._started = self._last_alive = float("-inf")
        self._not_before = float("-inf")
        self._pause = 0.0

    def close(self) -> None:
        self._lock.close()

    def alive(self) -> bool:
        """Whether the server's process exists; it need not answer."""
        if self._child is not None and self._child.poll() is None:
            return True
        if not try_lock(self._lock, fcntl.LOCK_EX):
            return True
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return False

    def ensure(self) -> None:
        """Start the server if none lives, with a growing pause where it crashes again and again."""
        now = self._clock()
        if self.alive():
            self._last_alive = now
            return
        if now < self._not_before:
            return
        if not self._in_place():
            return  # the folder was removed: a new one of that name belongs to another supervisor
        if self._child is not None:
            log.warning("the server ended with status %s; starting it again", self._child.returncode)
        self._note_start(now)
        try:
            self._start()
        except (RedisError, OSError) as error:
            log.error("cannot start the server: %s", error)

    def stop(self) -> None:
        """End the server and wait until its process is gone; one that does not react is killed."""
        for number, patience in ((signal.SIGTERM, SHUTDOWN_PATIENCE), (signal.SIGKILL, KILL_PATIENCE)):
            if not self.alive():
                break
            self._signal(number)
            deadline = self._clock() + patience
            while self.alive() and self._clock() < deadline:
                self._sleep(TICK)
        else:
            log.error("the server did not end")
        if self._in_place() and not self.alive():
            socket_path(self._folder).unlink(missing_ok=True)

    def _note_start(self, now: float) -> None:
        """Set the earliest time of the next start: the pause grows with each run that was too short."""
        first = self._started == float("-inf")
        stable = self._last_alive - self._started >= STABLE
        self._pause = 0.0 if first or stable else min(max(1.0, self._pause * 2), LONGEST_PAUSE)
        self._started = self._last_alive = now
        self._not_before = now + self._pause

    def _start(self) -> None:
        program = self._program or find_server(self._folder)
        (self._folder / "redis.pid").unlink(missing_ok=True)  # so that it is never an older server's
        # Opened a second time: the lock on it lives exactly as long as the server that inherits it.
        with open_lock(self._folder / SERVER_LOCK) as inherited:
            if not try_lock(inherited, fcntl.LOCK_EX):
                return
            self._child = subprocess.Popen(
                [program, *server_options(self._folder)],
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                pass_fds=[inherited.fileno()],
                umask=0o077,
            )

    def _in_place(self) -> bool:
        """Whether the lock file is still the one in the folder."""
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), (self._folder / SERVER_LOCK).stat())
        except FileNotFoundError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
            return
        try:
            os.kill(int((self._folder / "redis.pid").read_text()), number)
        except (OSError, ValueError) as error:
            log.warning("cannot send %s to the server: %s", number.name, error)


def guard(
    users: BinaryIO,
    server: Server,
    *,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> None:
    """Keep ``server`` running until nobody else holds ``users``, then end it, holding that lock."""
    begun = clock()
    while True:
        server.ensure()
        sleep(POLL)
        if clock() - begun >= GRACE and try_lock(users, fcntl.LOCK_EX):
            break
    server.stop()


def main(arguments: list[str]) -> int:
    """Guard the folder given first, with the server program given second; 0 also if another guards it."""
    folder = Path(arguments[0])
    program = Path(arguments[1]) if len(arguments) > 1 else None
    logging.basicConfig(format="%(process)d:guardian %(asctime)s %(message)s", level=logging.INFO)
    # Closed from the inside out: whoever gets users.lock next finds guardian.lock free.
    with open_lock(folder / USERS_LOCK) as users, open_lock(folder / SUPERVISOR_LOCK) as own:
        if locked_within(TAKEOVER, own, fcntl.LOCK_EX):
            with contextlib.closing(Server(folder, program)) as server:
                guard(users, server)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
