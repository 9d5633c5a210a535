"""Texts laid out so that what they share stands once, found without a model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from worker.engine.scoring.tree import Tree


def some_texts(seed: int) -> list[tuple[int, ...]]:
    """Sorted texts that nest, double and end in each other behind two tokens that all have."""
    draw = random.Random(seed)
    texts: list[list[int]] = [[]]
    for _ in range(draw.randrange(1, 40)):
        known = draw.choice(texts)
        cut = known[: draw.randrange(len(known) + 1)]
        texts.append([*cut, *(draw.randrange(1, 4) for _ in range(draw.randrange(1, 30)))])
    return sorted((7, 8, *text) for text in texts)


@pytest.mark.parametrize("seed", range(20))
def test_each_token_is_there_once_and_follows_what_its_text_says(seed: int) -> None:
    """Tokens of the paths are those of the texts, as many as there are beginnings, and see those before them alone."""
    texts, skipped = some_texts(seed), seed % 3
    tree = Tree(texts, skipped)
    for text, path in zip(texts, tree.paths, strict=True):
        assert tuple(tree.tokens[path]) == text[skipped:-1]
        assert list(tree.depths[path]) == list(range(skipped, len(text) - 1))
        if len(path):
            seen = np.flatnonzero(tree.follows(path[-1:], np.arange(len(tree)))[0])
            assert list(seen) == list(path)
    assert len(tree) == len({text[:end] for text in texts for end in range(skipped + 1, len(text))})


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("most", [1, 5, 40])
def test_blocks_see_all_that_their_tokens_follow(seed: int, most: int) -> None:
    """Blocks are all tokens in their order, of a size that is bounded, and so are blocks that were cut."""
    tree = Tree(some_texts(seed), 2)
    blocks = tree.blocks(most)
    cut = [part for block in blocks for part in (tree.cut(block, 2) if block.end - block.start > 2 else [block])]
    for parts in (blocks, cut):
        assert [place for block in parts for place in range(block.start, block.end)] == list(range(len(tree)))
        for block in parts:
            assert block.end - block.start <= most
            own = np.arange(block.start, block.end)
            followed = np.flatnonzero(tree.follows(own, np.arange(block.start)).any(axis=0))
            assert list(block.before) == list(followed)


def test_a_text_that_branches_off_begins_a_block() -> None:
    """Where that is near: a question with its choices is one block."""
    texts = [(1, question, *range(10, 40), choice, 5) for question in (2, 3, 4) for choice in (50, 51, 52)]
    assert [(block.start, block.end) for block in Tree(texts, 1).blocks(50)] == [(0, 34), (34, 68), (68, 102)]
