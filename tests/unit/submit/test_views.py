"""What a user sees on the full screen: each view drawn on a terminal of a size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from submit.status.batch_view import BatchView
from submit.status.pool_view import PoolView, in_order
from submit.status.rates import BatchRates
from submit.status.text import cells
from submit.status.waiting import BatchOutlook
from submit.status.widgets import sparkline
from submit.status.worker_state import LineInFlight, ModelInMemory, WorkerState
from submit.status.workers import LostWorker
from submit.status.workers_view import WorkersView
from tests.unit.submit.test_status import NOW, QUEUE, RUNNING

NIGHTLY = replace(RUNNING, rejected=0, defaults={"model": "org/pocket", "temperature": 0.7}, metadata={})
URGENT = replace(NIGHTLY, id="b_01M7WHRNPRZGVFB4KZDYHB524B", name=None, priority="high", completed=0, failed=0)
DONE = replace(
    NIGHTLY, id="b_01M7WHRNPRZGVFB4KZDYHB524C", name="old", status="completed", completed=990, failed=10,
    times={**NIGHTLY.times, "completed": NOW - 60},
)  # fmt: skip
READING = LineInFlight(NIGHTLY.id, 602, "row-602", "prefill", 2048, 512, 0)
READY = LineInFlight(NIGHTLY.id, 603, "row-603", "prefill", 64, 64, 0)
DECODING = LineInFlight(NIGHTLY.id, 601, "row-601", "decode", 40, 40, 87)
MINI = WorkerState(
    name="mini.7",
    state="busy",
    model=None,
    models=("org/pocket", "org/other"),
    queues=(QUEUE,),
    tokens_per_second=230.0,
    occupancy=0.9,
    memory_bytes=15 * 2**30,
    in_flight=(DECODING, READING, READY),
    loaded=(ModelInMemory("org/pocket", 2**30),),
    memory_limit_bytes=20 * 2**30,
    speeds=tuple(float(second) for second in range(60)),
    cached_share=0.41,
    lines_per_second=2.5,
    lines_in_flight=3,
    lines_done=600,
    started_at=NOW - 7500,
)
PAUSED = replace(MINI, name="studio.9", state="idle", paused=True, in_flight=(), lines_in_flight=0, speeds=())
SIZES = [(80, 24), (60, 10), (40, 8), (120, 40), (200, 60)]


def many(count: int, phase: str = "decode") -> tuple[LineInFlight, ...]:
    return tuple(LineInFlight(NIGHTLY.id, index, f"row-{index}", phase, 9, 3, 5) for index in range(count))


def pool(**known: Any) -> PoolView:
    return PoolView(**{"now": NOW, "batches": [DONE, NIGHTLY, URGENT], "workers": [MINI, PAUSED], **known})


def seen(lines: Sequence[Text], width: int = 80, height: int = 24) -> list[str]:
    """What stands on a terminal of this size after the lines were printed there."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=False, _environ={})
    for line in lines:
        console.print(line, soft_wrap=True, end="\n")
    shown = file.getvalue().splitlines()
    assert len(shown) <= height
    assert max(map(cells, shown), default=0) <= width
    return shown


def test_the_pool_has_its_batches_workers_and_lines() -> None:
    """Workers in words, speed, batches with what runs first, then the lines that are worked on."""
    shown = seen(pool(waiting={URGENT.id: "waiting for a worker"}).draw(79, 23))
    text = "\n".join(shown)
    assert shown[0].startswith("promptmill   2 workers: 1 busy, 1 paused")
    assert "460 tok/s" in shown[1]
    assert "5.0 lines/s" in shown[1]
    assert "1 running, 1 waiting" in shown[1]
    rows = [line.split() for line in shown[4:7]]
    assert [row[0] for row in rows] == ["nightly", "b_01M7…HB524B", "old"]
    assert [row[1] for row in rows] == ["running", "waiting", "completed"]
    assert rows[0][3:] == ["60%", "600/1,000", "10", "200", "3m20s", "normal"]
    assert "████░░░░ " in shown[4]
    assert rows[2][-3:] == ["1m00s", "ago", "normal"]
    assert "3 lines in flight: 1 reading, 1 generating, 1 ready" in text
    assert "row-602  ███░░░░░░░░░  25% of 2,048 read" in text
    assert "87 tokens" in text


