"""Texts as one sequence in which what they share stands once, and what each token of it looks at. No tensors.

Sorted texts are a tree of tokens. It is laid out in the order of its texts: a token comes after all that it follows,
and all that follows a token stands behind it without a gap, up to the token's *end*. So a token at ``place`` follows
that at ``before`` if ``before <= place < ends[before]``.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.engine.caches.prefix_cache import common

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens from ``start`` to ``end``, and the places ``before`` of all tokens ahead of them that the first follows,
    which are all that any of them follows."""

    start: int
    end: int
    before: Places

    @property
    def seen(self) -> int:
        """How many tokens are looked at."""
        return len(self.before) + self.end - self.start


class Tree:
    """What is computed of sorted ``texts``: all tokens but the last, from ``skipped`` on, which all texts share.

    ``tokens``, their positions in the texts ``depths``, and ``ends`` are arrays of one entry for each; ``paths`` are
    the places of each text's tokens.
    """

    def __init__(self, texts: Items[tuple[int, ...]], skipped: int = 0) -> None:
        self.paths: list[Places] = []
        self._runs: list[tuple[int, Places]] = []
        tokens: list[int] = []
        last: tuple[int, ...] = ()
        path = np.zeros(0, dtype=np.int64)
        closed: list[tuple[Places, int]] = []
        for text in texts:
            known = min(common(last, text), len(path) + skipped, len(text) - 1) - skipped if self.paths else 0
            place = len(tokens)
            closed.append((path[known:], place))
            tokens += text[skipped + known : -1]
            last, path = text, np.concatenate([path[:known], np.arange(place, len(tokens))])
            self.paths.append(path)
            if len(tokens) > place:
                self._runs.append((place, path))
        self.tokens = np.array(tokens, dtype=np.int32)
        self.depths = np.zeros(len(tokens), dtype=np.int64)
        self.ends = np.full(len(tokens), len(tokens), dtype=np.int64)
        for places, end in closed:
            self.ends[places] = end
        for path in self.paths:
            self.depths[path] = skipped + np.arange(len(path))

    def __len__(self) -> int:
        return len(self.tokens)

    def blocks(self, most: int) -> list[Block]:
        """All tokens in blocks of at most ``most``, which begin where a text branches off if that is near."""
        found: list[Block] = []
        start, ahead = 0, np.zeros(0, dtype=np.int64)
        for first, path in self._runs:
            end = int(path[-1]) + 1
            if first > start and end - start > most:
                found.append(Block(start, first, ahead))
                start, ahead = first, path[path < first]
            while end - start > most:
                found.append(Block(start, start + most, ahead))
                start += most
                ahead = path[path < start]
        if len(self) > start:
            found.append(Block(start, len(self), ahead))
        return found

    def cut(self, block: Block, size: int) -> tuple[Block, Block]:
        """A block in two, the first of ``size`` tokens."""
        middle = block.start + size
        ahead = np.concatenate([block.before, np.arange(block.start, middle)])
        return Block(block.start, middle, block.before), Block(middle, block.end, ahead[self.ends[ahead] > middle])

    def follows(self, places: Places, before: Places) -> NDArray[np.bool_]:
        """``[places, before]``: whether a token follows another, or is it."""
        inside: NDArray[np.bool_] = (before[None] <= places[:, None]) & (places[:, None] < self.ends[before][None])
        return inside
