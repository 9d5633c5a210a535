"""What begins when: admission, prefill groups and free rows. Policy only: no tensors, no model, no clock.

A :class:`Ticket` is one prompt to prefill and the rows that start from it. It passes four states: waiting, prefilling,
ready (its prompt is computed, rows of it have still to start), running. Prompts are prefilled a little ahead, while
all rows are busy, so that a row that ends is followed by the next one in the very next step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from worker.engine.sequence import WITHOUT_CONTEXT, PreparedLine

__all__ = ["Scheduler", "Ticket"]

SIMILAR_RATIO = 1.25
SIMILAR_SLACK = 32
"""Prompts are prefilled together while the longest has at most this ratio of the shortest, and this many tokens more:
what padding may cost, against another forward of the model."""
MOST_OVERTAKEN = 256
"""Tickets of lower ranks that go before one that came earlier: none waits for ever."""
LOOK_AHEAD = 4
"""A wave of prompts is chosen among this many waves' worth of waiting ones."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One prompt and the rows that start from it. ``owner`` is the engine's.

    ``length`` is how many tokens are to be prefilled, ``end`` the most tokens a row of it may come to hold, ``rows``
    how many rows have still to start. ``prefix`` is what the tokens before those are taken from (None: there are
    none), and ``cached`` how many of them nothing was computed for on the ticket's behalf. Those of a lower ``rank``
    go first; ``overtaken`` is how many that came later did.
    """

    owner: Any
    length: int
    end: int
    rows: int
    running: int = 0
    prefix: Any = None
    cached: int = 0
    rank: int = 0
    overtaken: int = 0

    @property
    def done(self) -> bool:
        return self.rows == 0 and self.running == 0


class Scheduler:
    """By rank, and within one first come, first served but for neighbours of like length, within a number of rows and
    a budget of bytes.

    ``row_bytes`` gives the cache bytes of a row that holds a number of tokens. A batch is as wide as its longest row,
    so what is charged is the number of rows times the cost of the longest of them: that is what the batch can grow to.
    ``assign`` may give the tickets of a wave prefixes, and take those off their ``length``, before they are grouped.
    """

    def __init__(
        self,
        *,
        decode_concurrency: int = 32,
        prompt_concurrency: int = 8,
        memory: int | None = None,
        row_bytes: Callable[[int], int] = lambda tokens: 0,
        padding: bool = True,
        assign: Callable[[list[Ticket]], None] = lambda wave: None,
    ) -> None:
        if decode_concurrency < 1 or prompt_concurrency < 1:
            raise ValueError("decode_concurrency and prompt_concurrency must be at least 1")
        self.decode_concurrency = decode_concurrency
        self.prompt_concurrency = prompt_concurrency
        self.memory = memory
        self.most: int | None = None
        """What one row may take when it runs alone, where that is more than ``memory``."""
        self.admits: Callable[[Ticket], bool] | None = None
        """Which waiting tickets may begin; None: all of them."""
        self._row_bytes = row_bytes
        self._padding = padding
        self._assign = assign
        self._waiting: deque[Ticket] = deque()
        self._prefilling: list[Ticket] = []
        self._ready: deque[Ticket] = deque()
        self._running: set[Ticket] = set()

    @property
    def waiting(self) -> int:
        """Tickets whose prompt has not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that decode."""
        return sum(ticket.running for ticket in self._running)

    @property
    def staged(self) -> int:
        """Rows whose prompts are being prefilled, or are ready."""
        return sum(ticket.rows for ticket in (*self._prefilling, *self._ready))

    @property
    def free(self) -> int:
        """Rows that could start now, were their prompts ready."""
        return max(0, self.decode_concurrency - self.running)

    def too_large(self, ticket: Ticket) -> str | None:
        """Why the ticket can never run, even alone; None when it can."""
        needed = self._row_bytes(ticket.end)
        most = self.memory if self.most is None else self.most
        if most is None or needed <= most:
            return None
        return (
            f"a row of {ticket.end} tokens (prompt and max_tokens) needs {needed} bytes of cache, "
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

    def add(self, ticket: Ticket) -> None:
        """Queue a ticket behind all others of its rank, and of higher ones that were overtaken often enough."""
        place = len(self._waiting)
        while place and (other := self._waiting[place - 1]).rank > ticket.rank and other.overtaken < MOST_OVERTAKEN:
            other.overtaken += 1
            place -= 1
        self._waiting.insert(place, ticket)

    def add_first(self, ticket: Ticket) -> None:
        """Queue a ticket that was running before, ahead of all others, those that are yet to come included."""
        ticket.overtaken = MOST_OVERTAKEN
        self._waiting.appendleft(ticket)

    def begin(self) -> list[list[Ticket]]:
        """Tickets whose prompts shall be prefilled now, in groups of one prefix and similar length; empty when none.

        One wave at a time: while it is being prefilled nothing more begins. A wave begins when rows are free and no
        prompt is ready for them, or when nothing is ready at all; it is ``prompt_concurrency`` prompts, so that the
        weights are read once for all of them.
        """
        staged = sum(ticket.rows for ticket in self._ready)
        if self._prefilling or not self._waiting or staged >= max(1, self.free):
            return []
        wanted = max(self.free, self.prompt_concurrency)
        for ticket in self.upcoming(self.admits):
            if staged >= wanted or not self._may_hold(ticket):
                break
            self._waiting.remove(ticket)
            self._prefilling.append(ticket)
            staged += ticket.rows
        self._assign(self._prefilling)
        return self._groups(self._prefilling)

    def upcoming(self, admits: Callable[[Ticket], bool] | None) -> list[Ticket]:
        """The next wave, of the waiting tickets that ``admits`` lets pass (None: all): the one that waits first, and of
        those behind it the ones nearest to it in length, which waste the least padding. Since the first always goes,
        none waits for longer than there are tickets before it. A wave is of one rank."""
        near = list(islice(filter(admits, self._waiting), LOOK_AHEAD * self.prompt_concurrency))
        if not near:
            return []
        near = [ticket for ticket in near if ticket.rank == near[0].rank]
        first = near[0].length
        chosen = sorted(range(len(near)), key=lambda place: (place > 0, abs(near[place].length - first)))
        return [near[place] for place in sorted(chosen[: self.prompt_concurrency])]

    def prefilled(self, tickets: list[Ticket]) -> None:
        """These prompts are computed: their rows may start."""
        for ticket in tickets:
            self._prefilling.remove(ticket)
            self._ready.append(ticket)

    def start(self) -> list[tuple[Ticket, int]]:
        """Tickets and how many rows of each start now."""
        started = []
        while self._ready and self.free:
            ticket = self._ready[0]
            count = self._startable(ticket)
            if count == 0:
                break
            ticket.rows -= count
            ticket.running += count
            self._running.add(ticket)
            started.append((ticket, count))
            if ticket.rows == 0:
                self._ready.popleft()
        return started

    def ended(self, ticket: Ticket) -> None:
        """One running row of the ticket has ended."""
        ticket.running -= 1
        if ticket.running == 0:
            self._running.discard(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Forget the rows of a ticket that have not started, wherever it is. Running rows end by :meth:`ended`."""
        for place in (self._waiting, self._prefilling, self._ready):
            if ticket in place:
                place.remove(ticket)
        ticket.rows = 0

    def narrow(self) -> None:
        """From now on at most half as many rows, and prompts, together."""
        self.decode_concurrency = max(1, self.decode_concurrency // 2)
        self.prompt_concurrency = max(1, self.prompt_concurrency // 2)

    def clear(self) -> None:
        """Forget everything that is under way; what waits goes on waiting."""
        self._prefilling.clear()
        self._ready.clear()
        self._running.clear()

    def _capacity(self, *more: Ticket) -> int | None:
        """How many rows the memory has room for, with ``more`` among them; None without a limit."""
        if self.memory is None:
            return None
        held = (*self._prefilling, *self._ready, *self._running, *more)
        size = self._row_bytes(max((ticket.end for ticket in held), default=0))
        return self.memory // size if size else None

    def _may_hold(self, ticket: Ticket) -> bool:
        """Whether there is room for one more prefilled prompt. Alone there always is."""
        capacity = self._capacity(ticket)
        held = self.running + len(self._prefilling) + len(self._ready)
        return capacity is None or held == 0 or held < capacity

    def _startable(self, ticket: Ticket) -> int:
        """How many rows of a ready ticket may start: its prompt is held until the last of them has."""
        count = min(ticket.rows, self.free)
        capacity = self._capacity()
        if capacity is None:
            return count
        room = capacity - self.running - len(self._ready) - len(self._prefilling)
        if count == ticket.rows and count <= room + 1:
            return count
        return max(min(count, room), 0 if self.running else 1)

    def _groups(self, wave: list[Ticket]) -> list[list[Ticket]]:
        groups: list[list[Ticket]] = []
        order = {id(ticket.prefix): place for place, ticket in reversed(list(enumerate(wave)))}
        for ticket in sorted(wave, key=lambda item: (order[id(item.prefix)], item.length)):
            if groups and self._alike(groups[-1][0], ticket):
                groups[-1].append(ticket)
            else:
                groups.append([ticket])
        return groups

    def _alike(self, one: Ticket, other: Ticket) -> bool:
        return one.prefix is other.prefix and self._similar(one.length, other.length)

    def _similar(self, shortest: int, length: int) -> bool:
        if not self._padding or shortest == 0:
            return shortest == length
        return length <= shortest * SIMILAR_RATIO + SIMILAR_SLACK