def test_batches_that_run_come_before_those_that_are_over() -> None:
    """By priority, the older first; then what waits; of those that are over the latest."""
    older = replace(DONE, id="b_1", times={"completed": NOW - 600})
    low = replace(NIGHTLY, id="b_0", priority="low")
    assert in_order([older, DONE, low, NIGHTLY, URGENT]) == [URGENT, NIGHTLY, low, DONE, older]
    assert in_order([DONE, low, NIGHTLY, URGENT], {URGENT.id}) == [NIGHTLY, low, URGENT, DONE]


def test_batches_that_have_ended_give_way_to_lines_in_flight() -> None:
    """On a small screen the three that ended last are there; what runs, the workers and their lines stay."""
    ended = [replace(DONE, id=f"b_{number:02}", name=f"old-{number:02}") for number in range(40)]
    busy = replace(MINI, in_flight=many(30), lines_in_flight=30)
    shown = seen(pool(batches=[*ended, NIGHTLY], workers=[busy, PAUSED]).draw(79, 23))
    text = "\n".join(shown)
    assert shown[0].startswith("promptmill   2 workers: 1 busy, 1 paused")
    assert [line.split()[0] for line in shown[4:9]] == ["nightly", "old-39", "old-38", "old-37", "..."]
    assert "... and 37 more that have ended" in text
    assert "30 lines in flight" in text
    assert sum("5 tokens" in line for line in shown) == 10
    few = replace(MINI, in_flight=many(9), lines_in_flight=9)
    shown = seen(pool(batches=[*ended, NIGHTLY], workers=[few]).draw(79, 23))
    assert (sum("5 tokens" in line for line in shown), sum(line.startswith("old-") for line in shown)) == (9, 5)
    roomy = seen(pool(batches=[*ended[:10], NIGHTLY], workers=[busy]).draw(79, 50), 80, 51)
    assert sum(line.startswith("old-") for line in roomy) == 10


def test_lines_that_were_not_run_are_not_drawn_as_done() -> None:
    """A cancelled batch has a bar of the lines that were finished, in another colour, and says how many were not."""
    ended = replace(
        NIGHTLY, status="cancelled", completed=390, failed=610, unrun=600,
        times={**NIGHTLY.times, "cancelled": NOW - 60},
    )  # fmt: skip
    drawn = BatchView(NOW, BatchOutlook(ended, frozenset(), [])).draw(79, 23)
    (progress,) = (line for line in drawn if "1,000" in line.plain)
    assert progress.plain.endswith(" 40%   400 of 1,000 lines   10 failed   600 not run")
    assert progress.plain.count("█") == int((79 - len(progress.plain.lstrip("█░"))) * 0.4)
    assert "yellow" in {str(span.style) for span in progress.spans if "█" in progress.plain[span.start : span.end]}
    (row,) = (line for line in pool(batches=[ended]).draw(79, 23) if line.plain.startswith("nightly"))
    assert row.plain.split()[1:6] == ["cancelled", "███░░░░░", "40%", "400/1,000", "10"]
    assert "yellow" in {str(span.style) for span in row.spans if "█" in row.plain[span.start : span.end]}


def test_a_paused_pool_is_in_the_heads_of_the_views() -> None:
    """With what lets it go on; a batch that is done does not care."""
    said = "the pool is paused: `promptmill resume` lets it go on"
    assert seen(pool(pool_paused=True).draw(79, 23))[1] == said
    assert seen(WorkersView(NOW, [PAUSED], pool_paused=True).draw(79, 23))[1] == said
    assert (
        seen(BatchView(NOW, BatchOutlook(NIGHTLY, frozenset({QUEUE}), [MINI], pool_paused=True)).draw(79, 23))[1]
        == said
    )
    assert said not in seen(BatchView(NOW, BatchOutlook(DONE, frozenset(), [], pool_paused=True)).draw(79, 23))


