"""What may begin on a worker's engines, before each round: quarantine, and that the in-flight log knows of it first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, cast

from jobs.shard import Group
from worker.faults.in_flight_log import Answer, Unlogged
from worker.faults.quarantine import Isolation
from worker.shards.claimed import LineKey, Quarantine

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.sequence import Finished

__all__ = ["Admission"]


class Admission:
    """The compute thread's alone. ``unstored()`` is how many ended lines have no stored record yet, None while Redis is
    out."""

    def __init__(self, in_flight: Unlogged, unstored: Callable[[], int | None]) -> None:
        self._in_flight, self._unstored = in_flight, unstored
        self._isolation = Isolation()

    @property
    def alone(self) -> LineKey | None:
        """The line that runs with nothing beside it."""
        return cast("LineKey | None", self._isolation.running)

    @property
    def waiting(self) -> bool:
        """Whether a line is in quarantine that has not begun."""
        return bool(self._isolation)

    def isolate(self, group: Group, line: Any, quarantine: Quarantine, after_s: float, tries: int) -> None:
        """Run a line with nothing beside it."""
        self._isolation.add(group, line, after_s, tries, trial=quarantine is Quarantine.TRIAL)

    def drop(self, chosen: Callable[[Hashable], bool] = lambda key: True) -> list[LineKey]:
        """Forget the ``chosen`` ones of the lines in quarantine that have not begun; their keys."""
        return cast("list[LineKey]", self._isolation.drop(chosen))

    def cancel(self, key: LineKey) -> None:
        """A line is not wanted any more, wherever it is."""
        self._isolation.drop(lambda other: other == key)
        self._isolation.withdraw(key)

    def arrange(self, engines: Mapping[Group, Engine]) -> float | None:
        """Let engines begin what they may. How long the next look has time if none has anything to do: None is until
        something happens."""
        counts = (self._unstored(), self._in_flight.unsettled)
        unsettled = None if None in counts else sum(cast("tuple[int, int]", counts))
        only = self._isolation.arrange(engines, unsettled)
        admitted = self._in_flight.admitted(engines.values(), only)
        for engine in engines.values():
            engine.admit(admitted)
        return self._isolation.due_in()

    def begun(self, keys: list[Hashable]) -> frozenset[Hashable]:
        """Lines begin on an engine; those that shall not."""
        return self._in_flight.begun(cast("list[LineKey]", keys))

    def passed(self, finished: Finished) -> Any:
        """The line that ended, to be queued anew, if it was its trial that ended; else None."""
        line = self._isolation.passed(finished.key)
        if line is not None:
            self._in_flight.begins_anew(cast("LineKey", finished.key))
        return line

    def answered(self, answer: Answer, engines: Mapping[Group, Engine]) -> None:
        """The in-flight log has an answer: lines of a shard that is another's by now are not wanted any more."""
        self._in_flight.answered(answer)
        for key in answer.refused:
            self.cancel(key)
            for engine in engines.values():
                engine.cancel(key)
