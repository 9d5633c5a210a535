"""Lines that may bring their worker down: each runs with nothing beside it. Policy only.

One that was under way twice when its worker died, or when a model failed, runs alone until its first tokens are there:
most of what kills a worker does so by then. It then begins anew among the others, so that two power cuts cost a moment
for each line, and not the time of its whole text in a batch of one. One that brought down a worker once more, or that
failed by itself, runs alone to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.shard import Group

if TYPE_CHECKING:
    from worker.engine.engine import Engine

TRIAL_TOKENS = 16
"""A trial is over when so many tokens of the line are there."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A line that is to run alone, when at the earliest, and whether for a trial only."""

    group: Group
    line: Any
    not_before: float
    tries: int
    trial: bool


class Quarantine:
    """Decides, before each round of the engines, what may begin. Thread: compute.

    Lines that failed less often go first: where all of them fail, it is not them, and that is found out before any has
    failed often.

    While one waits, no other line begins anywhere; it begins when all that were under way have ended, and nothing else
    could be charged for its harm.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = clock()
        self._waiting: list[Suspect] = []
        self._running: Suspect | None = None
        self._passed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, group: Group, line: Any, after_s: float = 0.0, tries: int = 0, *, trial: bool = False) -> None:
        """Run ``line``, which failed ``tries`` times, alone, ``after_s`` seconds from now at the earliest; for a
        ``trial`` until its first tokens are there."""
        self._waiting.append(Suspect(group, line, self._clock() + after_s, tries, trial))

    @property
    def running(self) -> Hashable | None:
        """The key of the line that runs alone."""
        key: Hashable | None = None if self._running is None else self._running.line.key
        return key

    def due_in(self) -> float | None:
        """Seconds until a line is due that was not at the last round; None: what is due waits for an event."""
        later = [item.not_before for item in self._waiting if item.not_before > self._now]
        return max(0.0, min(later) - self._clock()) if later else None

    def drop(self, chosen: Callable[[Hashable], bool] = lambda key: True) -> list[Hashable]:
        """Forget the waiting lines whose keys are ``chosen``, by default all of them; their keys."""
        dropped = [item for item in self._waiting if chosen(item.line.key)]
        self._waiting = [item for item in self._waiting if item not in dropped]
        return [item.line.key for item in dropped]

    def arrange(self, engines: Mapping[Group, Engine], unsettled: int | None) -> frozenset[Hashable] | None:
        """The lines that may begin now; None: all.

        ``unsettled`` is how many lines would be charged, were the worker to die now, although they are not under way:
        those that have ended and whose records are not stored, and those that were about to begin. While Redis is out
        it is None, and suspects wait until it is back, holding off nothing.
        """
        self._now = self._clock()
        self._look_at_running(engines)
        if self._running is None:
            chosen = None if unsettled is None else self._due(engines)
            if chosen is None:
                return None
            if unsettled or any(engine.begun for engine in engines.values()):
                return frozenset()
            self._waiting.remove(chosen)
            self._running, self._passed = chosen, False
            engines[chosen.group].add(chosen.line)
        return frozenset({self._running.line.key})

    def passed(self, key: Hashable) -> Any:
        """Of a line that ended: itself, to begin anew among the others, if what ended was its trial; else None."""
        if not self._passed or self.running != key or self._running is None:
            return None
        line, self._running = self._running.line, None
        return line

    def cancel(self, key: Hashable) -> None:
        """A line is not wanted any more, whether it waits or runs alone: its end is an end."""
        self.drop(lambda other: other == key)
        if self.running == key:
            self._passed = False

    def _look_at_running(self, engines: Mapping[Group, Engine]) -> None:
        running = self._running
        if running is None:
            return
        engine, key = engines.get(running.group), running.line.key
        if engine is None or (key not in engine and not self._passed):
            self._running = None
        elif running.trial and not self._passed:
            self._passed = any(line.key == key and line.completion_tokens >= TRIAL_TOKENS for line in engine.snapshot())
            if self._passed:
                engine.cancel(key)

    def _due(self, engines: Mapping[Group, Engine]) -> Suspect | None:
        due = [item for item in self._waiting if item.not_before <= self._now and item.group in engines]
        return min(due, key=lambda item: item.tries, default=None)
