"""A view that refreshes: in place on a terminal, one after the other elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from submit.progress import is_terminal
from submit.text import clip

__all__ = ["REFRESH_S", "watch"]

REFRESH_S = 1.0
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

Frame = Callable[[int | None], tuple[list[str], bool]]
"""Given the columns at hand (None: any number) makes the lines to show, and says whether they are the last."""


def watch(
    frame: Frame,
    stream: TextIO,
    *,
    keep_end: bool = False,
    environ: Mapping[str, str] = os.environ,
    size: Callable[[TextIO], tuple[int, int]] | None = None,
    sleep: Callable[[float], Any] = time.sleep,
) -> None:
    """Show ``frame`` every second until it says it is done, or the user leaves with Ctrl-C.

    On a terminal the view has a screen of its own, and its last state stays behind in the ordinary one.
    Where that screen is too low, the last lines are left out; with ``keep_end`` those after the first.
    """
    if is_terminal(stream, environ):
        _in_place(frame, stream, keep_end, size or _size, sleep)
        return
    with contextlib.suppress(KeyboardInterrupt):
        done = False
        while not done:
            lines, done = frame(None)
            stream.write("\n".join(lines) + "\n")
            stream.flush()
            if not done:
                sleep(REFRESH_S)


def _in_place(
    frame: Frame,
    stream: TextIO,
    keep_end: bool,
    size: Callable[[TextIO], tuple[int, int]],
    sleep: Callable[[float], Any],
) -> None:
    lines: list[str] = []
    with contextlib.suppress(KeyboardInterrupt), _own_screen(stream):
        done = False
        while not done:
            columns, rows = size(stream)
            lines, done = frame(columns)
            # The last row stays empty: a newline there would scroll the first one away.
            shown = _cropped(lines, rows - 1, keep_end)
            body = "".join(f"{clip(line, columns)}{REST_OF_LINE}\r\n" for line in shown)
            stream.write(HOME + body + REST_OF_SCREEN)
            stream.flush()
            if not done:
                sleep(REFRESH_S)
    stream.write("".join(f"{line}\n" for line in lines))
    stream.flush()


def _cropped(lines: list[str], rows: int, keep_end: bool) -> list[str]:
    if len(lines) <= rows or not keep_end:
        return lines[:rows]
    return [lines[0], *lines[len(lines) - rows + 1 :]]


@contextlib.contextmanager
def _own_screen(stream: TextIO) -> Iterator[None]:
    def leave(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    # A terminal left on the other screen without a cursor is no good to anybody: SIGTERM cleans up as well.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    stream.write(ENTER)
    try:
        yield
    finally:
        stream.write(LEAVE)
        stream.flush()
        if main:
            signal.signal(signal.SIGTERM, before)


def _size(stream: TextIO) -> tuple[int, int]:
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return found.columns or 80, found.lines or 24
