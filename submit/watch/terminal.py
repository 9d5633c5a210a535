"""The full screen that views are drawn on: once a second, only the lines that changed, and given back at the end.

Ctrl-C, SIGTERM, SIGHUP and ``q`` leave; Ctrl-Z stops as usual, with the ordinary screen in front; a terminal of
another size is drawn on anew at once. Redis may go away meanwhile: the last state stays, and the screen says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from types import FrameType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.text import Text

from submit.status.progress import has_unicode, terminal_size
from submit.status.table import text

REFRESH_S = 1.0
KEYS_S = 0.1
"""Keys, another size, and the wish to stop are looked for this often."""
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[0m\x1b[?25h\x1b[?1049l"
ERASE_SCREEN, ERASE_LINE = "\x1b[2J", "\x1b[K"
SMALLEST = (20, 4)
QUIT_KEYS = b"qQ\x03"
LEAVING = "q or Ctrl-C leaves"


class View(Protocol):
    """What was read of Redis at one moment, to be shown."""

    @property
    def done(self) -> bool:
        """Whether nothing of it will change any more."""

    def as_json(self) -> Any:
        """All of it, for programs."""

    def text(self, width: int | None) -> list[str]:
        """Plain lines of at most ``width`` columns (None: any number)."""

    def draw(self, width: int, height: int, *, unicode: bool) -> list[Text]:
        """The same for a full screen: at most ``height`` lines of at most ``width`` columns."""


class Reader(Protocol):
    """Something to watch in Redis."""

    def read(self, *, drawn: bool = False) -> View:
        """How it is now, with what only :meth:`View.draw` shows if it is to be ``drawn``."""


class Painter:
    """Makes of the lines to show what must be written for them to be on the screen, where other lines stood before."""

    def __init__(self, *, colour: bool = True) -> None:
        self._console = Console(
            file=io.StringIO(),
            force_terminal=True,
            # Sixteen colours, by their names: every terminal has them, in its own tones.
            color_system="standard" if colour else None,
            legacy_windows=False,
            markup=False,
            emoji=False,
            highlight=False,
            width=10_000,
            _environ={},
        )
        self._shown: list[Text] = []
        self._size = (0, 0)

    def paint(self, lines: Sequence[Text], size: tuple[int, int]) -> str:
        """What to write so that ``lines`` are on a screen of ``size`` (columns, rows), the others empty."""
        written = []
        if size != self._size:
            written.append(ERASE_SCREEN)
            self._shown, self._size = [], size
        shown = list(lines[: size[1]])
        for row, (line, before) in enumerate(zip_longest(shown, self._shown, fillvalue=text("")), 1):
            if line != before:
                written.append(f"\x1b[{row};1H{self._ansi(line)}{ERASE_LINE}")
        self._shown = shown
        return "".join(written)

    def _ansi(self, line: Text) -> str:
        with self._console.capture() as capture:
            self._console.print(line, end="", soft_wrap=True)
        return capture.get()


def watch_on_screen(
    reader: Reader,
    stream: TextIO,
    environ: Mapping[str, str] = os.environ,
    *,
    keys: TextIO | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Draw what ``reader`` reads on ``stream``, a terminal, until it is done or the user leaves; its last state stays
    behind as plain lines. ``keys`` is what the user types on (None: stdin).

    Raises:
        whatever the reader raises, once the terminal is as it was; that Redis is away only at the first time.
    """
    view = reader.read(drawn=True)
    screen = _Screen(stream, sys.stdin if keys is None else keys)
    colour = not environ.get("NO_COLOR")
    painter = Painter(colour=colour)
    unicode = has_unicode(stream)
    away_since: float | None = None
    with contextlib.suppress(KeyboardInterrupt, _TerminalGoneError), screen.taken():
        while not view.done:
            columns, rows = size = terminal_size(stream)
            # The last column stays free: some terminals wrap as soon as it is written.
            width, height = max(columns - 1, SMALLEST[0]), max(rows - 1, SMALLEST[1] - 1)
            lines = view.draw(width, height, unicode=unicode)
            lines += [text("")] * (height - len(lines))
            lines.append(_footer(away_since, width))
            screen.write(painter.paint(lines, size))
            event = screen.wait(REFRESH_S, size)
            if event == "leave":
                break
            if event == "stopped":
                painter = Painter(colour=colour)  # which draws everything
            if event != "resized":
                fresh = _read(reader)
                away_since = (away_since or clock()) if fresh is None else None
                view = view if fresh is None else fresh
    with contextlib.suppress(_TerminalGoneError):
        screen.write("".join(f"{line}\n" for line in view.text(terminal_size(stream)[0])))


