"""Which queues a worker takes its next shard from: by priority, and within one by the model that has waited longest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set

from jobs.batch import PRIORITIES, queue_name
from jobs.shard import Group
from worker.models import Models

__all__ = ["Turns"]


class Turns:
    """The queues of a worker's models, and whose turn it is.

    ``filled(queues)`` tells which queues have jobs, ``wanted(group)`` whether another shard of a model is needed.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        pool: str | None,
        *,
        models: Models,
        filled: Callable[[Sequence[str]], Sequence[str]],
        wanted: Callable[[Group], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self._filled, self._wanted, self._clock = models, filled, wanted, clock
        self._group_of = {queue_name(group.key, priority, pool): group for priority in PRIORITIES for group in groups}
        self._places = {name: place // len(groups) for place, name in enumerate(self._group_of)}
        self._not_before: dict[Group, float] = {}
        self._takes: dict[Group, float] = {}
        self.waiting = False
        """Whether a model has work whose turn it is not yet."""

    @property
    def queues(self) -> list[str]:
        return list(self._group_of)

    def group_of(self, queue: str) -> Group:
        return self._group_of[queue]

    def taken(self, queue: str) -> None:
        """A shard was taken from this queue."""
        self._takes[self._group_of[queue]] = self._clock()

    def put_off(self, group: Group, seconds: float) -> None:
        """Take nothing for a model for a while."""
        self._not_before[group] = self._clock() + seconds

    def choose(self, busy: Set[Group]) -> list[str]:
        """Queues to take from, in order; ``busy`` are the models of the shards that are held."""
        now = self._clock()
        ready = [name for name, group in self._group_of.items() if self._not_before.get(group, 0.0) <= now]
        # Asked for only where models have to take turns.
        filled = [] if self._models.all_fit else self._filled(ready)
        work = {self._group_of[name]: self._places[name] for name in reversed(filled)}  # the highest one is told last
        takeable = self._models.takeable(work, busy)
        self.waiting = not takeable.issuperset(work)
        ready = [name for name in ready if (group := self._group_of[name]) in takeable and self._wanted(group)]
        return sorted(ready, key=lambda name: (self._places[name], self._takes.get(self._group_of[name], 0.0)))
