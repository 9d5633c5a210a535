"""Sizes that arrays keep for a while."""

from __future__ import annotations

from worker.engine.sampling.sizes import GrownSizes, power_of_two, rounded_rows


def test_sizes_shrink_late() -> None:
    """A size grows at once, stays while it is needed however long that is, and shrinks to what is needed later."""
    sizes = GrownSizes(linger=10)
    assert [sizes.grown("a", needed) for needed in (1, 4, 2)] == [1, 4, 4]
    sizes.step = 10
    assert sizes.grown("a", 1) == 4
    sizes.step = 11
    assert sizes.grown("a", 2) == 2
    sizes.step = 1000
    assert sizes.grown("a", 1) == 2
    sizes.step = 1010
    assert [sizes.grown("a", 1), sizes.grown("b", 3)] == [2, 3]
    sizes.step = 1011
    assert sizes.grown("a", 1) == 1


def test_members_stay() -> None:
    """A set has what is needed and what was needed not long ago, and nothing that is a size."""
    sizes = GrownSizes(linger=10)
    sizes.grown("width", 8)
    assert sizes.grown_set(frozenset("ab")) == frozenset("ab")
    assert sizes.grown_set(frozenset("c")) == frozenset("abc")
    sizes.step = 11
    assert sizes.grown_set(frozenset("d")) == frozenset("cd")
    assert sizes.grown("width", 1) == 8


def test_rounding() -> None:
    """Rows are rounded up by half as much again at most, widths to powers of two."""
    rounded = [rounded_rows(rows) for rows in range(1, 65)]
    assert sorted(set(rounded)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(rows <= more <= 1.5 * rows for rows, more in enumerate(rounded, start=1))
    assert [power_of_two(number) for number in (0, 1, 2, 3, 5, 8, 1000)] == [1, 1, 2, 4, 8, 8, 1024]
