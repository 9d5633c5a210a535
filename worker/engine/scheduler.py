"""What begins when: admission, prefill batches and free rows. Policy only: no tensors, no model, no clock.

A :class:`SequenceGroup` passes four states: waiting, prefilling, ready (its prompt is computed, rows of it have still
to start), running. Prompts are prefilled a little ahead, while
all rows are busy, so that a row that ends is followed by the next one in the very next step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from worker.engine.sequence import WITHOUT_CONTEXT, PreparedLine, Sequence

SIMILAR_RATIO = 1.25
SIMILAR_SLACK = 32
"""Prompts are prefilled together while the longest has at most this ratio of the shortest, and this many tokens more:
what padding may cost, against another forward of the model."""
MOST_OVERTAKEN = 256
"""Groups of lower ranks that go before one that came earlier: none waits for ever."""
LOOK_AHEAD = 4
"""A wave of prompts is chosen among this many waves' worth of waiting ones."""


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """Sequences that go on from the same tokens: one prompt to prefill, then a row for each of them.

    All ``tokens`` but the last are prefilled: the last is the first input of decoding. ``length`` is how many tokens
    are to be prefilled, ``end`` the most tokens a row may come to hold. ``sequences`` are those whose rows have still
    to start, ``key`` is that of their line, and ``running`` is how many rows decode. ``prefix`` has the caches of the
    tokens before the ``length`` (None: there are none), and ``cached`` is how many of those were there already. Groups
    of a lower ``rank`` go first; ``overtaken`` counts those that came later and went before. ``again`` says that the
    group is of a line that has begun before.
    """

    tokens: list[int]
    length: int
    end: int
    sequences: list[Sequence] = field(default_factory=list)
    key: Hashable = None
    running: int = 0
    prefix: Any = None
    cached: int = 0
    rank: int = 0
    overtaken: int = 0
    again: bool = False

    @property
    def rows(self) -> int:
        """How many rows have still to start."""
        return len(self.sequences)

    @property
    def done(self) -> bool:
        return not self.sequences and self.running == 0


