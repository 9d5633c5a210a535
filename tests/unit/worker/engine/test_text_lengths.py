"""How long texts are expected to get."""

from __future__ import annotations

import pytest

from worker.engine.text_lengths import ENOUGH, FIRST_GUESS, HISTORY, TextLengths


def test_nothing_is_known_at_first() -> None:
    """A modest guess, and more where rows under way, or the few that have ended, are longer already."""
    texts = TextLengths()
    assert texts.usual() == FIRST_GUESS
    assert texts.usual([3, 1000, 900]) == 900
    texts.add(2000)
    assert texts.usual() == 2000


def test_what_nine_of_ten_need_is_expected() -> None:
    """Of the latest texts: a batch of other lengths is soon all that counts."""
    texts = TextLengths()
    for tokens in range(1, 101):
        texts.add(tokens)
    assert texts.usual() == 90
    for _ in range(HISTORY):
        texts.add(7)
    assert texts.usual() == 7


def test_short_texts_that_end_first_do_not_deceive() -> None:
    """Those still running say that others are longer."""
    texts = TextLengths()
    for _ in range(ENOUGH):
        texts.add(20)
    assert texts.usual([500] * 5) == 500


@pytest.mark.parametrize(
    ("tokens", "limit", "expected"), [(0, 1000, 100), (99, 1000, 100), (100, 1000, 125), (8, 50, 50), (400, 410, 410)]
)
def test_a_text_beyond_the_usual_gets_longer_still(tokens: int, limit: int, expected: int) -> None:
    """By a quarter, never beyond its limit."""
    assert TextLengths.expected(tokens, limit, 100) == expected
