"""Which models stay loaded, and whose turn it is when they do not all fit. Policy only: no MLX, no Redis, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from jobs.errors import ModelLoadError
from jobs.shard import Group

STARVATION_S = 120.0
"""A model with work waits this long for others that have as much, and what is loaded is safe from it as long; so it
waits at most twice as long until the others must make room."""
HURRY = 10
"""Work of a higher priority, or for models that have none left in their queues, waits this many times less."""
CACHES_PART = 10
"""Where models share the memory, one part in this many is kept free of weights: caches must have some room."""


@dataclass(frozen=True, slots=True)
class WeightSize:
    """Bytes of the weights of a group: ``base`` are the model's, shared by all its adapters; ``own`` the group's."""

    base: int
    own: int = 0


def share_out(sizes: Mapping[Group, WeightSize]) -> dict[Group, int]:
    """Bytes of each group; a base that several of them share counts with the first."""
    seen: set[str] = set()
    found = {}
    for group, size in sizes.items():
        found[group] = size.own + (0 if group.model in seen else size.base)
        seen.add(group.model)
    return found


def left_for_caches(budget: int, sizes: Mapping[Group, WeightSize]) -> int:
    """Bytes of a budget that the weights of these groups leave."""
    return max(0, budget - sum(share_out(sizes).values()))


def readable(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.1f} MiB"


def refuse_too_large(group: Group, size: WeightSize, budget: int | None, *, given: bool) -> None:
    """Check that a group fits at least alone; ``given`` says that the user set the budget.

    Raises:
        ModelLoadError: it does not.
    """
    total = size.base + size.own
    if budget is not None and total > budget:
        whose = "the memory limit" if given else "what the device recommends"
        raise ModelLoadError(
            f"model '{group.model}' has {readable(total)} of weights, and {whose} is {readable(budget)}: "
            "raise --memory-limit, or use a smaller or quantised model"
        )


class Residency:
    """Thread: main. The loaded groups, within ``budget`` bytes (None: no limit), and the cold ones that have work.

    A cold model that fits beside the loaded ones is loaded as soon as it has work. One that needs the room of others
    waits until they have nothing to do, but not for ever: after ``bound`` seconds nothing more is taken for those, what
    is held of them is finished, and they are unloaded. A model that has just been loaded is safe from that for as long,
    so that two busy ones alternate in long slices; while one that has waited so long finds no room for that reason,
    nothing goes for any other. Work of a higher priority waits a tenth of it, and work of a lower one until there is
    nothing of the higher left, as it does within one model. Times are seconds of one clock.
    """

    def __init__(self, *, bound: float = STARVATION_S) -> None:
        self.budget: int | None = None
        self.sizes: dict[Group, WeightSize] = {}
        """Of every group whose size is known: from its files, and once it was loaded measured."""
        self.loaded: dict[Group, float] = {}
        """The loaded groups and since when, the least recently used first."""
        self._bound = bound
        self._waiting_since: dict[Group, float] = {}

    def load(self, group: Group, victims: Iterable[Group], now: float) -> None:
        """Count a group as loaded in place of others."""
        for victim in victims:
            self.loaded.pop(victim, None)  # its own load may have failed since it was chosen
        self.loaded[group] = now

    def takeable(self, work: Mapping[Group, int], busy: Set[Group], now: float) -> dict[Group, list[Group]]:
        """The groups whose shards may be taken now, and what must be unloaded for each: loaded ones, for which that is
        nothing, and at most one that is to be loaded.

        ``work`` has the groups with shards in their queues, and the highest priority among those (0 is the highest).
        ``busy`` are groups that shards are held of. Groups whose size is not known wait.
        """
        for group in [group for group in self.loaded if group in busy]:
            self.loaded[group] = self.loaded.pop(group)
        self._waiting_since = {group: self._waiting_since.get(group, now) for group in work if group not in self.loaded}
        overdue = False
        for group in sorted(self._waiting_since, key=lambda cold: (work[cold], self._waiting_since[cold])):
            kept = {other for other in self.loaded if overdue or self._protected(other, group, work, busy, now)}
            victims = self.victims(group, kept) if group in self.sizes else None
            if victims is not None:
                takeable: dict[Group, list[Group]] = {other: [] for other in self.loaded if other not in victims}
                return takeable if busy & set(victims) else {**takeable, group: victims}
            # Nothing goes for those behind it in the line: else small ones in rotation might hold it off for ever.
            overdue = overdue or now - self._waiting_since[group] >= self._bound
        return {group: [] for group in self.loaded}

    def victims(self, group: Group, kept: Set[Group] = frozenset()) -> list[Group] | None:
        """The groups to unload so that ``group`` can be loaded, the least recently used first; None: there is no room
        while those ``kept`` stay. A group too large for the budget displaces nothing: its load fails."""
        if self.budget is None or not self._fits({group: self.sizes[group]}):
            return []
        left = {other: self.sizes[other] for other in (*self.loaded, group)}
        gone: list[Group] = []
        for other in [other for other in self.loaded if other not in kept]:
            if self._fits(left):
                break
            del left[other]
            gone.append(other)
        if not self._fits(left):
            return None
        for other in reversed(gone):  # what was given up in vain stays: it was too small, or its base is still used
            if self._fits({**left, other: self.sizes[other]}):
                left[other] = self.sizes[other]
        return [other for other in gone if other not in left]

    def _fits(self, sizes: Mapping[Group, WeightSize]) -> bool:
        if self.budget is None:
            return True
        caches = self.budget // CACHES_PART if len(sizes) > 1 else 0
        return sum(share_out(sizes).values()) <= self.budget - caches

    def _protected(self, loaded: Group, cold: Group, work: Mapping[Group, int], busy: Set[Group], now: float) -> bool:
        """Whether a loaded group is not yet to go for a cold one."""
        if loaded not in busy and loaded not in work:
            return False
        if loaded in work and work[loaded] < work[cold]:
            return True
        bound = self._bound if work.get(loaded) == work[cold] else self._bound / HURRY
        return now - max(self._waiting_since[cold], self.loaded[loaded]) < bound