class Scheduler:
    """By rank, and within one first come, first served but for neighbours of like length, within a number of rows and
    a budget of bytes.

    ``row_bytes`` gives the cache bytes of a row that holds a number of tokens. A batch is as wide as its longest row,
    so what is charged is the number of rows times the cost of the longest of them: that is what the batch can grow to.
    ``assign`` may give the groups of a wave prefixes, and take those off their ``length``, before they are put into
    batches.
    """

    def __init__(
        self,
        *,
        decode_concurrency: int = 32,
        prompt_concurrency: int = 8,
        memory: int | None = None,
        row_bytes: Callable[[int], int] = lambda tokens: 0,
        padding: bool = True,
        assign: Callable[[list[SequenceGroup]], None] = lambda wave: None,
    ) -> None:
        if decode_concurrency < 1 or prompt_concurrency < 1:
            raise ValueError("decode_concurrency and prompt_concurrency must be at least 1")
        self.decode_concurrency = decode_concurrency
        self.prompt_concurrency = prompt_concurrency
        self.memory = memory
        self.most: int | None = None
        """What one row may take when it runs alone, where that is more than ``memory``."""
        self.only: frozenset[Hashable] | None = None
        """The lines that may begin; None: all of them."""
        self._row_bytes = row_bytes
        self._padding = padding
        self._assign = assign
        self._waiting: deque[SequenceGroup] = deque()
        self._prefilling: list[SequenceGroup] = []
        self._ready: deque[SequenceGroup] = deque()
        self._running: set[SequenceGroup] = set()

    @property
    def waiting(self) -> int:
        """Groups whose prompt has not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that decode."""
        return sum(group.running for group in self._running)

    @property
    def staged(self) -> int:
        """Rows whose prompts are being prefilled, or are ready."""
        return sum(group.rows for group in (*self._prefilling, *self._ready))

    @property
    def free(self) -> int:
        """Rows that could start now, were their prompts ready."""
        return max(0, self.decode_concurrency - self.running)

    def too_large(self, group: SequenceGroup) -> str | None:
        """Why the group can never run, even alone; None when it can."""
        needed = self._row_bytes(group.end)
        most = self.memory if self.most is None else self.most
        if most is None or needed <= most:
            return None
        return (
            f"a row of {group.end} tokens (prompt and max_tokens) needs {needed} bytes of cache, "
            f"and the memory limit leaves {most}"
        )

    def context_of(self, line: PreparedLine, context: int | None) -> int | None:
        """The most tokens that a row of the line may come to hold: the model's ``context``, and for a text that goes to
        its end also no more than the memory has room for. None: no limit is known."""
        most = self.memory if self.most is None else self.most
        least = len(line.prompt) + 1
        end = least + WITHOUT_CONTEXT if context is None else context
        if line.sampling.max_tokens is not None or most is None or self._row_bytes(end) <= most:
            return context
        return max(least, least + bisect_right(range(least, end), most, key=self._row_bytes) - 1)

    def add(self, group: SequenceGroup) -> None:
        """Queue a group behind all others of its rank, and of higher ones that were overtaken often enough."""
        place = len(self._waiting)
        while place and (other := self._waiting[place - 1]).rank > group.rank and other.overtaken < MOST_OVERTAKEN:
            other.overtaken += 1
            place -= 1
        self._waiting.insert(place, group)

    def add_first(self, group: SequenceGroup) -> None:
        """Queue a group that was running before, ahead of all others, those that are yet to come included."""
        group.overtaken = MOST_OVERTAKEN
        self._waiting.appendleft(group)

    def begin(self) -> list[list[SequenceGroup]]:
        """Groups whose prompts shall be prefilled now, in batches of one prefix and similar length; empty when none.

        One wave at a time: while it is being prefilled nothing more begins. A wave begins when rows are free and no
        prompt is ready for them, or when nothing is ready at all; it is ``prompt_concurrency`` prompts, so that the
        weights are read once for all of them.
        """
        staged = sum(group.rows for group in self._ready)
        if self._prefilling or not self._waiting or staged >= max(1, self.free):
            return []
        wanted = max(self.free, self.prompt_concurrency)
        for group in self.upcoming(self.only):
            if staged >= wanted or not self._may_hold(group):
                break
            self._waiting.remove(group)
            self._prefilling.append(group)
            staged += group.rows
        self._assign(self._prefilling)
        return self._batches(self._prefilling)

    def upcoming(self, only: frozenset[Hashable] | None) -> list[SequenceGroup]:
        """The next wave, where only these lines (None: all) may begin, and those that have begun before.

        It is the group that waits first, and of those behind it the nearest to it in length, which waste the least
        padding. Since the first always goes, none waits for longer than there are groups before it. A wave is of one
        rank.
        """
        may_begin = (group for group in self._waiting if only is None or group.again or group.key in only)
        near = list(islice(may_begin, LOOK_AHEAD * self.prompt_concurrency))
        if not near:
            return []
        near = [group for group in near if group.rank == near[0].rank]
        first = near[0].length
        chosen = sorted(range(len(near)), key=lambda place: (place > 0, abs(near[place].length - first)))
        return [near[place] for place in sorted(chosen[: self.prompt_concurrency])]

    def prefilled(self, groups: list[SequenceGroup]) -> None:
        """These prompts are computed: their rows may start."""
        for group in groups:
            self._prefilling.remove(group)
            self._ready.append(group)

    def start(self) -> list[tuple[SequenceGroup, list[Sequence]]]:
        """Groups and the sequences of each whose rows start now."""
        started = []
        while self._ready and self.free:
            group = self._ready[0]
            count = self._startable(group)
            if count == 0:
                break
            rows, group.sequences = group.sequences[:count], group.sequences[count:]
            group.running += count
            self._running.add(group)
            started.append((group, rows))
            if not group.sequences:
                self._ready.popleft()
        return started

    def ended(self, group: SequenceGroup) -> None:
        """One running row of the group has ended."""
        group.running -= 1
        if group.running == 0:
            self._running.discard(group)

    def drop(self, *groups: SequenceGroup) -> None:
        """Forget the rows of groups that have not started, wherever they are. Running rows end by :meth:`ended`."""
        for group in groups:
            for place in (self._waiting, self._prefilling, self._ready):
                if group in place:
                    place.remove(group)
            group.sequences = []

    def narrow(self) -> None:
        """From now on at most half as many rows, and prompts, together."""
        self.decode_concurrency = max(1, self.decode_concurrency // 2)
        self.prompt_concurrency = max(1, self.prompt_concurrency // 2)

    def clear(self) -> None:
        """Forget everything that is under way; what waits goes on waiting."""
        self._prefilling.clear()
        self._ready.clear()
        self._running.clear()

    def _capacity(self, *more: SequenceGroup) -> int | None:
        """How many rows the memory has room for, with ``more`` among them; None without a limit."""
        if self.memory is None:
            return None
        held = (*self._prefilling, *self._ready, *self._running, *more)
        size = self._row_bytes(max((group.end for group in held), default=0))
        return self.memory // size if size else None

    def _may_hold(self, group: SequenceGroup) -> bool:
        """Whether there is room for one more prefilled prompt. Alone there always is."""
        capacity = self._capacity(group)
        held = self.running + len(self._prefilling) + len(self._ready)
        return capacity is None or held == 0 or held < capacity

    def _startable(self, group: SequenceGroup) -> int:
        """How many rows of a ready group may start: its prompt is held until the last of them has."""
        count = min(group.rows, self.free)
        capacity = self._capacity()
        if capacity is None:
            return count
        room = capacity - self.running - len(self._ready) - len(self._prefilling)
        if count == group.rows and count <= room + 1:
            return count
        return max(min(count, room), 0 if self.running else 1)

    def _batches(self, wave: list[SequenceGroup]) -> list[list[SequenceGroup]]:
        batches: list[list[SequenceGroup]] = []
        order = {id(group.prefix): place for place, group in reversed(list(enumerate(wave)))}
        for group in sorted(wave, key=lambda item: (order[id(item.prefix)], item.length)):
            first = batches[-1][0] if batches else group
            if batches and first.prefix is group.prefix and self._similar(first.length, group.length):
                batches[-1].append(group)
            else:
                batches.append([group])
        return batches

    def _similar(self, shortest: int, length: int) -> bool:
        if not self._padding or shortest == 0:
            return shortest == length
        return length <= shortest * SIMILAR_RATIO + SIMILAR_SLACK
