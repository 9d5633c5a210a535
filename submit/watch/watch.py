"""What a command shows of the pool: printed once, or every second until its end, on a full screen where stdout is a
terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import orjson

from submit.status.progress import is_terminal, terminal_width

if TYPE_CHECKING:
    from submit.watch.terminal import Reader


def present(reader: Reader, *, watched: bool, as_json: bool, stream: TextIO | None = None) -> None:
    """Print what ``reader`` reads to stdout, or watch it there; JSON is for programs, and never drawn."""
    stream = sys.stdout if stream is None else stream
    if watched:
        watch(reader, stream, as_json=as_json)
        return
    view = reader.read()
    width = terminal_width(stream) if stream.isatty() else None
    _write(stream, [orjson.dumps(view.as_json()).decode()] if as_json else view.text(width))


def watch(
    reader: Reader,
    stream: TextIO,
    *,
    as_json: bool = False,
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], Any] = time.sleep,
) -> None:
    """Show every second what ``reader`` reads until it has come to its end, or the user leaves with Ctrl-C or ``q``.

    On a terminal the view has a screen of its own, and its last state stays behind in the ordinary one.
    """
    from submit.watch.terminal import REFRESH_S, watch_on_screen

    if is_terminal(stream, environ) and not as_json:
        watch_on_screen(reader, stream, environ)
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            view = reader.read()
            _write(stream, [orjson.dumps(view.as_json()).decode()] if as_json else view.text(None))
            if view.done:
                return
            sleep(REFRESH_S)


def _write(stream: TextIO, lines: list[str]) -> None:
    stream.write("\n".join(lines) + "\n")
    stream.flush()