def _read(reader: Reader) -> View | None:
    """What is to be shown now; None while Redis is away."""
    from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError

    try:
        return reader.read(drawn=True)
    except AuthenticationError:
        raise  # which is a ConnectionError, and does not pass
    except (ConnectionError, TimeoutError):
        return None


def _footer(away_since: float | None, width: int) -> Text:
    if away_since is None:
        footer = text(LEAVING, "bright_black")
    else:
        since = datetime.fromtimestamp(away_since).strftime("%H:%M:%S")
        footer = text(f"Redis is away since {since}; waiting for it to come back", "bold red")
    footer.truncate(width, overflow="ellipsis")
    return footer


class _TerminalGoneError(Exception):
    """The window was closed, or the connection was lost: there is nobody to show anything to."""


class _Screen:
    """A terminal while a view has it: its other screen, keys without a return, and the signals that concern it."""

    def __init__(self, stream: TextIO, keys: TextIO) -> None:
        self._stream = stream
        self._keys = keys
        self._keys_ended = False
        self._stop_asked = False
        self._settings: list[Any] | None = None

    def write(self, codes: str) -> None:
        """Write, with question marks for what the terminal's encoding has no letters for.

        Raises:
            _TerminalGoneError: it was closed.
        """
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(codes.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except OSError as error:
            # What it did not take waits in the stream, and Python would end with status 120 for it.
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self._stream.fileno())
            os.close(nobody)
            raise _TerminalGoneError from error

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Have the terminal; SIGTERM and SIGHUP end the block as Ctrl-C does. Call from the main thread."""
        before = {
            number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)
        }
        before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._ask_to_stop)
        try:
            self._enter()
            yield
        finally:
            self._leave()
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, seconds: float, size: tuple[int, int]) -> str:
        """Until something happens, or so long: ``leave``, ``resized`` (to another than this ``size``), ``stopped`` (and
        gone on), or ``time``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._stop_asked:
                self._stop()
                return "stopped"
            if terminal_size(self._stream) != size:
                return "resized"
            if any(key in QUIT_KEYS for key in self._typed(KEYS_S)):
                return "leave"
        return "time"

    def _typed(self, seconds: float) -> bytes:
        """The keys that are typed, waited for so long at most."""
        if self._settings is None or self._keys_ended:
            time.sleep(seconds)
            return b""
        if not select.select([self._keys], [], [], seconds)[0]:
            return b""
        keys = b""
        with contextlib.suppress(OSError):  # of a terminal that is gone
            keys = os.read(self._keys.fileno(), 64)
        self._keys_ended = not keys
        return keys

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop_asked = True

    def _enter(self) -> None:
        self._settings = self._unechoed()
        self.write(ENTER)

    def _leave(self) -> None:
        with contextlib.suppress(_TerminalGoneError):
            self.write(LEAVE)
        if self._settings is not None:
            with contextlib.suppress(termios.error):  # of a terminal that is gone
                termios.tcsetattr(self._keys.fileno(), termios.TCSADRAIN, self._settings)
            self._settings = None

    def _stop(self) -> None:
        """Ctrl-Z: stop with the ordinary screen in front, and take the other one again in the foreground."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        while not _in_foreground(self._stream.fileno()):
            os.kill(os.getpid(), signal.SIGSTOP)
        self._stop_asked = False
        self._enter()

    def _unechoed(self) -> list[Any] | None:
        """Have keys at once and unseen; the settings to go back to, None where there are no keys to be had."""
        try:
            descriptor = self._keys.fileno()
            # In the background, changing the terminal would stop the process.
            if not os.isatty(descriptor) or not _in_foreground(descriptor):
                return None
            settings = termios.tcgetattr(descriptor)
            tty.setcbreak(descriptor, termios.TCSADRAIN)
        except (OSError, ValueError, termios.error):
            return None
        return settings


def _in_foreground(descriptor: int) -> bool:
    """Whether this process may use the terminal; a terminal that is not its own, it may."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return True