def test_a_batch_whose_time_is_to_come_says_when() -> None:
    """In its row, in place of a time left; it counts as waiting."""
    later = replace(NIGHTLY, times={**NIGHTLY.times, "starts": NOW + 3600})
    shown = seen(pool(batches=[later], waiting={later.id: "waiting for its time"}).draw(79, 23))
    assert f"begins {datetime.fromtimestamp(NOW + 3600):%H:%M}" in shown[4]
    assert "1 waiting" in shown[1]


def test_a_starting_worker_is_not_called_idle() -> None:
    """In the head and in its row."""
    shown = seen(WorkersView(NOW, [replace(PAUSED, state="starting", paused=False)]).draw(79, 23))
    assert "1 worker: 1 starting" in shown[0]
    assert [line.split()[1] for line in shown if line.startswith("studio.9")] == ["starting"]


@pytest.mark.parametrize(
    ("why", "word"),
    [
        ("waiting: no worker serves org/pocket", "waiting"),
        ("loading org/pocket", "loading"),
        ("paused: `promptmill resume b_1` lets it go on", "paused"),
    ],
)
def test_a_batch_that_does_not_run_says_so_in_a_word(why: str, word: str) -> None:
    """In its row and in the count at the top; a wide screen has the reason."""
    scene = pool(batches=[NIGHTLY], waiting={NIGHTLY.id: why})
    shown = seen(scene.draw(79, 23))
    assert f"1 {word}" in shown[1]
    assert shown[4].split()[1] == word
    assert why in "\n".join(seen(scene.draw(199, 23), 200))


def test_a_batch_has_its_workers_and_lines() -> None:
    """Progress, speed, what it is, who serves it, what is worked on."""
    scene = BatchView(NOW, BatchOutlook(NIGHTLY, frozenset({QUEUE}), [MINI]), BatchRates(4.0, 10.0, 50.0))
    shown = seen(scene.draw(79, 23))
    text = "\n".join(shown)
    assert shown[0].startswith(f"nightly   {NIGHTLY.id}   in_progress")
    assert shown[2].endswith("60%   600 of 1,000 lines   10 failed")
    assert "50.0 tok/s   4.0 lines/s   1m40s left   running for 5m00s" in text
    assert "12.0k prompt tokens (17% cached)   60.0k generated" in text
    assert "priority normal" in text
    assert "defaults temperature 0.7" in text
    (row,) = (line for line in shown if line.startswith("mini.7"))
    assert row.split()[:3] == ["mini.7", "busy", "pocket,"]
    assert "███░░ 15.0 GiB" in row
    assert [part in row.split() for part in ("230", "90%", "41%", "3")] == [True] * 4
    assert "row-602  ███░░░░░░░░░  25% of 2,048 read  mini.7" in text


def test_a_batch_that_waits_says_why() -> None:
    """In words, and without a time left."""
    shown = "\n".join(seen(BatchView(NOW, BatchOutlook(NIGHTLY, frozenset({QUEUE}), [])).draw(79, 23)))
    assert "waiting: no worker serves org/pocket" in shown
    assert " left" not in shown


def test_workers_have_memory_speed_and_lines() -> None:
    """A line each, with the last minute as a line of blocks; those that fell silent at the end."""
    scene = WorkersView(NOW, [MINI, PAUSED], [LostWorker("gone.1", 70.0)], {NIGHTLY.id: "nightly"})
    shown = seen(scene.draw(119, 23), 120)
    rows = {line.split()[0]: line for line in shown if line}
    assert "███████░░░ 15.0 GiB" in rows["mini.7"]
    assert "▁▁▁" in rows["mini.7"]
    assert "███ " in rows["mini.7"]
    assert rows["mini.7"].split()[-5:] == ["90%", "41%", "3", "600", "2h05m"]
    assert "paused" in rows["studio.9"]
    assert "silent 1m10s" in rows["gone.1"]
    assert any("nightly  row-602" in line and "25% of 2,048 read  mini.7" in line for line in shown)


