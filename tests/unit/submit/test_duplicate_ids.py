"""Duplicate ids, against a plain dictionary of all ids."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from submit.input.duplicate_ids import UsedIds

Lines = list[tuple[int, str | None]]


def found(lines: Lines, chunk: int = 1000) -> dict[int, int]:
    """All clashes, with the lines taken in by chunks."""
    with UsedIds() as seen:
        clashes = {}
        for start in range(0, len(lines), chunk):
            clashes |= seen.add(lines[start : start + chunk])
        return clashes


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.none() | st.sampled_from(["a", "b", "line-0", "line-01", "line-x"])
                  | st.integers(1, 40).map("line-{}".format)),
        max_size=30,
    ),
    st.integers(1, 10),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_clashes_are_those_of_a_dictionary(steps: list[tuple[int, str | None]], chunk: int) -> None:
    """Explicit ids, default ids and explicit ones that look like defaults: the later line of two clashes."""
    lines: Lines = []
    number = 0
    for step, name in steps:
        number += step
        lines.append((number, name))
    firsts: dict[str, int] = {}
    expected = set()
    for line, given_name in lines:
        name = f"line-{line}" if given_name is None else given_name
        if firsts.setdefault(name, line) != line:
            expected.add(line)
    clashes = found(lines, chunk)
    assert set(clashes) == expected
    by_line = {line: name or f"line-{line}" for line, name in lines}
    assert all(by_line[first] == by_line[line] and first < line for line, first in clashes.items())


def test_default_id_clashes_with_an_explicit_one_before_and_after_it() -> None:
    """Line 5's default is line-5, wherever else in the file that is written."""
    assert found([(2, "line-5"), (5, None)]) == {5: 2}
    assert found([(5, None), (9, "line-5")]) == {9: 5}
    assert found([(5, "line-5"), (6, None)]) == {}
    assert found([(2, None), (9, "line-5")]) == {}  # line 5 is blank


def test_ids_are_compared_exactly() -> None:
    """Case, spaces and accents count; nothing is folded."""
    assert found([(1, "a"), (2, "A"), (3, "a "), (4, "é"), (5, "e\u0301"), (6, "é")]) == {6: 4}


def test_many_ids_across_chunks() -> None:
    """Each of 100,000 ids given twice is found once, in the second half."""
    ids = [f"row-{number}" for number in range(100_000)]
    clashes = found([*enumerate(ids, 1), *enumerate(ids, 100_001)], chunk=10_000)
    assert clashes == {line + 100_000: line for line in range(1, 100_001)}
