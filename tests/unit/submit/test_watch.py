"""What `--watch` writes where there is no full screen, and how it ends."""

from __future__ import annotations

import io

from rich.text import Text

from submit.watch.watch import watch


class Counting:
    """A reader, and the view that it reads, which comes to its end at the third time."""

    def __init__(self) -> None:
        self.reads: list[bool] = []
        self.widths: list[int | None] = []

    def read(self, *, drawn: bool = False) -> Counting:
        self.reads.append(drawn)
        return self

    @property
    def done(self) -> bool:
        return len(self.reads) == 3

    def as_json(self) -> list[int]:
        return [len(self.reads)]

    def text(self, width: int | None) -> list[str]:
        self.widths.append(width)
        return [f"read {len(self.reads)}", "[red]and a second line"]

    def draw(self, width: int, height: int, *, unicode: bool) -> list[Text]:
        raise AssertionError("nothing is drawn here")


def test_watching_into_a_pipe_is_plain() -> None:
    """Each view is printed after the other, whole and without control codes, and what only a screen shows is not
    read."""
    stream, view = io.StringIO(), Counting()
    watch(view, stream, environ={"TERM": "xterm"}, sleep=lambda _s: None)
    assert stream.getvalue().splitlines()[::2] == ["read 1", "read 2", "read 3"]
    assert stream.getvalue().splitlines()[1::2] == ["[red]and a second line"] * 3
    assert view.widths == [None] * 3
    assert view.reads == [False] * 3


def test_a_dumb_terminal_is_no_screen() -> None:
    """TERM=dumb is watched as a pipe is."""

    class Dumb(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Dumb()
    watch(Counting(), stream, environ={"TERM": "dumb"}, sleep=lambda _s: None)
    assert "\x1b" not in stream.getvalue()


def test_leaving_a_pipe_with_ctrl_c_is_no_error() -> None:
    """Ctrl-C is the way to leave: nothing is raised, and what was printed stays."""
    stream = io.StringIO()

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    watch(Counting(), stream, environ={}, sleep=interrupted)
    assert stream.getvalue() == "read 1\n[red]and a second line\n"


def test_json_is_a_line_a_second() -> None:
    """Also on a terminal: it is for programs."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    watch(Counting(), stream, as_json=True, environ={"TERM": "xterm"}, sleep=lambda _s: None)
    assert stream.getvalue() == "[1]\n[2]\n[3]\n"
