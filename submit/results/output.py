"""The files that results go to: whole or not at all, and on stdout as they come."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from jobs.errors import PromptmillError, RefusedError
from submit.results.destination import Destination
from submit.results.formats import Render
from submit.results.read import StoredRecord
from submit.results.summary import Tally

MISTAKES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS})
"""System errors that mean the path was a bad choice; others (a full disk) are nobody's mistake."""


def writable(path: Path) -> None:
    """Make sure that ``path`` can be written, before any work is done for it.

    Raises:
        RefusedError: it cannot; the message says why.
    """
    if not _is_special(Path(os.path.realpath(path))):
        probe = _File(path)
        probe.open()
        probe.abandon()


class Output:
    """Where records go: OUT, and a file for the errors where the format keeps them apart.

    Nothing shows in the files before the first :meth:`flush`, which replaces what was there in one step; from then on
    they grow. As a context manager it is flushed and closed at the end of the block; after an error, files that were
    not shown yet are dropped.
    """

    def __init__(
        self, destination: Destination, render: Render, stdout: BinaryIO | None = None, *, head: bytes = b""
    ) -> None:
        self.tally = Tally(destination)
        self._render = render
        out, errors = destination.out, destination.errors_file
        self._results = _File(Path("stdout"), stdout or sys.stdout.buffer) if out is None else _File(out)
        self._failures = None if errors is None else _File(errors)
        self._cleared = False
        self._results.open()
        if head:
            self._results.write(head)

    def put(self, record: StoredRecord) -> None:
        """Write one record to where it belongs, and count it."""
        target = self._results if record.ok or self._failures is None else self._failures
        if data := self._render(record):
            target.write(data)
        self.tally.add(record)

    def flush(self) -> None:
        """Make everything put so far visible in the files.

        A file of errors that an earlier call left behind goes away as soon as it is out of date.
        """
        self._results.flush()
        if self._failures is not None:
            self._failures.flush()
            if not self._failures.opened and not self._cleared:
                self._failures.remove()
            self._cleared = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        files = [file for file in (self._results, self._failures) if file is not None]
        try:
            if kind is None:
                self.flush()
                for file in files:
                    file.close()
        finally:
            for file in files:
                file.abandon()


class _File:
    """A file that is written beside its place, moved there by the first flush, and then grows in place; or a ``stream``
    that is open already, and stays so."""

    def __init__(self, path: Path, stream: BinaryIO | None = None) -> None:
        self.path = path
        self._real = Path(os.path.realpath(path))  # a link stays a link
        self._file = self._stream = stream
        self._hidden: Path | None = None

    @property
    def opened(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        if self._file is not None:
            return
        with explained(self.path):
            if _is_special(self._real):
                self._file = self._real.open("wb")
                return
            if self._real.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._hidden = _beside(self._real)
            self._file = self._hidden.open("wb")

    def write(self, data: bytes) -> None:
        self.open()
        assert self._file is not None
        with explained(self.path):
            self._file.write(data)

    def flush(self) -> None:
        if self._file is None:
            return
        with explained(self.path):
            self._file.flush()
            if self._hidden is not None:
                os.fsync(self._file.fileno())
                with contextlib.suppress(FileNotFoundError):
                    self._hidden.chmod(stat.S_IMODE(self._real.stat().st_mode))
                self._hidden.replace(self._real)
                self._hidden = None

    def close(self) -> None:
        if self._file is not None and self._file is not self._stream:
            with explained(self.path):
                self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(PromptmillError, BrokenPipeError):
            self.close()
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
            self._hidden = None

    def remove(self) -> None:
        if self._real.is_file():
            with explained(self.path):
                self._real.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_special(path: Path) -> bool:
    """A device or pipe: it is written as it is, never replaced by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's errors about ``path`` into one that says what to do."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in MISTAKES:
            raise RefusedError(f"{path} cannot be written: {error.strerror}; give another path") from None
        raise PromptmillError(
            f"{path} cannot be written: {error.strerror}; nothing is lost: "
            "free some space and run the same command again"
        ) from None
