"""The order of the queues: by priority with ageing, and within one by the model that has waited longest.

Ageing: a queue passed over for its patience, and for so many shards, gets one shard at the first priority: so low is
slow on a busy pool, and never starved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set

from jobs.batch import PRIORITIES, queue_name
from jobs.shard import Group
from worker.models.loader import ModelLoader

PATIENCE_S = (float("inf"), 120.0, 600.0)
PATIENCE_SHARDS = (0, 4, 16)
"""For how long a queue with work lets others go before it, and for how many of their shards: high, normal, low."""


def queues_of(groups: Sequence[Group], pool: str | None) -> dict[str, Group]:
    """The queues of some models, those of the highest priority first."""
    return {queue_name(group.key, priority, pool): group for priority in PRIORITIES for group in groups}


class QueueOrder:
    """The queues of a worker's models, and whose turn it is. Thread: main; but any may put a queue off, and read.

    ``waiting_in(queues)`` tells how many jobs wait in each queue that has any, in their order, and
    ``wanted(group, rank)`` whether another shard of a model is needed whose lines would go by ``rank``: 0 is first.
    """

    def __init__(
        self,
        queues: Mapping[str, Group],
        *,
        models: ModelLoader,
        waiting_in: Callable[[Sequence[str]], Mapping[str, int]],
        wanted: Callable[[Group, int], bool],
        patience: Sequence[float] = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self._waiting_in, self._wanted, self._clock = models, waiting_in, wanted, clock
        groups = len(set(queues.values()))
        self._group_of = queues
        self._places = {name: place // groups for place, name in enumerate(self._group_of)}
        self._not_before: dict[str, float] = {}
        self._takes: dict[Group, float] = {}
        self._patience = patience
        self._passed: dict[str, tuple[float, int]] = {}
        self.lengths: Mapping[str, int] = {}
        """Jobs that waited in each queue that had any, at the last look."""
        self.waiting = False
        """Whether there is work whose turn it is not yet, or that was put off."""

    @property
    def queues(self) -> list[str]:
        return list(self._group_of)

    def group_of(self, queue: str) -> Group:
        return self._group_of[queue]

    def look(self) -> None:
        """Note which queues have work, now and then."""
        self.lengths = self._waiting_in(self.queues)
        self._passed = {queue: passed for queue, passed in self._passed.items() if queue in self.lengths}

    def rank_of(self, queue: str) -> int:
        """What lines of a shard of this queue go by: its priority; the first where it was passed over for too long."""
        place = self._places[queue]
        since, shards = self._passed.get(queue, (self._clock(), 0))
        overdue = self._clock() - since >= self._patience[place] and shards >= PATIENCE_SHARDS[place]
        return 0 if overdue else place

    def taken(self, queue: str) -> int:
        """A shard was taken from this queue; what its lines go by."""
        rank, now = self.rank_of(queue), self._clock()
        self._takes[self._group_of[queue]] = now
        self._passed.pop(queue, None)
        for other in self.lengths:
            if self._places[other] > self._places[queue]:
                since, shards = self._passed.get(other, (now, 0))
                self._passed[other] = (since, shards + 1)
        return rank

    def put_off(self, group: Group, seconds: float) -> bool:
        """Take nothing for a model for a while; False: so it was already."""
        queues = [name for name, other in self._group_of.items() if other == group]
        return any([self.put_off_queue(name, seconds) for name in queues])  # noqa: C419 (each of them)

    def put_off_queue(self, queue: str, seconds: float) -> bool:
        """Take nothing from a queue for a while; False: so it was already."""
        now, before = self._clock(), self._not_before.get(queue, 0.0)
        self._not_before[queue] = max(before, now + seconds)
        return before <= now

    def choose(self, busy: Set[Group]) -> list[str]:
        """Queues to take from, in order; ``busy`` are the models of the shards that are held."""
        now = self._clock()
        ready = [name for name in self._group_of if self._not_before.get(name, 0.0) <= now]
        put_off = [name for name in self._group_of if name not in ready]
        # Asked for only where models have to take turns.
        filled = [] if self._models.all_fit else list(self._waiting_in(ready))
        work: dict[Group, int] = {}
        for name in filled:
            work[self._group_of[name]] = min(self.rank_of(name), work.get(self._group_of[name], len(PRIORITIES)))
        takeable = self._models.takeable(work, busy)
        self.waiting = not takeable.issuperset(work) or bool(put_off and self._waiting_in(put_off))
        ranks = {name: self.rank_of(name) for name in ready if self._group_of[name] in takeable}
        ready = [name for name, rank in ranks.items() if self._wanted(self._group_of[name], rank)]

        def order(name: str) -> tuple[int, int, float]:
            # Of two with the same rank the one of the lower priority has waited for too long.
            return ranks[name], -self._places[name], self._takes.get(self._group_of[name], 0.0)

        return sorted(ready, key=order)
