"""The log of a long-lived process: text for people or JSON lines for collectors, on stderr or in a file."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from jobs.batch import timestamp
from jobs.errors import RefusedError

FORMATS = ("text", "json")
FORMAT_HELP = "Log lines for people, or one JSON object per line for a log collector."
FILE_HELP = "File for the log, in place of stderr; it is opened anew when newsyslog or logrotate has moved it away."
"""Help of the flags --log-format and --log-file, which both sides' commands have."""

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``logger``, ``message``, ``pid``, the process's ``fields``, what a
    call gave as ``extra`` (its ``action`` above all), and ``exception`` where there is one."""

    def __init__(self, fields: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._fields = {"pid": os.getpid(), **(fields or {})}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": _text(record.getMessage()),
            **self._fields,
        }
        for name, value in vars(record).items():
            if name not in _OF_EVERY_RECORD:
                line.setdefault(name, _plain(value))
        if record.exc_info:
            line["exception"] = _text(self.formatException(record.exc_info))
        return orjson.dumps(line).decode()


def _text(text: str) -> str:
    """What JSON cannot hold is escaped: half a surrogate pair, as in a path that is no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    """Numbers and the like as they are, anything else as text."""
    if value is None or isinstance(value, (bool, float)):
        return value
    return value if isinstance(value, int) and -(2**63) <= value < 2**64 else _text(str(value))


class _LogFile(logging.FileHandler):
    """A log in a file that others may move away; it is opened anew, and made where this process may."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._followers: tuple[int, ...] = ()

    def emit(self, record: logging.LogRecord) -> None:
        self._look()
        super().emit(record)

    def _look(self) -> None:
        """Open the file anew if it is no longer the one that is written to. Who moved it may not have made the new one
        yet, in a folder where this process makes none: until then the old one goes on."""
        old = self.stream
        if old is None:
            return
        try:
            if os.path.samestat(Path(self.baseFilename).stat(), os.fstat(old.fileno())):
                return
        except OSError:
            pass  # it is gone
        try:
            self.stream = self._open()
        except OSError:
            return
        self._lead()
        old.close()

    def take_stderr(self) -> None:
        """From now on what goes to stderr, a library's warning or a crash, goes here, if stderr is a file: launchd's
        is opened once, and would grow for as long as the process runs. So does stdout, if it is the same file."""
        error = os.fstat(2)
        if stat.S_ISREG(error.st_mode):
            self._followers = (2, 1) if os.path.samestat(error, os.fstat(1)) else (2,)
        self._lead()

    def _lead(self) -> None:
        if self.stream is not None:
            for follower in self._followers:
                os.dup2(self.stream.fileno(), follower)


def set_up_logging(
    form: str = "text",
    *,
    verbose: bool = False,
    file: Path | None = None,
    fields: Mapping[str, str] | None = None,
) -> None:
    """Send this process's log to ``file``, else to stderr, as ``text`` or ``json``; ``fields`` are in each JSON line.

    Our own loggers say what happens, others what is wrong; with ``verbose`` everything is said, by libraries too. A
    program that has set up its log already keeps it as it is. With ``file`` all else that is written to stderr goes
    there too, if stderr is a file, as a daemon's is.

    Raises:
        RefusedError: the file cannot be written.
    """
    try:
        if file is None:
            handler: logging.Handler = logging.StreamHandler(sys.stderr)
        else:
            handler = _LogFile(file)
    except OSError as error:
        message = f"--log-file: {file} cannot be written: {error.strerror}; give a file in a folder of yours"
        raise RefusedError(message) from None
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    handler.setFormatter(JsonFormatter(fields) if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.WARNING)
    if isinstance(handler, _LogFile) and handler in logging.getLogger().handlers:
        handler.take_stderr()
    logging.getLogger("promptmill").setLevel(logging.DEBUG if verbose else logging.INFO)
