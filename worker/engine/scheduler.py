"""What begins when, and what must go: admission, prefill batches and free rows. Policy only: no tensors, no model, no
clock.

A :class:`SequenceGroup` passes four states: waiting, prefilling, ready (its prompt is computed, rows of it have still
to start), running. Prompts are prefilled a little ahead, while all rows are busy, so that a row that ends is followed
by the next one in the very next step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from worker.engine.room import CacheBytes, Room
from worker.engine.sequence import Sequence

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


@dataclass(slots=True, eq=False)
class Staged:
    """Groups whose prompts are computed together, of ``lengths`` tokens. Their caches are one piece, there until the
    last row has started. ``ready``: they are computed."""

    groups: list[SequenceGroup]
    lengths: list[int]
    ready: bool = False

    @property
    def rows(self) -> int:
        """How many rows have still to start."""
        return sum(group.rows for group in self.groups)

    @property
    def waiting(self) -> list[tuple[SequenceGroup, Sequence]]:
        """Those rows, in their order, each with its group."""
        return [(group, row) for group in self.groups for row in group.sequences]


class Scheduler:
    """By rank, and within one first come, first served but for neighbours of like length, within a number of rows and
    a budget of bytes.

    ``sizes`` gives the bytes that caches take: see :class:`Room`. What begins must fit by what its texts are expected
    to need; where that was too little, :meth:`take_back` says who must go. ``assign`` may give the groups of a wave
    prefixes, and take those off their ``length``, before they are put into batches.
    """

    def __init__(
        self,
        *,
        decode_concurrency: int = 32,
        prompt_concurrency: int = 8,
        sizes: CacheBytes | None = None,
        padding: bool = True,
        assign: Callable[[list[SequenceGroup]], None] = lambda wave: None,
    ) -> None:
        if decode_concurrency < 1 or prompt_concurrency < 1:
            raise ValueError("decode_concurrency and prompt_concurrency must be at least 1")
        self.decode_concurrency = decode_concurrency
        self.prompt_concurrency = prompt_concurrency
        self.room = Room(sizes or CacheBytes())
        self.only: frozenset[Hashable] | None = None
        """The lines that may begin; None: all of them."""
        self._padding = padding
        self._assign = assign
        self._waiting: deque[SequenceGroup] = deque()
        self._staged: list[Staged] = []
        self._running: dict[Sequence, SequenceGroup] = {}
        self._started = 0
        self._blocked = False

    @property
    def waiting(self) -> int:
        """Groups whose prompt has not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that decode."""
        return len(self._running)

    @property
    def staged(self) -> int:
        """Rows whose prompts are being prefilled, or are ready."""
        return sum(batch.rows for batch in self._staged)

    @property
    def free(self) -> int:
        """Rows that could start now, were their prompts ready."""
        return max(0, self.decode_concurrency - self.running)

    @property
    def coming(self) -> int:
        """Rows that will take free slots as soon as their prompts are computed."""
        return min(self.free, self.staged + (0 if self._blocked else self.waiting))

    @property
    def left(self) -> int | None:
        """Bytes that rows and prompts leave, when rows have grown as expected; None: there is no limit."""
        room = self.room
        if room.memory is None:
            return None
        rows = max(room.decoding, room.sizes.decoding(room.ends(self._running, self._running)))
        return max(0, room.memory - rows - self._held(self._staged))

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

        One wave at a time: while it is being prefilled nothing more begins. A wave begins when fewer rows are ready
        than are free, or than half a wave: so there is one for the next free slot while the wave is computed. It is
        ``prompt_concurrency`` prompts, so that the weights are read once for all of them.
        """
        self._forget_started()
        ready = self.staged
        enough = max(self.free, (self.prompt_concurrency + 1) // 2)
        if not self._waiting or ready >= enough or not all(batch.ready for batch in self._staged):
            return []
        wave: list[SequenceGroup] = []
        rows, wanted = 0, max(self.free - ready, self.prompt_concurrency)
        self._blocked = False
        for group in self.upcoming(self.only):
            if rows >= wanted:
                break
            self._blocked = not self._may_begin([*wave, group])
            if self._blocked:
                break
            wave.append(group)
            rows += group.rows
        self._assign(wave)
        self._waiting = deque(group for group in self._waiting if group not in wave)
        batches = self._batches(wave)
        self._staged += [Staged(list(batch), [len(group.tokens) for group in batch]) for batch in batches]
        return batches

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
        """The prompts of a batch are computed: rows of these groups may start."""
        for batch in self._staged:
            batch.ready = batch.ready or any(group in batch.groups for group in groups)

    def adopt(self, group: SequenceGroup) -> None:
        """A group's prompt was computed elsewhere: its rows may start."""
        self._staged.append(Staged([group], [len(group.tokens)], ready=True))

    def start(self) -> list[tuple[SequenceGroup, list[Sequence]]]:
        """Groups and the sequences of each whose rows start now."""
        self._forget_started()
        started = []
        for batch in [batch for batch in self._staged if batch.ready]:
            count = self._startable(batch)
            for group in batch.groups:
                rows, group.sequences = group.sequences[:count], group.sequences[count:]
                count -= len(rows)
                for row in rows:
                    self._run(row, group)
                if rows:
                    started.append((group, rows))
            if batch.rows:
                break
        return started

    def ended(self, row: Sequence) -> None:
        """A running row has ended. Others are ignored."""
        group = self._running.pop(row, None)
        if group is not None:
            group.running -= 1

    def take_back(self) -> list[list[Sequence]]:
        """Rows that must go, so that what stays fits into the memory: they are no longer in a group, and are to be
        added again. Those of one history are together, and those that began last come first.

        Prompts that were computed ahead go first, then the rows that began last. The one that began first stays, so
        something always comes to its end; and since a row keeps its place, it is not always the same ones that go.
        """
        if self.room.memory is None:
            return []
        running = sorted(self._running, key=lambda row: (row.line.rank, row.started or 0))
        batches = [batch for batch in self._staged if batch.rows]
        gone: list[list[Sequence]] = []
        while not self._fits_now(running, batches):
            if batches and (running or len(batches) > 1):
                gone += [self._withdraw(group) for group in reversed(batches.pop().groups) if group.rows]
            elif len(running) > 1:
                self.ended(row := running.pop())
                gone.append([row])
            else:
                break
        if not running and batches and batches[0].ready and not self._startable(batches[0]):
            # Copies of a prompt and the prompt itself do not fit beside each other: one row goes on from the original.
            (first, row), *others = batches[0].waiting
            gone += [self._withdraw(group) for group in reversed(batches[0].groups) if group is not first]
            gone += [[other for group, other in others if group is first]]
            first.sequences = [row]
        return [rows for rows in gone if rows]

    def drop(self, *groups: SequenceGroup) -> None:
        """Forget the rows of groups that have not started, wherever they are. Running rows end by :meth:`ended`."""
        for group in groups:
            if group in self._waiting:
                self._waiting.remove(group)
            group.sequences = []

    def narrow(self) -> None:
        """From now on at most half as many rows, and prompts, together."""
        self.decode_concurrency = max(1, self.decode_concurrency // 2)
        self.prompt_concurrency = max(1, self.prompt_concurrency // 2)

    def clear(self) -> None:
        """Forget everything that is under way. What waits goes on waiting, with prompts whose computation was not
        noted yet."""
        for group in reversed([group for batch in self._staged for group in batch.groups if group.rows]):
            group.prefix, group.length, group.cached = None, len(group.tokens) - 1, 0
            self._waiting.appendleft(group)
        self._staged.clear()
        self._running.clear()
        self.room.decoding = 0

    def _run(self, row: Sequence, group: SequenceGroup) -> None:
        if row.started is None:
            self._started += 1
            row.started = self._started
        group.running += 1
        self._running[row] = group

    def _withdraw(self, group: SequenceGroup) -> list[Sequence]:
        rows, group.sequences = group.sequences, []
        return rows

    def _forget_started(self) -> None:
        self._staged = [batch for batch in self._staged if batch.rows]

    def _held(self, batches: Iterable[Staged]) -> int:
        """Bytes of the prompts of batches."""
        return sum(self.room.sizes.prompts(batch.lengths) for batch in batches)

    def _fits_now(self, running: list[Sequence], batches: list[Staged]) -> bool:
        """Whether there is room for the next step of these rows, beside these batches."""
        needed, held = self.room.needed(running), self._held(batches)
        if len(running) == self.running and self.room.decoding:
            self.room.has_now(self.room.decoding, held)  # idle places may be what is too much
            needed = min(needed, self.room.decoding)
        return self.room.has_now(needed, held)

    def _may_begin(self, wave: list[SequenceGroup]) -> bool:
        """Whether there is room for the prompts of a wave, now and when their rows run. Alone there always is."""
        room = self.room
        if room.memory is None or (len(wave) == 1 and not self._running and not self._staged):
            return True
        groups = [*chain.from_iterable(batch.groups for batch in self._staged), *wave]
        firsts = [group.sequences[0] for group in groups if group.rows]
        started = [
            length
            for batch in self._staged
            for group, length in zip(batch.groups, batch.lengths, strict=True)
            if not group.rows  # its caches are there nevertheless
        ]
        ends = room.ends([*self._running, *firsts], self._running)
        lengths = [len(group.tokens) for group in wave]
        # Prompts of a batch are padded to the longest, which is not known before they are put into batches.
        padded = sum(room.sizes.prompts([int(length * SIMILAR_RATIO) + SIMILAR_SLACK]) for length in lengths)
        now = max(room.decoding, room.needed(self._running))
        return room.has(room.sizes.decoding([*ends, *started])) and room.has(
            now, self._held(self._staged), min(padded, room.sizes.prompts(lengths))
        )

    def _startable(self, batch: Staged) -> int:
        """How many rows of a batch may start, in their order. Unless it is all of them its caches stay, beside copies
        of those that start."""
        rows = [row for _, row in batch.waiting]
        count = min(len(rows), self.free)
        if not count or self.room.memory is None or (len(rows) == 1 and not self._running):
            return count
        held = self._held(self._staged)
        ends = self.room.ends([*self._running, *rows], self._running)
        now = [len(row.prompt) + len(row.tokens) for row in rows]
        if count == len(rows) and self._room_for(ends, now, held - self._held([batch])):
            return count
        for fewer in range(min(count, len(rows) - 1), 0, -1):
            if self._room_for(ends[: self.running + fewer], now[:fewer], held):
                return fewer
        return int(not self._running and self._fits_now(rows[:1], self._staged))

    def _room_for(self, ends: list[int], starting: list[int], held: int) -> bool:
        """Whether there is room for rows that come to ``ends``, and now for those that are ``starting`` beside what the
        others take, idle places included."""
        sizes, decoding = self.room.sizes, self.room.decoding
        taken = decoding + sizes.decoding(starting) if self._running else 0
        return self.room.has(sizes.decoding(ends), held) and self.room.has_now(taken, held)

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
