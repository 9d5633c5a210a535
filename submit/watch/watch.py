"""A view that refreshes: on a full screen where stdout is a terminal, one frame after the other elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from submit.status.progress import is_terminal, terminal_width

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["REFRESH_S", "View", "present", "watch"]

REFRESH_S = 1.0


class View(Protocol):
    """Something to watch: what Redis says of it now, as plain text or drawn."""

    def look(self, *, drawn: bool) -> bool:
        """Read how it is now, with what only :meth:`draw` shows if it is ``drawn``; whether that is its end."""

    def text(self, width: int | None) -> list[str]:
        """What was read last, as plain lines of at most ``width`` columns (None: any number)."""

    def draw(self, width: int, height: int, *, unicode: bool) -> list[Text]:
        """The same for a full screen: at most ``height`` lines of at most ``width`` columns."""


def present(view: View, *, watched: bool, as_json: bool, stream: TextIO | None = None) -> None:
    """Print ``view`` to stdout, or watch it there; JSON is for programs, and never drawn."""
    stream = sys.stdout if stream is None else stream
    if watched:
        watch(view, stream, environ={"TERM": "dumb"} if as_json else os.environ)
        return
    view.look(drawn=False)
    width = terminal_width(stream) if stream.isatty() else None
    stream.write("\n".join(view.text(width)) + "\n")


def watch(
    view: View,
    stream: TextIO,
    *,
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], Any] = time.sleep,
) -> None:
    """Show ``view`` every second until it has come to its end, or the user leaves with Ctrl-C or ``q``.

    On a terminal the view has a screen of its own, and its last state stays behind in the ordinary one.
    """
    if is_terminal(stream, environ):
        from submit.watch.terminal import show

        show(view, stream, environ)
        return
    with contextlib.suppress(KeyboardInterrupt):
        done = False
        while not done:
            done = view.look(drawn=False)
            stream.write("\n".join(view.text(None)) + "\n")
            stream.flush()
            if not done:
                sleep(REFRESH_S)
