"""`--watch` on a real terminal: a pseudo-terminal with the command line as its process."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import orjson
import pytest

from jobs.store.store import Store
from tests.pool import make_batch, prompts, publish, work
from tests.servers import Server
from tests.waiting import until

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
DEADLINE_S = 30.0


class Terminal:
    """A terminal of a size with ``promptmill ARGUMENTS`` on it."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **environ: str) -> None:
        self.screen, inner = pty.openpty()
        self._size(inner, columns, rows)
        self.settings = termios.tcgetattr(inner)
        self.inner = inner
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "submit.cli", *arguments],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environ},
            preexec_fn=self._foreground,
        )  # fmt: skip

    def _foreground(self) -> None:
        """In the child: this is its terminal, as a shell would make it."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _size(self, descriptor: int, columns: int, rows: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self._size(self.screen, columns, rows)

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def read(self) -> str:
        """Everything that was written so far."""
        while select.select([self.screen], [], [], 0.05)[0]:
            try:
                found = os.read(self.screen, 1 << 16)
            except OSError:  # Linux' way to say that the other end is closed
                break
            if not found:
                break
            self.output += found.decode(errors="replace")
        return self.output

    def until(self, text: str, after: int = 0) -> str:
        """What was written, once ``text`` is in it behind place ``after``."""
        return until(lambda: self.read() if text in self.read()[after:] else "", f"{text!r} is shown")

    def ended(self) -> int:
        """The exit status, with all output read."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        self.read()
        return self.process.wait(1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self.inner)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[Open]:
    """Opens terminals; all are closed at the end of the test."""
    opened: list[Terminal] = []

    def open_one(*arguments: str, **options: object) -> Terminal:
        opened.append(Terminal(*arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def outside(output: str) -> str:
    """What stays in the ordinary screen."""
    before, _, rest = output.partition(ENTER)
    return before + rest.rpartition(LEAVE)[2]


@pytest.mark.parametrize("arguments", [["status", "--watch"], ["workers", "--watch"]])
@pytest.mark.parametrize("how", ["q", "\x03", "SIGTERM", "SIGHUP"])
def test_leaving_gives_the_terminal_back(
    arguments: list[str], how: str, store: Store, server_url: str, terminal: Open
) -> None:
    """q, Ctrl-C, SIGTERM and SIGHUP: status 0, the ordinary screen, the cursor, and keys that echo again."""
    publish(store, "mini.1", queues=[])
    made = terminal(*arguments, "--redis", server_url)
    made.until("1 worker: 1 idle")
    made.until("q or Ctrl-C leaves")
    assert not termios.tcgetattr(made.inner)[3] & termios.ECHO
    if how.startswith("SIG"):
        made.process.send_signal(getattr(signal, how))
    else:
        made.type(how)
    assert made.ended() == 0
    assert made.output.count(ENTER) == made.output.count(LEAVE) == 1
    assert made.output.index(ENTER) < made.output.index(LEAVE)
    assert termios.tcgetattr(made.inner) == made.settings
    assert "Traceback" not in made.output


def test_a_view_follows_what_happens_and_stays_behind_at_the_end(store: Store, server_url: str, terminal: Open) -> None:
    """Progress is drawn as it is made, only what changed is written, and a batch that is done leaves its facts."""
    batch = make_batch(store, prompts(4), name="nightly")
    made = terminal("status", "nightly", "--watch", "--redis", server_url)
    made.until("0 of 4 lines")
    made.until("waiting: no worker serves pocket")
    before = len(made.read())
    work(store, batch, only=[0, 1])
    made.until("2 of 4 lines", before)
    assert "defaults" not in made.output[before:]  # what stays the same is not written again
    work(store, batch)
    assert made.ended() == 0
    assert made.output.count(ENTER) == made.output.count(LEAVE) == 1
    assert "4 of 4 done" in outside(made.output)


def test_another_size_is_drawn_on_at_once(store: Store, server_url: str, terminal: Open) -> None:
    """The view is made for the new size, without waiting for the next second."""
    for number in range(30):
        make_batch(store, prompts(1), name=f"batch-{number}")
    made = terminal("status", "--watch", "--redis", server_url)
    made.until("... and")
    before = len(made.read())
    made.resize(120, 40)
    made.until("\x1b[40;1H", before)
    shown = made.until("batch-29", before)[before:]
    assert shown.startswith("\x1b[2J") or "\x1b[2J" in shown
    made.type("q")
    assert made.ended() == 0


def test_ctrl_z_stops_in_the_ordinary_screen_and_goes_on(store: Store, server_url: str, terminal: Open) -> None:
    """The shell is to have its screen and its keys; afterwards all is drawn again."""
    publish(store, "mini.1", queues=[])
    made = terminal("workers", "--watch", "--redis", server_url)
    made.until("q or Ctrl-C leaves")
    made.type("\x1a")
    _, status = os.waitpid(made.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert made.read().endswith(LEAVE)
    assert termios.tcgetattr(made.inner) == made.settings
    before = len(made.output)
    made.process.send_signal(signal.SIGCONT)
    made.until(ENTER, before)
    made.until("mini.1", before)
    made.type("q")
    assert made.ended() == 0
    assert made.output.count(ENTER) == made.output.count(LEAVE) == 2


def test_a_view_outlives_an_outage(server: Server, terminal: Open) -> None:
    """While Redis is away the last state stays, and the screen says so; then it goes on."""
    with server.client() as connection:
        make_batch(Store(connection), prompts(3), name="nightly")
    made = terminal("status", "--watch", "--redis", server.url)
    made.until("nightly")
    server.stop()
    made.until("Redis is away since")
    before = len(made.output)
    server.start()
    made.until("q or Ctrl-C leaves", before)
    made.type("q")
    assert made.ended() == 0
    assert "waiting" in outside(made.output)


def test_a_closed_window_ends_the_view(store: Store, server_url: str, terminal: Open) -> None:
    """As when the connection of ssh is lost: the process goes, and does not watch for nobody."""
    made = terminal("status", "--watch", "--redis", server_url)
    made.until("q or Ctrl-C leaves")
    os.close(made.inner)
    os.close(made.screen)
    made.screen, made.inner = os.pipe()  # something to close at the end
    assert made.process.wait(DEADLINE_S) == 0


def test_letters_that_the_terminal_does_not_have_are_question_marks(
    store: Store, server_url: str, terminal: Open
) -> None:
    """In a locale without UTF-8 bars are drawn with what there is, and no name ends the view."""
    batch = make_batch(store, prompts(2), name="nächtlich機")
    work(store, batch, only=[0])
    made = terminal("status", "--watch", "--redis", server_url, PYTHONIOENCODING="latin-1", NO_COLOR="1")
    made.until("n\ufffdchtlich?")  # latin-1, read as UTF-8
    made.until("####----")
    made.type("q")
    assert made.ended() == 0


def test_what_others_wrote_cannot_steer_the_terminal(store: Store, server_url: str, terminal: Open) -> None:
    """Names of workers, lines and batches with control codes and markup in them are shown as text."""
    evil = "[red]a\x1b]0;owned\x07\x1b[2Jb"
    line = {"batch_id": "b_x", "index": 1, "id": evil, "phase": "decode", "completion_tokens": 1}
    publish(store, evil, models=[evil], hostname=evil, in_flight=[line])
    made = terminal("workers", "--watch", "--redis", server_url)
    made.until("[red]a?]0;owned")
    made.type("q")
    assert made.ended() == 0
    assert "\x1b]0" not in made.output
    assert "\x07" not in made.output


def test_a_dumb_terminal_and_a_pipe_have_plain_frames(store: Store, server_url: str, terminal: Open) -> None:
    """No codes at all, and JSON a line a second."""
    publish(store, "mini.1", queues=[])
    made = terminal("workers", "--watch", "--redis", server_url, TERM="dumb")
    made.until("mini.1")
    made.process.send_signal(signal.SIGINT)
    assert made.ended() == 0
    assert "\x1b" not in made.output
    piped = subprocess.Popen(
        [sys.executable, "-P", "-m", "submit.cli", "workers", "--watch", "--json", "--redis", server_url],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert piped.stdout is not None
    frames = [orjson.loads(piped.stdout.readline()) for _ in range(2)]
    piped.send_signal(signal.SIGINT)
    assert piped.wait(DEADLINE_S) == 0
    piped.stdout.close()
    assert [frame[0]["name"] for frame in frames] == ["mini.1", "mini.1"]
