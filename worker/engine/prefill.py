"""Prompts into caches: a batch of prompts of similar length, right-padded, a chunk at a time."""

from __future__ import annotations

import mlx.core as mx

from worker.engine.caches import prompt_cache
from worker.engine.caches.prefix_cache import Prefix
from worker.engine.caches.prompt_cache import Cache, Prefilled
from worker.engine.loading.model import LoadedModel
from worker.engine.scheduler import SequenceGroup

RECURRENT_COLUMNS = 255
"""mlx-lm's state-space layers work in parts of 256 columns, and handle padding right within one part only; a chunk may
be one column wider than the others."""


class PrefillBatch:
    """The prompts of some groups on their way into caches, and afterwards the holder of these caches.

    All groups have the same prefix, or none; one that they have must be computed before the first :meth:`advance`.
    When :attr:`done`, rows are taken out with :meth:`take`. ``makes`` is the prefix that the batch is computed for,
    see :meth:`of_prefix`; ``tokens`` is how many tokens the batch computes, and ``columns`` the same with padding.
    ``ready_at`` is the engine's: when the prompts were computed."""

    def __init__(self, model: LoadedModel, groups: list[SequenceGroup], makes: Prefix | None = None) -> None:
        if not groups or (len(groups) > 1 and not model.batchable):
            raise ValueError("a batch has one prompt, or several of a model that can batch them")
        self.groups = list(groups)
        self.makes = makes
        self.done = False
        self.ready_at = 0.0
        self._prefix: Prefix | None = groups[0].prefix
        self._skipped = len(self._prefix or ())
        self._model = model
        self._lengths = [group.length for group in groups]
        self._longest = max(self._lengths)
        self._padded = self._longest > min(self._lengths)
        self._position = 0
        self._caches: list[Cache] = []
        self._inputs = [list(group.tokens[self._skipped : self._skipped + group.length]) for group in groups]
        self.tokens = sum(self._lengths)
        self.columns = self._longest * len(groups)
        for group in groups:
            group.prefix = None  # which may be given up by then, while rows of the group run for long

    @classmethod
    def of_prefix(cls, model: LoadedModel, prefix: Prefix) -> PrefillBatch:
        """The batch of one row that computes ``prefix``; its caches are for :meth:`PrefixCache.computed`."""
        length = len(prefix) - len(prefix.parent or ())
        group = SequenceGroup(list(prefix.tokens), length, end=len(prefix), prefix=prefix.parent)
        return cls(model, [group], prefix)

    def prefilled(self, group: SequenceGroup) -> int:
        """How many of the group's tokens are computed, those of its prefix among them, and once all are also the one
        that is left to the first step of decoding."""
        return self._skipped + min(group.length, self._position) + int(self.done) if self._caches else 0

    def advance(self, step_size: int) -> int:
        """Compute one chunk of at most ``step_size`` tokens over all rows; the tokens it had, padding included.

        Lazy work is left to the caller's evaluation of :meth:`arrays`.
        """
        rows = len(self._lengths)
        if not self._caches:
            self._begin()
        if self._longest == 0:
            self._finish()
            return 0
        width = self._chunk_of(step_size // rows)
        end = self._position + width
        if self._padded:
            prompt_cache.announce(self._caches, [length - self._position for length in self._lengths], width)
        columns = [line[self._position : end] for line in self._inputs]
        padded = [column + [0] * (width - len(column)) for column in columns]
        self._model.forward(mx.array(padded, dtype=mx.int32), self._caches)
        self._position = end
        if end >= self._longest:
            self._finish()
        return rows * width

    def complete(self, step_size: int) -> None:
        """Compute all that is left, in chunks of at most ``step_size`` tokens, and wait for it."""
        while not self.done:
            self.advance(step_size)
            mx.eval(self.arrays())

    def _begin(self) -> None:
        if not self._model.batchable:
            self._caches = self._model.new_cache()
            return
        if self._prefix is None:
            self._caches = prompt_cache.new_batch([self._model.new_cache() for _ in self._lengths])
        else:
            self._caches = prompt_cache.repeat(self._prefix.caches, len(self._lengths))
            self._prefix = None
        if self._padded:
            prompt_cache.prepare(self._caches, self._lengths)

    def _chunk_of(self, most: int) -> int:
        """Columns of the next chunk: even parts of at most ``most``, yet not below 2, because a sliding window takes a
        single padded column for a decode step."""
        rest = self._longest - self._position
        if self._padded and prompt_cache.recurrent(self._caches):
            most = min(most, RECURRENT_COLUMNS)
        parts = max(1, min(-(-rest // max(1, most)), rest // 2))
        return -(-rest // parts)

    def arrays(self) -> list[mx.array]:
        return prompt_cache.arrays(self._caches)

    def take(self, wanted: list[SequenceGroup]) -> Prefilled:
        """A row for each entry of ``wanted``, in that order. The caches are those of the whole batch: rows that join
        others are copied one by one; without others they take over the caches, once the batch needs them no more."""
        rows = [self.groups.index(group) for group in wanted]
        lengths = [self._skipped + group.length for group in wanted]
        caches, spare = self._caches, not any(group.rows for group in self.groups)
        if not self._model.batchable and not spare:
            caches = prompt_cache.duplicate(caches)
        self.purge()
        return Prefilled(caches, rows, lengths, spare)

    def purge(self) -> None:
        """Forget groups with no rows left to start, as those that were dropped. Their caches go when they are half of
        the batch's: each row is copied once, in the mean."""
        left = [index for index, group in enumerate(self.groups) if group.rows]
        if not left:
            self._caches, self.groups = [], []
        elif len(left) * 2 <= len(self.groups):
            self._caches = prompt_cache.fork(self._caches, left)
            self.groups = [self.groups[index] for index in left]

    @property
    def empty(self) -> bool:
        return not self.groups

    def _finish(self) -> None:
        self.done = True
        self._position = self._longest
        self._inputs = []
        if self._model.batchable:
            prompt_cache.finalize(self._caches)
