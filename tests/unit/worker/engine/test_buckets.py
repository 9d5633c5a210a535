from __future__ import annotations

import math
import random

from worker.engine.caches.buckets import MOST_BUCKETS, Layout, Place


def join(layout: Layout, *lengths: int) -> None:
    """Rows join as a batch lets them."""
    rest = []
    span = layout.span(lengths)
    for length in lengths:
        place = layout.place(length, span)
        if place is None:
            rest.append(length)
        else:
            layout.put(place, length)
    if rest:
        parts = layout.rearranged(rest)
        assert parts is not None
        layout.arrange(parts, rest)


def shape(layout: Layout) -> list[tuple[int, list[int | None]]]:
    return [(bucket.width, bucket.lengths) for bucket in layout.buckets]


def test_one_bucket_is_as_wide_as_its_longest_row() -> None:
    """Where buckets cost more than any padding there is one, and a longer row makes it wider."""
    layout = Layout(math.inf)
    join(layout, 5, 9)
    assert shape(layout) == [(9, [5, 9])]
    join(layout, 3)
    assert shape(layout) == [(9, [5, 9, 3])]
    join(layout, 20)
    assert shape(layout) == [(20, [5, 9, 3, 20])]
    assert (layout.columns, layout.needed) == (80, 37)


def test_rows_of_unlike_lengths_lie_apart() -> None:
    """Short rows are not computed as wide as long ones; a row joins the narrowest bucket that holds it."""
    layout = Layout(0)
    join(layout, 100, 40, 100, 40)
    assert shape(layout) == [(40, [40, 40]), (100, [100, 100])]
    assert layout.columns == layout.needed
    layout = Layout(100)
    join(layout, 100, 1000, 98)
    assert shape(layout) == [(100, [100, 98]), (1000, [1000])]
    join(layout, 990)
    assert layout.buckets[1].lengths == [1000, 990]


def test_all_rows_grow_alike() -> None:
    """A step adds a column to every bucket and a token to every row; padding stays what it was."""
    layout = Layout(0)
    join(layout, 4, 10)
    layout.grow()
    assert shape(layout) == [(5, [5]), (11, [11])]


def test_an_idle_place_is_taken_first() -> None:
    """A row that fits takes the place of one that has ended, and only then one behind the last."""
    layout = Layout(math.inf)
    join(layout, 9, 9, 9)
    layout.leave(1)
    assert layout.place(7, math.inf) == Place(0, 1)
    join(layout, 7)
    assert layout.lengths() == [9, 7, 9]
    assert layout.place(8, math.inf) == Place(0, 3)
    assert layout.place(10, math.inf) is None


def test_a_copy_comes_when_it_has_paid() -> None:
    """Idle places and padding that all rows of a bucket have are computed along until that has cost a copy."""
    layout = Layout(math.inf)
    join(layout, 50, 200, 60)
    layout.leave(1)
    steps = 0
    while not layout.due:
        layout.grow()
        steps += 1
    assert 1 < steps < 4
    parts = layout.rearranged()
    assert parts == [[(0, 0), (0, 2)]]
    layout.arrange(parts)
    assert shape(layout) == [(60 + steps, [50 + steps, 60 + steps])]
    assert not layout.due


def test_a_bucket_without_rows_is_given_up() -> None:
    """It costs a copy of nothing."""
    layout = Layout(0)
    join(layout, 5, 50)
    layout.leave(0)
    layout.grow()
    assert layout.due
    parts = layout.rearranged()
    assert parts == [[(1, 0)]]
    layout.arrange(parts)
    assert shape(layout) == [(51, [51])]


def test_padding_is_bounded_while_rows_come_and_go() -> None:
    """With real questions' lengths, 32 rows are computed at most 1.15 times as wide as they need, idle places among
    the columns; there are never too many buckets, and no row is lost."""
    draw = random.Random(7)
    columns = needed = joined = 0
    layout = Layout(128)
    for _ in range(3000):
        alive = sum(length is not None for length in layout.lengths())
        for _ in range(32 - alive):
            length = draw.randint(60, 220)
            join(layout, length)
            joined += 1
        layout.grow()
        columns += layout.columns
        needed += layout.needed
        assert len(layout.buckets) <= MOST_BUCKETS
        for slot, length in enumerate(layout.lengths()):
            if length is not None and draw.random() < 1 / 120:
                layout.leave(slot)
        if layout.due:
            parts = layout.rearranged()
            assert parts is not None
            kept = sorted(length for length in layout.lengths() if length is not None)
            layout.arrange(parts)
            assert sorted(length for length in layout.lengths() if length is not None) == kept
    assert columns / needed < 1.15, columns / needed
    assert joined > 500
