"""Which texts are scored together and what they share, found without a model."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from jobs.params import Sampling
from worker.engine.scoring.item import Item
from worker.engine.scoring.plan import ROW_TOKENS, Stem, stems
from worker.engine.scoring.task import ScoringTask
from worker.engine.sequence import PreparedLine

LINE = PreparedLine("x", (1,), Sampling(seed=0), frozenset())


def item(tokens: list[int], first: int = 1) -> Item:
    return Item(replace(LINE, prompt=tuple(tokens), scoring=ScoringTask(first)))


def shape(found: list[Stem]) -> list[tuple[int, int]]:
    """Length and number of items of each stem."""
    return sorted((stem.length, len(stem.items)) for stem in found)


def test_choices_go_on_from_their_question() -> None:
    """Behind shared examples each question is a stem, whichever way the file is mixed."""
    draw = random.Random(1)
    examples = [draw.randrange(1, 99) for _ in range(200)]
    items = []
    for question in range(5):
        asked = [*examples, *(draw.randrange(1, 99) for _ in range(40 + question))]
        items += [item([*asked, 100 + choice, 7, 8], len(asked)) for choice in range(4)]
    draw.shuffle(items)
    assert shape(stems(items)) == [(240 + question, 4) for question in range(5)]


def test_choices_of_one_token_are_read_off_the_question() -> None:
    """Nothing of them is computed but the question."""
    asked = list(range(1, 60))
    (stem,) = stems([item([*asked, 100 + choice], 59) for choice in range(4)])
    assert (stem.length, stem.unscored, [one.length for one in stem.items]) == (59, 58, [59] * 4)


def test_choices_that_begin_alike_still_share_the_question() -> None:
    """Two of four that go the same way for a token do not keep the others from the stem."""
    asked = list(range(1, 80))
    items = [item([*asked, *rest], 79) for rest in ([5, 6, 7], [5, 6, 8], [9, 1], [3])]
    assert shape(stems(items)) == [(79, 4)]


def test_a_few_tokens_in_common_are_not_worth_a_row() -> None:
    """Texts that only begin with the same words are computed by themselves."""
    items = [item([1, 2, *range(10 * number, 10 * number + 50)]) for number in range(1, 3)]
    assert shape(stems(items)) == [(51, 1), (51, 1)]


def test_texts_that_are_scored_whole_share_a_stem_all_the_same() -> None:
    """What is scored of the shared part is found once, too; nothing of it can come from elsewhere."""
    shared = list(range(1, 100))
    found = stems([item([*shared, number, 5]) for number in range(200, 206)])
    assert [(stem.length, len(stem.items), stem.unscored) for stem in found] == [(99, 6, 0)]


def test_without_sharing_each_is_its_own() -> None:
    """As for models whose caches cannot be copied."""
    asked = list(range(1, 60))
    assert shape(stems([item([*asked, choice], 59) for choice in range(4)], sharing=False)) == [(59, 1)] * 4


@pytest.mark.parametrize("seed", range(30))
def test_every_item_is_in_one_stem_that_it_begins_with(seed: int) -> None:
    """However texts nest, double and end in each other; and no more is computed than without stems."""
    draw = random.Random(seed)
    texts: list[list[int]] = [[]]
    for _ in range(draw.randrange(1, 60)):
        known = draw.choice(texts)
        cut = known[: draw.randrange(len(known) + 1)]
        texts.append([*cut, *(draw.randrange(1, 4) for _ in range(draw.randrange(1, 50)))])
    items = [item(text, draw.randrange(1, max(2, len(text)))) for text in texts if len(text) > 1]
    found = stems(items)
    assert sorted(map(id, items)) == sorted(id(one) for stem in found for one in stem.items)
    for stem in found:
        assert all(one.tokens[: stem.length] == stem.tokens and stem.length <= one.length for one in stem.items)
    computed = sum(stem.length + sum(one.length - stem.length for one in stem.items) for stem in found)
    assert computed <= sum(one.length for one in items)
    assert computed + ROW_TOKENS * len(found) <= sum(one.length + ROW_TOKENS for one in items)