def test_no_worker_and_no_batch_are_said() -> None:
    """Empty views are sentences."""
    assert "no workers" in seen(PoolView(NOW, [], []).draw(79, 23))[0]
    assert "`promptmill submit FILE --model MODEL` makes one" in "\n".join(seen(PoolView(NOW, [], []).draw(79, 23)))
    assert "`promptmill worker --model MODEL` starts one" in "\n".join(seen(WorkersView(NOW, []).draw(79, 23)))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("unicode", [True, False])
def test_every_view_fits_every_terminal(width: int, height: int, unicode: bool) -> None:
    """However many batches, workers and lines: no line is too long, and the rest is counted."""
    crowd = [replace(MINI, name=f"mini-{number}.123456", in_flight=many(40)) for number in range(30)]
    batches = [replace(NIGHTLY, id=f"{NIGHTLY.id[:-2]}{number:02}", name=None) for number in range(50)]
    views = [
        pool(batches=batches, workers=crowd).draw(width, height, unicode=unicode),
        BatchView(NOW, BatchOutlook(NIGHTLY, frozenset({QUEUE}), crowd)).draw(width, height, unicode=unicode),
        WorkersView(NOW, crowd).draw(width, height, unicode=unicode),
    ]
    for lines in views:
        shown = seen(lines, width, height)
        assert "..." in "".join(shown)
        if not unicode:
            assert not set("█░▁▂▃▄▅▆▇") & set("".join(shown))


def test_names_are_neither_markup_nor_control_codes() -> None:
    """What stands in Redis is shown letter by letter; what could steer the terminal is a question mark."""
    evil = "[red]x[/red]\x1b[2J\r\n\x07[link=http://a]"
    shown_as = "[red]x[/red]?[2J???[link=http://a]"
    line = replace(DECODING, id=evil)
    state = replace(MINI, name=evil, in_flight=(line,), loaded=(ModelInMemory(evil, 1),))
    batch = replace(NIGHTLY, name=evil, source=evil, metadata={"k": evil})
    views = [
        pool(batches=[batch], workers=[state]).draw(199, 30),
        BatchView(NOW, BatchOutlook(batch, frozenset({QUEUE}), [state])).draw(199, 30),
        WorkersView(NOW, [state], [LostWorker(evil, 30.0)], {batch.id: evil}).draw(199, 30),
    ]
    for lines in views:
        file = io.StringIO()
        console = Console(file=file, width=200, force_terminal=True, color_system="standard", _environ={})
        for drawn in lines:
            console.print(drawn, soft_wrap=True)
        assert shown_as in "".join(drawn.plain for drawn in lines)
        assert "\x1b[2J" not in file.getvalue()
        assert "\x1b]8" not in file.getvalue()  # no link
        assert "\r" not in file.getvalue()
        assert "\x07" not in file.getvalue()


def test_wide_letters_take_their_columns() -> None:
    """Names in letters two columns wide are cut to what fits."""
    wide = replace(MINI, name="機械" * 30)
    for width in (60, 79):
        for line in WorkersView(NOW, [wide]).draw(width, 23):
            assert line.cell_len <= width


def test_lines_of_all_workers_take_turns() -> None:
    """A worker with many lines does not push the others off the screen."""
    one, other = replace(MINI, in_flight=many(40)), replace(MINI, name="studio.9", in_flight=many(2))
    shown = seen(WorkersView(NOW, [one, other]).draw(79, 12))
    assert sum("tokens  studio.9" in line for line in shown) >= 1


def test_a_sparkline_goes_by_its_highest_value() -> None:
    """The latest is last; what was not published yet is blank; a minute of nothing is flat."""
    assert sparkline([0, 50, 100], 4).plain == " ▁▅█"
    assert sparkline([0.0] * 60, 10).plain == "▁" * 10
    assert sparkline([], 3).plain == "   "
    assert sparkline([0, 100], 2, unicode=False).plain == "_@"
    assert len(sparkline([1.0] * 60, 30).plain) == 30
