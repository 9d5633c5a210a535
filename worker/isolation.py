"""Lines that may bring their worker down: they run one at a time, with nothing beside them. Policy only."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.shard import Group

__all__ = ["Isolation"]

LOOK_S = 0.01


class Admitting(Protocol):
    """What an engine must be able to do: see :class:`worker.engine.engine.Engine`."""

    @property
    def begun(self) -> int: ...

    def __contains__(self, key: Hashable) -> bool: ...

    def add(self, line: Any) -> None: ...

    def admit(self, only: frozenset[Hashable] | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """A line that is to run alone, and when at the earliest."""

    group: Group
    line: Any
    not_before: float
    tries: int


class Isolation:
    """Decides, before each round of the engines, what may begin. Lines that failed less often go first: where all of
    them fail, it is not them, and that is found out before any has failed often.

    While one waits, no other line begins anywhere; it begins when all that were under way have ended, and when
    ``unstored()``, the number of ended lines whose records are not yet stored, is 0: those would count as under way.
    While Redis is out it is None, and suspects wait until it is back, holding off nothing.
    """

    def __init__(
        self, unstored: Callable[[], int | None] = lambda: 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unstored, self._clock = unstored, clock
        self._waiting: list[Waiting] = []
        self._running: tuple[Group, Hashable] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, group: Group, line: Any, after_s: float = 0.0, tries: int = 0) -> None:
        """Run ``line``, which failed ``tries`` times, alone, ``after_s`` seconds from now at the earliest."""
        self._waiting.append(Waiting(group, line, self._clock() + after_s, tries))

    @property
    def running(self) -> Hashable | None:
        """The key of the line that runs alone."""
        return None if self._running is None else self._running[1]

    def due_in(self) -> float | None:
        """Seconds until it is worth a look whether a line may begin; None when none waits."""
        if not self._waiting:
            return None
        return max(LOOK_S, min(item.not_before for item in self._waiting) - self._clock())

    def drop(self, chosen: Callable[[Hashable], bool] = lambda key: True) -> list[Hashable]:
        """Forget the waiting lines whose keys are ``chosen``, by default all of them; their keys."""
        dropped = [item for item in self._waiting if chosen(item.line.key)]
        self._waiting = [item for item in self._waiting if item not in dropped]
        return [item.line.key for item in dropped]

    def arrange(self, engines: Mapping[Group, Admitting]) -> None:
        """Let each engine begin what it may."""
        if self._running is not None:
            group, key = self._running
            if group not in engines or key not in engines[group]:
                self._running = None
        unstored = self._unstored()
        chosen = self._due(engines) if self._running is None and unstored is not None else None
        alone = self._running is not None or chosen is not None
        if chosen is not None and unstored == 0 and not any(engine.begun for engine in engines.values()):
            self._waiting.remove(chosen)
            self._running = (chosen.group, chosen.line.key)
            engines[chosen.group].add(chosen.line)
        for group, engine in engines.items():
            mine = self._running is not None and self._running[0] == group
            engine.admit(frozenset({self._running[1]} if mine and self._running else ()) if alone else None)

    def _due(self, engines: Mapping[Group, Admitting]) -> Waiting | None:
        now = self._clock()
        due = [item for item in self._waiting if item.not_before <= now and item.group in engines]
        return min(due, key=lambda item: item.tries, default=None)
