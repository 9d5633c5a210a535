"""Prompts under way: batches that are computed between the steps, and computed ones whose rows have still to start."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence as Items
from itertools import chain

import mlx.core as mx

from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import PrefixCache
from worker.engine.caches.prompt_cache import Prefilled
from worker.engine.line_state import EngineStats
from worker.engine.loading.model import LoadedModel
from worker.engine.pacing import LEAST_CHUNK, Pace
from worker.engine.prefill import PrefillBatch
from worker.engine.scheduler import Scheduler, SequenceGroup
from worker.engine.sequence import Sequence


class Staging:
    """Computes the prompts that the scheduler begins, a chunk at a time, and hands their rows to the decode batch.

    ``begin`` is told the groups whose prompts are about to begin, and gives the keys of lines that shall not.
    ``step_size`` is the most tokens of a chunk; ``pace`` makes it smaller while rows decode.
    """

    def __init__(
        self,
        model: LoadedModel,
        scheduler: Scheduler,
        prefixes: PrefixCache,
        stats: EngineStats,
        begin: Callable[[Items[SequenceGroup]], frozenset[Hashable]],
        step_size: int,
        clock: Callable[[], float],
    ) -> None:
        self.pace = Pace(step_size)
        self._model = model
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._stats = stats
        self._begin = begin
        self._step_size = step_size
        self._clock = clock
        self._prefilling: deque[PrefillBatch] = deque()
        self._ready: list[PrefillBatch] = []

    def places(self) -> dict[SequenceGroup, PrefillBatch]:
        """The batches that compute or hold the prompts of groups."""
        return {group: batch for batch in (*self._prefilling, *self._ready) for group in batch.groups}

    def clear(self) -> None:
        """Forget all prompts."""
        self._prefilling.clear()
        self._ready.clear()

    def adopt(self, batch: PrefillBatch | None, group: SequenceGroup) -> None:
        """Have a group's rows start from a batch that was computed elsewhere; None: it must be computed again."""
        if batch is None:
            self._scheduler.add_first(group)
            return
        self._scheduler.adopt(group)
        if batch not in self._ready:
            batch.ready_at = self._clock()
            self._ready.append(batch)

    def start(self) -> Iterator[tuple[list[Sequence], Prefilled, list[int]]]:
        """Rows that start now, with their caches and the last tokens of their prompts."""
        self._purge()
        started: dict[PrefillBatch, list[tuple[Sequence, SequenceGroup]]] = {}
        for group, rows in self._scheduler.start():
            batch = next(batch for batch in self._ready if group in batch.groups)
            for row in rows:
                if row.first_token_at is None:
                    row.waited_s = self._clock() - batch.ready_at
            started.setdefault(batch, []).extend((row, group) for row in rows)
        for batch, pairs in started.items():
            groups = [group for _, group in pairs]
            yield [row for row, _ in pairs], batch.take(groups), [group.tokens[-1] for group in groups]
        self._ready = [batch for batch in self._ready if not batch.empty]

    def advance(self, running: int) -> int:
        """Compute a chunk of prompts, with so many rows decoding; the tokens it had, padding included."""
        self._purge()
        budget = self.pace.chunk(running, self._scheduler.coming)
        computed = 0
        while computed < budget:
            if not self._prefilling:
                self._begin_batches()
            if not self._prefilling:
                break
            batch = self._prefilling[0]
            if not batch.done:
                computed += self._compute(batch, budget - computed, alone=not running)
            if batch.done:
                self._prefilling.popleft()
                self._prefilled(batch)
            if running and 2 * (budget - computed) < LEAST_CHUNK:
                break  # what is left would make a chunk that is hardly worth reading the weights for
        return computed

    def _compute(self, batch: PrefillBatch, most: int, *, alone: bool) -> int:
        began = self._clock()
        tokens = batch.advance(most)
        if not alone:  # the next read waits for this chunk anyway; without rows nothing else would
            mx.async_eval(batch.arrays())
            return tokens
        mx.eval(batch.arrays())
        self.pace.prompts(tokens, self._clock() - began)
        return tokens

    def _begin_batches(self) -> None:
        batches = self._scheduler.begin()
        begun = list(chain.from_iterable(batches))
        refused = self._begin(begun) if begun else frozenset()
        self._scheduler.drop(*(group for group in begun if group.key in refused))
        batches = [[group for group in groups if group.key not in refused] for groups in batches]
        self._prefilling.extend(PrefillBatch.of_prefix(self._model, prefix) for prefix in self._prefixes.planned())
        self._prefilling.extend(PrefillBatch(self._model, groups) for groups in batches if groups)

    def _prefilled(self, batch: PrefillBatch) -> None:
        self._stats.prefilled_tokens += batch.tokens
        if batch.columns >= self._step_size:
            mx.clear_cache()  # chunks of many widths leave buffers behind that nothing else can use
        if batch.makes is None:
            batch.ready_at = self._clock()
            self._scheduler.prefilled([group for group in batch.groups if group.rows])
            self._ready.append(batch)
            return
        caches = prompt_cache.pack(batch.take(batch.groups).caches)
        mx.async_eval(prompt_cache.arrays(caches))
        self._prefixes.computed(batch.makes, caches, prompt_cache.size(caches))

    def _purge(self) -> None:
        """Forget groups that were dropped, and batches with no others."""
        self._prefilling = deque(
            batch for batch in self._prefilling if batch.makes is not None or any(group.rows for group in batch.groups)
        )
        for batch in self._ready:
            batch.purge()
        self._ready = [batch for batch in self._ready if not batch.empty]
