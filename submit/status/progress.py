"""Progress for people, on stderr: a bar rewritten in place on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from jobs.batch import Batch
from submit.status.rates import BatchRates, Window, over_all_its_time
from submit.status.text import cells, clip, duration, plural, rate

PLAIN_S = 5.0
LIVE_S = 0.1
NARROWEST_BAR, WIDEST_BAR = 8, 30
DEFAULT_SIZE = (80, 24)
GREEN, YELLOW, RED, RESET = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


def is_terminal(stream: TextIO | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``stream`` is a terminal that can rewrite a line."""
    return stream is not None and not stream.closed and stream.isatty() and environ.get("TERM") != "dumb"


def has_unicode(stream: TextIO) -> bool:
    """Whether all letters and blocks can be written to ``stream``."""
    return (getattr(stream, "encoding", None) or "").lower().startswith("utf")


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of the terminal behind ``stream``."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return DEFAULT_SIZE
    return found.columns or DEFAULT_SIZE[0], found.lines or DEFAULT_SIZE[1]


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal behind ``stream``."""
    return terminal_size(stream)[0]


class Progress:
    """Shows a batch's progress at each update; nothing more is written to a stream that broke."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] = os.environ,
        width: Callable[[TextIO], int] = terminal_width,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._width = width
        self._live = is_terminal(self._stream, environ)
        self._colour = self._live and not environ.get("NO_COLOR")
        self._window = Window()
        self._shown_at: float | None = None
        self._shown = ""
        self._broken = False

    def update(self, batch: Batch, waiting: str | None = None) -> None:
        """Take in the batch as it is now; ``waiting`` says why nothing happens, where nothing does."""
        now = self._clock()
        rates = self._window.add(now, batch)
        if self._shown_at is None or now - self._shown_at >= (LIVE_S if self._live else PLAIN_S):
            self._show(batch, rates, waiting)
            self._shown_at = now

    def note(self, text: str) -> None:
        """Print a message of its own line above the progress."""
        self._write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        self._shown = ""

    def close(self, batch: Batch | None = None) -> None:
        """End with the batch's last state; without one, leave the line as it is."""
        if batch is not None:
            self._show(batch, over_all_its_time(batch) if batch.done else self._window.add(self._clock(), batch), None)
        if self._live and self._shown:
            self._write("\n")
        self._shown = ""

    def _show(self, batch: Batch, rates: BatchRates, waiting: str | None) -> None:
        if self._live:
            # The last column stays free: some terminals wrap as soon as it is written.
            width, unicode = self._width(self._stream) - 1, has_unicode(self._stream)
            self._shown = bar_text(batch, rates, waiting, width, unicode=unicode, colour=self._colour)
            self._write(f"\r{self._shown}\x1b[K")
        elif (line := plain_text(batch, rates, waiting)) != self._shown:
            self._write(f"{line}\n")
            self._shown = line

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads stderr any more (a closed terminal): the work goes on without it.
            self._broken = True


def plain_text(batch: Batch, rates: BatchRates, waiting: str | None) -> str:
    """One line for logs."""
    text = f"{batch.ran:,} of {plural(batch.total, 'line')} done"
    if lost := batch.failed_running:
        text += f", {lost:,} failed"
    if batch.unrun:
        text += f", {batch.unrun:,} not run"
    if waiting:
        return f"{text}; {waiting}"
    if rates.completion_tokens is not None:
        read = "" if rates.prompt_tokens is None else f"prompt {rate(rates.prompt_tokens)} tok/s, "
        text += f"; {read}output {rate(rates.completion_tokens)} tok/s"
        if rates.scored_tokens:
            text += f", scored {rate(rates.scored_tokens)} tok/s"
    left = rates.eta(batch)
    return f"{text}; {duration(left)} left" if left else text


def bar_text(
    batch: Batch, rates: BatchRates, waiting: str | None, width: int, *, unicode: bool = True, colour: bool = False
) -> str:
    """The bar's line in at most ``width`` columns: what matters least is left out first."""
    run, lost = batch.ran, batch.failed_running
    share = run / batch.total if batch.total else 1.0
    counts = f"{run:,}/{batch.total:,}"
    failed = f"{lost:,} failed" if lost else ""
    eta = rates.eta(batch)
    # In the order in which they are shown; the number says what is given up first.
    parts = [
        (5, f"{int(share * 100)}%"),
        (0, counts),
        (2, failed),
        (1, f"{batch.unrun:,} not run" if batch.unrun else ""),
        (1, waiting or ""),
        (4, "" if waiting or rates.prompt_tokens is None else f"prompt {rate(rates.prompt_tokens)} tok/s"),
        (3, "" if waiting or rates.completion_tokens is None else f"output {rate(rates.completion_tokens)} tok/s"),
        (4, "" if waiting or not rates.scored_tokens else f"scored {rate(rates.scored_tokens)} tok/s"),
        (1, f"ETA {duration(eta)}" if eta is not None and not waiting else ""),
    ]
    shown = [(rank, text) for rank, text in parts if text]
    while len(shown) > 1 and _width(shown) > width:
        shown.remove(max(shown))
    text = clip("  ".join(text for _, text in shown), width)
    if colour and failed:
        text = text.replace(failed, f"{RED}{failed}{RESET}", 1)
    room = min(width - _width(shown) - 2, WIDEST_BAR)
    painted = "" if not colour else YELLOW if batch.ended else GREEN
    return f"{_bar(share, room, unicode=unicode, colour=painted)}  {text}" if room >= NARROWEST_BAR else text


def _width(parts: list[tuple[int, str]]) -> int:
    return sum(cells(text) for _, text in parts) + 2 * (len(parts) - 1)


def _bar(share: float, width: int, *, unicode: bool, colour: str) -> str:
    full, empty = ("█", "░") if unicode else ("#", "-")
    done = int(share * width)
    painted = f"{colour}{full * done}{RESET}" if colour and done else full * done
    return painted + empty * (width - done)
