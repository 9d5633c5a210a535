"""Prompts that are scored: which begin, and a chunk of them at a time, beside the rows that decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence as Items

import mlx.core as mx

from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import LEAST_TOKENS, Prefix, PrefixCache, common
from worker.engine.line_state import EngineStats
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.scheduler import Scheduler, SequenceGroup
from worker.engine.scoring.head import SplitModel
from worker.engine.scoring.item import Item
from worker.engine.scoring.likelihoods import LOGITS_BYTES
from worker.engine.scoring.packed_unit import PackedUnit
from worker.engine.scoring.plan import Pass, Stem, alone, similar, stems
from worker.engine.scoring.task import Scores
from worker.engine.scoring.unit import Unit

WINDOW = 1024
"""Prompts among which those that are scored together are chosen."""
MOST_STEMS = 64
MOST_ROWS = 64
"""Rows of a batch: of stems, and of what follows them."""
STEMS_PART = 3
"""Of the memory stems may have this part: most have more than one text that goes on from them."""
LONGEST_PACKED = 2048
"""Tokens of a packed text behind what all share: its blocks have copies of all that they look at, in float32."""
UNKNOWN_MEMORY = 2 << 30
"""Bytes for a unit, where there is no limit."""
LOGITS_PART = 4
"""Of the memory for caches logits may have this part."""


class Scoring:
    """Scores prompts in units, those that came first before others but for such as are like them in length.

    ``begin`` is told the items of a unit, and gives the keys of lines that shall not begin. ``step_size`` is the most
    tokens of a chunk. Memory is shared with the rows of ``scheduler``: a unit takes what they leave.
    """

    def __init__(
        self,
        model: LoadedModel,
        scheduler: Scheduler,
        prefixes: PrefixCache,
        stats: EngineStats,
        begin: Callable[[Items[Item]], frozenset[Hashable]],
        step_size: int,
    ) -> None:
        self._model = model
        self._split: SplitModel | None = None
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._stats = stats
        self._begin = begin
        self._step_size = step_size
        self._queue: deque[Item] = deque()
        self._known: tuple[list[Item], list[Stem]] = [], []
        self._making: deque[PrefillBatch] = deque()
        self._unit: Unit | PackedUnit | None = None
        self._computed: list[Unit | PackedUnit] = []
        self._blank: list[Item] = []
        self._read: list[Unit | PackedUnit] = []
        self._last: list[mx.array] = []

    def __len__(self) -> int:
        """Prompts that wait or are under way."""
        return len(self._queue) + sum(len(unit.items) for unit in self._under_way())

    @property
    def makes_prefixes(self) -> bool:
        """Whether prefixes are being computed, which nobody else may go on from meanwhile."""
        return bool(self._making)

    def add(self, item: Item) -> None:
        """Queue a prompt behind all others of its rank."""
        place = len(self._queue)
        while place and self._queue[place - 1].line.rank > item.line.rank:
            place -= 1
        self._queue.insert(place, item)

    def add_first(self, item: Item) -> None:
        """Queue one that was under way before, ahead of all others."""
        self._queue.appendleft(item)

    def drop(self, key: Hashable) -> None:
        """Forget the prompts of a line. What is under way is computed to its end, for nothing."""
        self._queue = deque(item for item in self._queue if item.key != key)
        for unit in self._under_way():
            for item in unit.items:
                if item.key == key:
                    item.sequences = []

    def clear(self) -> None:
        """Forget what is under way. What waits goes on waiting."""
        self._making.clear()
        self._unit, self._computed, self._blank, self._read = None, [], [], []
        self._last = []
        self._scheduler.room.lent = 0

    def upcoming(self, only: frozenset[Hashable] | None) -> list[Item]:
        """The prompts that are scored next, where only these lines (None: all) may begin, and those that have begun."""
        return self._next(only).items

    def advance(self, most: int) -> tuple[int, list[tuple[Item, Scores | None]]]:
        """Start a chunk of at most ``most`` tokens: the tokens it has, padding included, and what was found of earlier
        ones, None where the logits are not finite."""
        ready, self._computed = self._computed, []
        found: list[tuple[Item, Scores | None]] = [(item, Scores(item.first)) for item in self._blank]
        self._blank = []
        tokens = 0
        if self._unit is None and most:
            self._begin_unit()
        if self._making:
            tokens = self._make_prefix(most)
        elif self._unit is not None and most:
            unit = self._unit
            tokens, arrays = unit.advance(most)
            self._start(arrays)
            if unit.done:
                self._stats.prefilled_tokens += unit.tokens
                self._unit, self._computed = None, [unit]
                self._scheduler.room.lent = 0
        found += [pair for unit in ready for pair in self._results(unit)]
        self._read = ready
        return tokens, [pair for pair in found if pair[0].sequences]

    def hand_over(self, item: Item, group: SequenceGroup) -> PrefillBatch | None:
        """The batch that has the caches of an item that was just scored, for ``group`` to go on from; None where its
        prompt must be computed again."""
        if self._model.draft is not None:  # which has read nothing of it
            return None
        batches = (unit.hand_over(item, group) for unit in self._read if item in unit.items)
        return next(batches, None)

    def _results(self, unit: Unit | PackedUnit) -> Iterator[tuple[Item, Scores | None]]:
        """What was found of a unit. A packed text that is not finite may have it from its neighbours: it is queued
        again, to be scored by itself."""
        again = []
        for item, scores in unit.results():
            if scores is None and item.sequences and isinstance(unit, PackedUnit) and len(unit.items) > 1:
                item.again, item.single, item.cached = True, True, 0
                again.append(item)
            else:
                yield item, scores
        self._queue.extendleft(reversed(again))

    def _start(self, arrays: list[mx.array]) -> None:
        """Start a chunk, and wait for the one before: more of them would only hold memory."""
        mx.async_eval(arrays)
        mx.eval(self._last)
        self._last = arrays[:1]

    def _under_way(self) -> Iterator[Unit | PackedUnit]:
        """Units that are not read yet."""
        yield from self._computed
        if self._unit is not None:
            yield self._unit

    def _next(self, only: frozenset[Hashable] | None) -> Pass:
        """What the next unit scores: the stem of the prompt that waits first, and those that share most with it, or are
        nearest to it in length."""
        window: list[Item] = []
        for item in self._queue:
            if only is None or item.again or item.key in only:
                if window and item.line.rank != window[0].line.rank:
                    break
                if item.blank or item.single:
                    return Pass([alone(item)])
                window.append(item)
                if len(window) == WINDOW:
                    break
        if not window:
            self._known = [], []
            return Pass([])
        found = self._stems_of(window)
        first = next(stem for stem in found if window[0] in stem.items)
        if not self._model.batchable:
            return Pass([first])
        shared = {id(stem): min(first.unscored, stem.unscored, common(first.tokens, stem.tokens)) for stem in found}
        most = max((shared[id(stem)] for stem in found if stem is not first), default=0)
        if most >= LEAST_TOKENS:  # those of other examples would keep these from being computed once
            found = [stem for stem in found if stem is first or 2 * shared[id(stem)] >= most]
        same = min(shared[id(stem)] for stem in found) if most >= LEAST_TOKENS else 0
        if (len(first.items) > 1 or same) and _packable(first, same) and self._splitting.packs:
            packed = self._packed(first, found, same)
            if self._fits(packed):  # rows can have the tokens of a few texts at a time
                return packed
        found = sorted(found, key=lambda stem: (stem is not first, abs(stem.length - first.length)))
        return Pass(self._fitting(found, same))

    def _stems_of(self, window: list[Item]) -> list[Stem]:
        """The stems of a window, which are asked for again and again while rows decode."""
        if self._known[0] != window:
            self._known = window, stems(window, sharing=self._model.prefixes)
        return self._known[1]

    def _packed(self, first: Stem, found: list[Stem], shared: int) -> Pass:
        """As many stems as make a chunk and have room, those first that have most in common with the ``first``."""
        alike = {id(stem): common(first.tokens, stem.tokens) for stem in found}
        chosen, tokens = [first], first.distinct - shared
        for stem in sorted(found, key=lambda stem: -alike[id(stem)]):
            if stem is first or not _packable(stem, shared):
                continue
            more = tokens + stem.distinct - alike[id(stem)]
            if more > self._step_size or self._scheduler.room.sizes.prompts([more]) > self._left:
                break
            chosen.append(stem)
            tokens = more
        return Pass(chosen, tokens)

    def _fitting(self, found: list[Stem], shared: int) -> list[Stem]:
        """As many of the stems, in their order, as make a batch and have room; one in any case. They have ``shared``
        tokens in common that are computed once."""
        chosen: list[Stem] = []
        for stem in found[:MOST_STEMS]:
            lengths = [other.length for other in (*chosen, stem)]
            alike = similar(min(lengths) - shared, max(lengths) - shared, padding=self._model.padded_prefill)
            few = (max(lengths) - shared) * len(lengths) <= self._step_size
            small = STEMS_PART * self._scheduler.room.sizes.prompts(lengths) <= self._left
            if chosen and not (alike and few and small):
                break
            chosen.append(stem)
        return chosen

    @property
    def _splitting(self) -> SplitModel:
        if self._split is None:
            self._split = SplitModel(self._model)
        return self._split

    @property
    def _left(self) -> int:
        """Bytes that a unit may take, unless it is of a single stem."""
        left = self._scheduler.left
        return UNKNOWN_MEMORY if left is None else left

    def _needed(self, chosen: Pass) -> int:
        """Bytes that the caches of a unit take at most."""
        sizes = self._scheduler.room.sizes
        if chosen.packed:
            return sizes.prompts([chosen.packed])
        texts = [len(item.tokens) for stem in chosen.stems for item in stem.items if item.length > stem.length]
        longest = sorted(texts, reverse=True)[: self._rows(chosen.stems)]
        return sizes.prompts([stem.length for stem in chosen.stems]) + sizes.prompts(longest)

    def _rows(self, chosen: list[Stem]) -> int:
        """Rows of a batch of what follows the stems: as many as there is room for."""
        sizes = self._scheduler.room.sizes
        left = self._left - sizes.prompts([stem.length for stem in chosen])
        longest = max(stem.longest for stem in chosen)
        return max(1, min(MOST_ROWS, left // max(1, sizes.prompts([longest]))))

    def _fits(self, chosen: Pass) -> bool:
        return self._scheduler.room.memory is None or self._needed(chosen) <= self._left

    def _begin_unit(self) -> None:
        chosen = self._next(self._scheduler.only)
        room = self._scheduler.room
        room.lent = 0
        if not chosen.stems:
            return
        if not self._fits(chosen) and (self._scheduler.running or self._scheduler.staged):
            room.lent = self._needed(chosen)  # rows make room from now on
            return
        if not self._fits(chosen) and len(chosen.stems[0].items) > 1:
            chosen = Pass([alone(chosen.stems[0].items[0])])  # without copies it has room
        if self._scheduler.staged >= MOST_ROWS and any(stem.generates for stem in chosen.stems):
            return  # whose rows would wait, with caches
        refused = self._begin(chosen.items)
        taken = {id(item): item.key for item in chosen.items}
        self._queue = deque(item for item in self._queue if id(item) not in taken)
        begun = set(taken.values())
        for item in self._queue:  # further prompts of the same lines
            item.again = item.again or item.key in begun
        for stem in chosen.stems:
            stem.items = [item for item in stem.items if item.key not in refused]
        chosen.stems = [stem for stem in chosen.stems if stem.items]
        if not chosen.stems:
            return
        if chosen.items[0].blank:
            self._blank += chosen.items
            return
        room.lent = self._needed(chosen)
        self._unit = self._unit_of(chosen)

    def _unit_of(self, chosen: Pass) -> Unit | PackedUnit:
        model, stems = self._splitting, chosen.stems
        unscored = min(stem.unscored for stem in stems)
        prefix, made = self._prefix_of(stems, unscored)
        memory = self._scheduler.room.memory
        logits = LOGITS_BYTES if memory is None else min(LOGITS_BYTES, memory // LOGITS_PART)
        if chosen.packed:
            packed = PackedUnit(model, chosen.items, prefix, logits=logits)
            for item, cached in zip(packed.items, packed.cached, strict=True):
                item.cached = cached - made
                made = 0
            return packed
        skipped = len(prefix or ())
        for stem in stems:
            for place, item in enumerate(stem.items):
                item.cached = stem.length if place else skipped - made
            made = 0
        padding = self._model.padded_prefill
        return Unit(model, stems, prefix, padding=padding, rows=self._rows(stems), logits=logits)

    def _prefix_of(self, chosen: list[Stem], unscored: int) -> tuple[Prefix | None, int]:
        """What all stems begin with, if it is worth keeping, and how many tokens of it are computed now."""
        for stem in chosen:
            if stem.unscored >= LEAST_TOKENS:
                self._prefixes.see(stem.tokens[: stem.unscored + 1])
        first = chosen[0].tokens
        shared = unscored
        for stem in chosen[1:]:
            shared = min(shared, common(first[:shared], stem.tokens))
        group = SequenceGroup(list(first[:shared]), shared, shared)
        self._prefixes.assign([group])
        planned = self._prefixes.planned()
        prefix = group.prefix
        if prefix is not None and prefix.caches is None and prefix not in planned:
            return None, 0  # another's, who has not computed it yet
        self._making.extend(PrefillBatch.of_prefix(self._model, longer) for longer in planned)
        return prefix, len(prefix or ()) - group.cached

    def _make_prefix(self, most: int) -> int:
        batch = self._making[0]
        tokens = batch.advance(most) if not batch.done else 0
        self._start(batch.arrays())
        if batch.done and batch.makes is not None:
            self._making.popleft()
            self._stats.prefilled_tokens += batch.tokens
            caches = prompt_cache.pack(batch.take(batch.groups).caches)
            mx.async_eval(prompt_cache.arrays(caches))
            self._prefixes.computed(batch.makes, caches, prompt_cache.size(caches))
        return tokens


def _packable(stem: Stem, shared: int) -> bool:
    """Whether the texts of a stem may be in a packed sequence, behind ``shared`` tokens."""
    return not stem.generates and stem.longest - shared <= LONGEST_PACKED
