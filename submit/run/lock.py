"""What a run needs around its work: a lock on its OUT, a copy of standard input, and the signals that end it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.embedded.server import open_lock, private_folder, try_lock
from jobs.errors import PromptmillError, RefusedError


def identity_of(out: Path) -> str:
    """Names OUT in Redis and among the files of runs, by its real absolute path."""
    return hashlib.blake2b(os.fsencode(os.path.realpath(out)), digest_size=16).hexdigest()


def runs_folder(data: Path) -> Path:
    """Where runs keep what is theirs, in the data folder; both are for their user alone."""
    folder = data / "runs"
    try:
        private_folder(data)
        private_folder(folder)
    except OSError as error:
        raise RefusedError(
            f"{folder} cannot be made: {error.strerror}; set PROMPTMILL_DATA_DIR to a folder of yours"
        ) from None
    return folder


@contextlib.contextmanager
def locked(path: Path, out: Path) -> Iterator[None]:
    """Lock OUT for this process. The kernel releases the lock however the process ends."""
    with open_lock(path) as lock:
        if not try_lock(lock, fcntl.LOCK_EX):
            raise RefusedError(f"another `promptmill run` is writing {out}; wait for it, or give another -o")
        yield


@contextlib.contextmanager
def readable_twice(source: str, copy: Path) -> Iterator[str]:
    """A path to the prompts that can be read twice: standard input is copied into ``copy``."""
    if source != "-":
        yield source
        return
    try:
        try:
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise PromptmillError(f"standard input cannot be kept in {copy}: {error.strerror}") from None
        yield str(copy)
    finally:
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a terminal that goes away end the run as Ctrl-C does; what is ignored (nohup) stays ignored."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
