"""Stems of like length that are computed together, and then what follows each of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence as Items
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from worker.engine.caches.prefix_cache import Prefix
from worker.engine.loading.model import LoadedModel
from worker.engine.scheduler import SequenceGroup
from worker.engine.scoring.batch import ScoredBatch, Wanted
from worker.engine.scoring.head import SplitModel
from worker.engine.scoring.item import Item
from worker.engine.scoring.likelihoods import LOGITS_BYTES
from worker.engine.scoring.plan import Stem, similar
from worker.engine.scoring.task import Scores
from worker.engine.sequence import PreparedLine

Found = tuple[NDArray[Any], ...]


class Unit:
    """A batch of stems that go on from the same ``prefix``, then batches of at most ``rows`` of the items' own tokens.
    One chunk of at most as many tokens as wanted is computed at a time."""

    def __init__(
        self, model: SplitModel, stems: list[Stem], prefix: Prefix | None, *, padding: bool, rows: int, logits: int
    ) -> None:
        self.items = [item for stem in stems for item in stem.items]
        self.tokens = 0
        self._model, self._padding, self._rows, self._logits = model, padding, rows, logits
        self._top = max(item.top for item in self.items)
        self._generating = any(item.line.generates for item in self.items)
        skipped = len(prefix or ())
        self._last = [list(dict.fromkeys(item.tokens[stem.length] for item in stem.items)) for stem in stems]
        self._stems, self._start = stems, [max(skipped, stem.unscored) for stem in stems]
        wanted = [
            Wanted.of(stem.tokens, skipped, stem.length, start, last if start < stem.length else [])
            for stem, start, last in zip(stems, self._start, self._last, strict=True)
        ]
        groups = [SequenceGroup(list(s.tokens), s.length - skipped, s.length, prefix=prefix) for s in stems]
        kept = self._generating or any(item.length > stem.length for stem in stems for item in stem.items)
        self._stem_batch = ScoredBatch(model, groups, wanted, self._top, logits, kept=kept)
        self._batches: deque[ScoredBatch] = deque([self._stem_batch])
        self._own: list[tuple[list[Item | None], ScoredBatch]] = []
        self.tokens += self._stem_batch.tokens

    @property
    def done(self) -> bool:
        return not self._batches

    def advance(self, most: int) -> tuple[int, list[mx.array]]:
        """Make the graph of one chunk: the tokens it has, padding included, and the arrays to be computed."""
        batch = self._batches[0]
        tokens = batch.advance(most)
        arrays = batch.started()
        if batch.done:
            self._batches.popleft()
            if batch is self._stem_batch:
                self._follow()
            if not self._generating:
                if self.done:
                    self._stem_batch.forget()
                if batch is not self._stem_batch:
                    batch.forget()
        return tokens, arrays

    def results(self) -> Iterator[tuple[Item, Scores | None]]:
        """Wait for all of it; None where the model's logits are not finite."""
        pairs = (pair for items, batch in self._own for pair in zip(items, batch.results(), strict=True))
        own = {id(item): found for item, found in pairs}  # of those with tokens of their own
        stems = zip(self._stems, self._start, self._last, self._stem_batch.results(), strict=True)
        for stem, start, last, found in stems:
            for item in stem.items:
                yield item, scores_of(item, [*_of_stem(item, stem, start, last, found), own.get(id(item), ())])

    def hand_over(self, item: Item, group: SequenceGroup) -> ScoredBatch | None:
        """The batch that has the caches of an item, where ``group`` may go on from them; None where it may not."""
        for items, batch in [*self._own, (self._ends, self._stem_batch)]:
            if item in items:
                return batch if batch.hand_over(items.index(item), group) else None
        return None

    @property
    def _ends(self) -> list[Item | None]:
        """Of each stem the item that ends with it."""
        return [next((item for item in stem.items if item.length == stem.length), None) for stem in self._stems]

    def _follow(self) -> None:
        """Batches of what comes after the stems."""
        rest = [(row, item) for row, stem in enumerate(self._stems) for item in stem.items if item.length > stem.length]
        rest.sort(key=lambda pair: pair[1].length - self._stems[pair[0]].length)
        batch: list[tuple[int, Item]] = []
        for pair in rest:
            if batch and not (len(batch) < self._rows and self._alike(batch[0], pair)):
                self._add(batch)
                batch = []
            batch.append(pair)
        if batch:
            self._add(batch)

    def _alike(self, one: tuple[int, Item], other: tuple[int, Item]) -> bool:
        shortest, length = (item.length - self._stems[row].length for row, item in (one, other))
        return similar(shortest, length, padding=self._padding)

    def _add(self, pairs: Items[tuple[int, Item]]) -> None:
        groups, wanted = [], []
        for row, item in pairs:
            start, end = self._stems[row].length, item.length
            groups.append(SequenceGroup(list(item.tokens[start:end]), end - start, end))
            wanted.append(Wanted.of(item.tokens, start, end, item.first - 1, item.tokens[end : end + 1]))
        origins = [row for row, _ in pairs]
        args = (self._top, self._logits, self._stem_batch.caches, origins)
        batch = ScoredBatch(self._model, groups, wanted, *args, kept=self._generating)
        self._own.append(([item for _, item in pairs], batch))
        self._batches.append(batch)
        self.tokens += batch.tokens


def _of_stem(item: Item, stem: Stem, start: int, last: list[int], found: Found) -> list[Found]:
    """Of what was found of a stem the part of one of its items."""
    if not found or item.first > stem.length:
        return []
    inner = stem.length - 1 - start
    end = inner + last.index(item.tokens[stem.length])
    return [tuple(array[item.first - 1 - start : inner] for array in found), tuple(a[end : end + 1] for a in found)]


def scores_of(item: Item, parts: Items[Found]) -> Scores | None:
    """The scores of an item, given its rows in parts; None where its logits are not finite."""
    columns = [np.concatenate(arrays) for arrays in zip(*(part for part in parts if part), strict=True)]
    logprobs, ranks, greedy, *best = columns
    if np.isnan(logprobs).any():
        return None
    ids, values = (array[:, : item.top].tolist() for array in best) if item.top else ([], [])
    return Scores(item.first, logprobs.tolist(), ranks.tolist(), greedy.tolist(), ids, values)


def score_alone(model: LoadedModel, line: PreparedLine, step_size: int) -> Scores | None:
    """Score the prompt of a line with nothing else in the batch; None where the logits are not finite."""
    item = Item(line)
    unit = Unit(SplitModel(model), [Stem([item], item.length)], None, padding=False, rows=1, logits=LOGITS_BYTES)
    while not unit.done:
        mx.eval(unit.advance(step_size)[1])
    return next(unit.results())[1]
