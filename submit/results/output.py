"""The files that results go to: whole or not at all, and on stdout as they come."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jobs.errors import PromptmillError, RefusedError
from submit.results.formats import Format
from submit.results.read import StoredRecord

__all__ = ["Output", "check_paths", "default_errors", "errors_written", "writable"]

STDOUT = Path("-")
MISTAKES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS})
"""System errors that mean the path was a bad choice; others (a full disk) are nobody's mistake."""


def default_errors(out: Path) -> Path:
    """Where the records of failed lines go: ``results.jsonl`` -> ``results.errors.jsonl``."""
    return out.with_name(f"{out.stem}.errors{out.suffix}")


def errors_written(out: Path | None, errors: Path | None, fmt: str, failed: int) -> Path | None:
    """The file that the records of ``failed`` lines are in; None where there is none."""
    if not failed or fmt != "native":
        return None
    beside = None if out is None or out == STDOUT else default_errors(out)
    return errors or beside


def writable(path: Path) -> None:
    """Make sure that ``path`` can be written, before any work is done for it.

    Raises:
        RefusedError: it cannot; the message says why.
    """
    with _explained(path):
        real = Path(os.path.realpath(path))
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(real):
            return
        probe = _beside(real)
        probe.open("wb").close()
        probe.unlink()


def check_paths(out: Path | None, errors: Path | None, shape: str, *, apart: bool) -> None:
    """Make sure that the errors have a place of their own where the format keeps them apart, and none elsewhere.

    Raises:
        RefusedError: they have not.
    """
    if errors is not None and not apart:
        raise RefusedError(f"--errors goes with --format native: '{shape}' has no file of errors")
    if errors is not None and out is not None and errors.resolve() == out.resolve():
        raise RefusedError(f"OUT and the file of errors are both {out}; give --errors another path")


class Output:
    """Where records go: OUT (None or ``-``: stdout), and a file for the errors where the format keeps them apart.

    Nothing shows in the files before the first :meth:`flush`, which replaces what was there in one step;
    from then on they grow. ``errors`` None means beside OUT; without OUT, error records go to stdout too.
    """

    def __init__(self, out: Path | None, errors: Path | None, shape: Format, stdout: BinaryIO | None = None) -> None:
        self.out = None if out in (None, STDOUT) else out
        check_paths(self.out, errors, shape.name, apart=shape.errors_apart)
        self.errors = errors if self.out is None or not shape.errors_apart else errors or default_errors(self.out)
        self.written = 0
        self.failed = 0
        self._cleared = False
        self._format = shape
        self._results = _File(Path("stdout"), stdout or sys.stdout.buffer) if self.out is None else _File(self.out)
        self._failures = None if self.errors is None else _File(self.errors)
        self._results.open()

    def put(self, record: StoredRecord) -> None:
        """Write one record to where it belongs."""
        self.written += 1
        target = self._results
        if not record.ok:
            self.failed += 1
            if self._failures is not None:
                target = self._failures
        data = self._format.render(record)
        if data:
            target.write(data)

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

    def close(self) -> None:
        """Flush and end."""
        self.flush()
        self._results.close()
        if self._failures is not None:
            self._failures.close()

    def abandon(self) -> None:
        """End without a last flush: files not yet shown are forgotten."""
        for target in (self._results, self._failures):
            if target is not None:
                target.abandon()


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
        with _explained(self.path):
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
        with _explained(self.path):
            self._file.write(data)

    def flush(self) -> None:
        if self._file is None:
            return
        with _explained(self.path):
            self._file.flush()
            if self._hidden is not None:
                os.fsync(self._file.fileno())
                with contextlib.suppress(FileNotFoundError):
                    self._hidden.chmod(stat.S_IMODE(self._real.stat().st_mode))
                self._hidden.replace(self._real)
                self._hidden = None

    def close(self) -> None:
        if self._file is not None and self._file is not self._stream:
            with _explained(self.path):
                self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(PromptmillError, BrokenPipeError):
            self.close()
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
            self._hidden = None

    def remove(self) -> None:
        if self._real.is_file():
            with _explained(self.path):
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
def _explained(path: Path) -> Iterator[None]:
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
