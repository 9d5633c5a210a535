"""Texts that share tokens, scored as one packed sequence."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence as Items

import mlx.core as mx
import numpy as np

from worker.engine.caches.prefix_cache import Prefix
from worker.engine.caches.prompt_cache import Cache
from worker.engine.scheduler import SequenceGroup
from worker.engine.scoring.batch import ScoredBatch
from worker.engine.scoring.head import SplitModel
from worker.engine.scoring.item import Item
from worker.engine.scoring.likelihoods import Likelihoods, likelihoods
from worker.engine.scoring.next_tokens import NextTokens, next_tokens
from worker.engine.scoring.packed import BLOCK, Chunk, packed_caches
from worker.engine.scoring.task import Scores
from worker.engine.scoring.tree import Block, Tree
from worker.engine.scoring.unit import scores_of
from worker.engine.sequence import Sequence


class PackedUnit:
    """Items behind the same ``prefix``. What some of them share is computed once, wherever they part. Those that draw
    a token have it with their scores."""

    def __init__(self, model: SplitModel, items: Items[Item], prefix: Prefix | None, *, logits: int) -> None:
        self.items = sorted(items, key=lambda item: item.text)
        self._model, self._prefix, self._logits = model, prefix, logits
        self._top = max(item.top for item in self.items)
        skipped = len(prefix or ())
        self._tree = Tree([item.text for item in self.items], skipped)
        self.tokens = len(self._tree)
        self._blocks: deque[Block] = deque(self._tree.blocks(BLOCK))
        self._caches: list[Cache] = []
        self._found: list[Likelihoods] = []
        self._drawn: list[NextTokens] = []
        wanted = []
        for item, path in zip(self.items, self._tree.paths, strict=True):
            places = path[item.first - 1 - skipped : item.length - skipped]
            wanted.append(places * model.vocab_size + np.array(item.tokens[item.first :], dtype=np.int64))
        # What several texts want of a token is looked for once.
        distinct, self._rows = np.unique(np.concatenate(wanted), return_inverse=True)
        self._places, self._targets = distinct // model.vocab_size, distinct % model.vocab_size

    @property
    def done(self) -> bool:
        return not self._blocks

    @property
    def cached(self) -> list[int]:
        """Of each item how many tokens are there already when it is computed, those of the prefix too."""
        counts, computed = [], 0
        for item, path in zip(self.items, self._tree.paths, strict=True):
            own = max(0, int(path[-1]) + 1 - computed) if len(path) else 0
            counts.append(len(item.text) - 1 - own)
            computed += own
        return counts

    def advance(self, most: int) -> tuple[int, list[mx.array]]:
        """Make the graph of one chunk: the tokens it has, and the arrays to be computed."""
        if not self._caches:
            prefix = None if self._prefix is None else self._prefix.caches
            self._caches = packed_caches(len(self._model.new_cache()), prefix)
            self._prefix = None
        chunk = Chunk(self._tree, self._take(most))
        for cache in self._caches:
            cache.begin(chunk)
        states = self._model.states(chunk.tokens, self._caches)[:, 0]
        first, last = np.searchsorted(self._places, [chunk.start, chunk.end])
        arrays: list[mx.array] = []
        if last > first:
            chosen = states[mx.array(self._places[first:last] - chunk.start)]
            targets = mx.array(self._targets[first:last])
            self._found.append(likelihoods(self._model, chosen, targets, self._top, self._logits))
            arrays += self._found[-1].arrays
        arrays += self._draw(chunk, states)
        if self.done:
            self._caches = []
        return chunk.end - chunk.start, [*arrays, *(array for cache in self._caches for array in cache.state)]

    def results(self) -> Iterator[tuple[Item, Scores | None]]:
        """Wait for all of it; None where the model's logits are not finite."""
        found = [np.concatenate(parts) for parts in zip(*(found.read() for found in self._found), strict=True)]
        drawn = {token.row: token for tokens in self._drawn for token in tokens.read()}
        at = 0
        for item in self.items:
            item.drawn = [drawn[row] for row in item.sequences] if item.draws else []
            rows = self._rows[at : at + len(item.tokens) - item.first]
            at += len(rows)
            yield item, scores_of(item, [tuple(array[rows] for array in found)])

    def hand_over(self, item: Item, group: SequenceGroup) -> ScoredBatch | None:
        """None: no text goes on from a packed sequence."""
        return None

    def _draw(self, chunk: Chunk, states: mx.array) -> list[mx.array]:
        """Start to draw what follows the prompts that end in a chunk: the arrays to be computed."""
        rows, places = list[Sequence](), list[int]()
        for item, path in zip(self.items, self._tree.paths, strict=True):
            if item.draws and chunk.start <= path[-1] < chunk.end:
                rows += item.sequences
                places += [int(path[-1]) - chunk.start] * len(item.sequences)
        if not rows:
            return []
        self._drawn.append(next_tokens(self._model, states[mx.array(places)], rows, self._logits))
        return self._drawn[-1].arrays

    def _take(self, most: int) -> list[Block]:
        """The next blocks, of at most as many tokens; one that is longer is cut."""
        taken: list[Block] = []
        left = max(1, most)
        while self._blocks and left:
            block = self._blocks[0]
            if block.end - block.start > left:
                if taken:
                    break
                block, self._blocks[0] = self._tree.cut(block, left)
            else:
                self._blocks.popleft()
            taken.append(block)
            left -= block.end - block.start
        return taken
