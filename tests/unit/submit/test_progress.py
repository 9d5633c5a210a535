"""Progress as people see it: a bar on terminals, plain lines in logs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from jobs.app.units import parse_duration
from jobs.batch import Batch, Usage
from submit.status.progress import Progress, bar_text
from submit.status.rates import BatchRates
from submit.status.text import cells


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What stands on the screen: each line as it was last rewritten."""
        screen = [re.sub(r"\x1b\[\d*m", "", line) for line in self.getvalue().split("\n")]
        return [line.rpartition("\r")[2].replace("\x1b[K", "") for line in screen]


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(done: int = 0, total: int = 100, failed: int = 0, status: str = "in_progress") -> Batch:
    usage = Usage(prompt_tokens=done * 10, completion_tokens=done * 50)
    return Batch("b_1", status, total=total, completed=done - failed, failed=failed, usage=usage)


def bar(stream: io.StringIO, clock: Callable[[], float], width: int = 120, **environ: str) -> Progress:
    return Progress(stream, clock=clock, environ={"TERM": "xterm", **environ}, width=lambda _stream: width)


def test_the_bar_shows_counts_rates_and_the_time_left() -> None:
    """On a terminal one line is rewritten: share, counts, failures, tokens per second, ETA."""
    stream, clock = Terminal(), Clock()
    progress = bar(stream, clock)
    progress.update(batch(0))
    clock.now = 10.0
    progress.update(batch(40, failed=2))
    assert stream.lines() == [
        "████████████░░░░░░░░░░░░░░░░░░  40%  40/100  2 failed  prompt 40.0 tok/s  output 200 tok/s  ETA 15s"
    ]


def test_the_bar_ends_with_the_last_state_and_a_newline() -> None:
    """What is printed next starts on a line of its own."""
    stream, clock = Terminal(), Clock()
    progress = bar(stream, clock)
    progress.update(batch(0))
    clock.now = 10.0
    progress.close(batch(100, status="completed"))
    assert stream.lines()[-1] == ""
    assert stream.lines()[-2].startswith("█" * 30 + "  100%  100/100")
    assert "ETA" not in stream.lines()[-2]


def test_a_message_stands_above_the_bar() -> None:
    """A note takes the bar's line, and the bar goes on below it."""
    stream, clock = Terminal(), Clock()
    progress = bar(stream, clock)
    progress.update(batch(1))
    progress.note("the worker died")
    clock.now = 1.0
    progress.update(batch(2))
    assert [line[:15] for line in stream.lines()] == ["the worker died", "░" * 15]


@pytest.mark.parametrize("width", range(1, 140))
def test_the_bar_fits_any_terminal(width: int) -> None:
    """No width makes the line wrap; the counts stay as long as anything does."""
    text = bar_text(batch(40, failed=2), BatchRates(1.0, 40.0, 200.0), None, width)
    assert cells(text) <= width
    assert "40/100" in text or width < 6


def test_waiting_is_said_in_place_of_rates() -> None:
    """While nothing runs the line says why, and promises no time."""
    text = bar_text(batch(40), BatchRates(1.0, 40.0, 200.0), "waiting for a worker", 100)
    assert "waiting for a worker" in text
    assert "tok/s" not in text
    assert "ETA" not in text


def test_colour_is_left_out_when_asked() -> None:
    """NO_COLOR turns colours off, and nothing else."""
    coloured, plain, clock = Terminal(), Terminal(), Clock()
    bar(coloured, clock).update(batch(40, failed=2))
    bar(plain, clock, NO_COLOR="1").update(batch(40, failed=2))
    assert "\x1b[31m2 failed\x1b[0m" in coloured.getvalue()
    assert "m" not in re.findall(r"\x1b\[\d*(.)", plain.getvalue())
    assert coloured.lines() == plain.lines()


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_elsewhere_progress_is_plain_lines_now_and_then(stream: io.StringIO, term: str) -> None:
    """Pipes, files and dumb terminals get whole lines without control codes, seconds apart."""
    clock = Clock()
    progress = bar(stream, clock, TERM=term)
    for second in range(13):
        clock.now = float(second)
        progress.update(batch(second * 5, failed=1 if second else 0), "waiting for a worker" if second < 5 else None)
    done = replace(batch(100, failed=1, status="completed"), times={"started": 100.0, "completed": 120.0})
    progress.close(done)
    assert stream.getvalue().splitlines() == [
        "0 of 100 lines done; waiting for a worker",
        "25 of 100 lines done, 1 failed; prompt 50.0 tok/s, output 250 tok/s; 15s left",
        "50 of 100 lines done, 1 failed; prompt 50.0 tok/s, output 250 tok/s; 10s left",
        # What the summary says: of the whole batch, from its first line's start to its end.
        "100 of 100 lines done, 1 failed; prompt 50.0 tok/s, output 250 tok/s",
    ]


def test_the_bar_of_a_cancelled_batch_ends_where_its_lines_did() -> None:
    """Lines that were not run are said, and neither green nor counted as done."""
    screen, clock = Terminal(), Clock()
    ended = replace(batch(100, failed=61, status="cancelled"), unrun=60)
    bar(screen, clock).update(ended)
    assert "40%" in screen.lines()[0]
    assert "40/100  1 failed  60 not run" in screen.lines()[0]
    assert "\x1b[33m█" in screen.getvalue()
    assert "\x1b[32m" not in screen.getvalue()
    stream = io.StringIO()
    bar(stream, clock).update(ended)
    assert stream.getvalue() == "40 of 100 lines done, 1 failed, 60 not run\n"


def test_a_broken_stream_does_not_stop_the_work() -> None:
    """When nobody reads stderr any more, progress falls silent and raises nothing."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = bar(Broken(), Clock())
    progress.update(batch(1))
    progress.note("hello")
    progress.close(batch(2))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800), (" 5M ", 300)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """Plain seconds, units, and sums of them."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-5s", "5 minutes", "1h-30m", "1e3", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(Exception, match="is not a duration; write 90s"):
        parse_duration(text)
