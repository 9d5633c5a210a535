"""The log of a long-lived process: text for people or JSON lines for collectors, on stderr or in a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson

from jobs.batch import timestamp
from jobs.errors import RefusedError

__all__ = ["FILE_HELP", "FORMATS", "FORMAT_HELP", "JsonFormatter", "set_up_logging"]

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


def set_up_logging(
    form: str = "text",
    *,
    verbose: bool = False,
    file: Path | None = None,
    fields: Mapping[str, str] | None = None,
) -> None:
    """Send this process's log to ``file``, else to stderr, as ``text`` or ``json``; ``fields`` are in each JSON line.

    Our own loggers say what happens, others what is wrong; with ``verbose`` everything is said, by libraries too. A
    program that has set up its log already keeps it as it is.

    Raises:
        RefusedError: the file cannot be written.
    """
    try:
        if file is None:
            handler: logging.Handler = logging.StreamHandler(sys.stderr)
        else:
            handler = WatchedFileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        message = f"--log-file: {file} cannot be written: {error.strerror}; give a file in a folder of yours"
        raise RefusedError(message) from None
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    handler.setFormatter(JsonFormatter(fields) if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("promptmill").setLevel(logging.DEBUG if verbose else logging.INFO)
