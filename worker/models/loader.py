"""Which models are loaded: learns their sizes, and has them loaded and unloaded as the policy says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from typing import TYPE_CHECKING

from worker.models.residency import STARVATION_S, Residency

if TYPE_CHECKING:
    from jobs.shard import Group
    from worker.models.compute import Compute
    from worker.models.engine_factory import ServedModel
    from worker.models.residency import WeightSize


class ModelLoader:
    """What is loaded and what may be, in the order in which the compute thread is asked for it. Thread: main.

    With one group, without a limit, or with all of them loaded there is nothing to decide.
    """

    def __init__(
        self,
        compute: Compute,
        groups: Sequence[Group],
        *,
        bound: float = STARVATION_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.residency = Residency(bound=bound)
        self._compute = compute
        self._groups = groups
        self._clock = clock
        self._asked: dict[Group, Future[WeightSize]] = {}
        self._loading: dict[Group, Future[ServedModel]] = {}
        self._unknown: set[Group] = set()
        self._victims: dict[Group, list[Group]] = {}

    @property
    def all_fit(self) -> bool:
        """Whether there is nothing to decide, as far as is known."""
        if len(self._groups) == 1 or len(self.residency.loaded) == len(self._groups):
            return True
        return bool(self.residency.sizes) and self.residency.budget is None

    def ask(self, group: Group) -> Future[WeightSize]:
        """The size of a group's weights, which may have to be fetched from the hub for that."""
        if group not in self._asked:
            self._asked[group] = self._compute.size(group)
        return self._asked[group]

    def fits(self, group: Group) -> bool:
        """Whether a group whose size was asked for can be loaded beside all that are."""
        self._settle()
        return (
            self.all_fit or group in self._unknown or self.residency.victims(group, self.residency.loaded.keys()) == []
        )

    def takeable(self, work: Mapping[Group, int], busy: Set[Group]) -> set[Group]:
        """The groups whose shards may be taken now: as :meth:`Residency.takeable`, and those that cannot be loaded, for
        their lines must end with that error."""
        self._settle()
        if self.all_fit:
            return set(self._groups)
        for group in work.keys() - self.residency.sizes.keys() - self._unknown:
            self.ask(group)
        self._victims = self.residency.takeable(work, busy, self._clock())
        return self._victims.keys() | self._unknown

    def load(self, group: Group) -> Future[ServedModel]:
        """Have a group loaded that fits or that may be taken, after the unloading of what must make room for it."""
        self._settle()
        self._unknown.discard(group)
        if group in self._loading:
            return self._loading[group]
        if group in self.residency.loaded:
            return self._compute.load(group)
        if group in self.residency.sizes:
            victims = self._victims.pop(group, [])
            self.residency.load(group, victims, self._clock())
            for victim in victims:
                self._compute.unload(victim)
        self._loading[group] = self._compute.load(group)
        return self._loading[group]

    def _settle(self) -> None:
        """Take note of what the compute thread has done."""
        for group, asked in list(self._asked.items()):
            if asked.done():
                del self._asked[group]
                self.residency.budget = self._compute.budget
                if asked.exception() is None:
                    self.residency.sizes.setdefault(group, asked.result())
                else:
                    self._unknown.add(group)
        for group, loading in list(self._loading.items()):
            if group in self.residency.loaded:
                self.residency.loaded[group] = self._clock()  # its time begins when it is loaded
            if loading.done():
                del self._loading[group]
                self.residency.budget = self._compute.budget
                if loading.exception() is None:
                    self.residency.sizes[group] = self._compute.loaded[group]
                    self.residency.loaded[group] = self._clock()
                else:
                    self.residency.loaded.pop(group, None)
                    self.residency.sizes.pop(group, None)  # to be asked for again: nothing is to go for it in vain
