"""What is written to a terminal so that a view stands on it."""

from __future__ import annotations

import os
import pty
from types import SimpleNamespace
from typing import Any

from submit.status.table import text
from submit.watch.terminal import ERASE_LINE, ERASE_SCREEN, Painter, watch_on_screen

SIZE = (80, 24)


def test_only_changed_lines_are_written() -> None:
    """The first frame is drawn whole on an empty screen; then what differs, at its place."""
    painter = Painter(colour=False)
    assert painter.paint([text("one"), text(""), text("three")], SIZE) == (
        f"{ERASE_SCREEN}\x1b[1;1Hone{ERASE_LINE}\x1b[3;1Hthree{ERASE_LINE}"
    )
    assert painter.paint([text("one"), text(""), text("three")], SIZE) == ""
    assert painter.paint([text("one"), text("two"), text("three")], SIZE) == f"\x1b[2;1Htwo{ERASE_LINE}"
    assert painter.paint([text("one")], SIZE) == f"\x1b[2;1H{ERASE_LINE}\x1b[3;1H{ERASE_LINE}"


def test_another_size_is_drawn_on_anew() -> None:
    """A terminal that was resized has its lines elsewhere."""
    painter = Painter(colour=False)
    painter.paint([text("one")], SIZE)
    assert painter.paint([text("one")], (60, 10)) == f"{ERASE_SCREEN}\x1b[1;1Hone{ERASE_LINE}"


def test_no_more_lines_than_rows() -> None:
    """What is below the screen would scroll it."""
    assert "\x1b[3;1H" not in Painter(colour=False).paint([text(str(row)) for row in range(9)], (80, 2))


def test_colours_are_the_sixteen_of_every_terminal() -> None:
    """By name, and none where NO_COLOR asks for none."""
    assert Painter().paint([text("one", "green")], SIZE).endswith(f"\x1b[32mone\x1b[0m{ERASE_LINE}")
    assert "\x1b[32m" not in Painter(colour=False).paint([text("one", "green")], SIZE)


def test_a_change_of_colour_is_a_change() -> None:
    """The same letters in another style are written again."""
    painter = Painter()
    painter.paint([text("one", "green")], SIZE)
    assert painter.paint([text("one", "red")], SIZE) == f"\x1b[1;1H\x1b[31mone\x1b[0m{ERASE_LINE}"


def test_what_a_closed_window_did_not_take_is_dropped() -> None:
    """Python writes it once more when it ends, and would end with status 120 if that failed."""
    view = SimpleNamespace(done=False, draw=lambda *_, **__: [text("one")], text=lambda _: ["one"])
    reader: Any = SimpleNamespace(read=lambda drawn: view)
    window, inner = pty.openpty()
    with os.fdopen(inner, "w") as stream:
        os.close(window)
        watch_on_screen(reader, stream, {}, keys=stream)
        stream.flush()
