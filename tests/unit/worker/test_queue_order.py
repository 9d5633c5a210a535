"""Which queue gives the next shard: priorities, and that none waits for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.batch import queue_name
from jobs.shard import Group
from worker.shards.queue_order import QueueOrder, queues_of

ONE, OTHER = Group("one"), Group("other")


class Pool:
    """Queues with so much work each, and a worker that takes from them; ``now`` is its clock."""

    def __init__(self, groups: tuple[Group, ...] = (ONE,)) -> None:
        self.now, self.work = 1000.0, dict[str, int]()
        self.full: set[tuple[Group, int]] = set()
        models: Any = SimpleNamespace(all_fit=True, takeable=lambda work, busy: set(groups))
        self.order = QueueOrder(
            queues_of(groups, None),
            models=models,
            waiting_in=lambda queues: {queue: self.work[queue] for queue in queues if self.work.get(queue)},
            wanted=lambda group, rank: (group, rank) not in self.full,
            patience=(float("inf"), 10.0, 60.0),
            clock=lambda: self.now,
        )

    def put(self, priority: str, shards: int, group: Group = ONE) -> None:
        self.work[queue_name(group.key, priority)] = shards

    def take(self, seconds: float = 1.0) -> tuple[str, int] | None:
        """One shard, as a worker takes it: its queue and the rank of its lines; then time passes."""
        self.order.look()
        for queue in self.order.choose(set()):
            if self.work.get(queue):
                self.work[queue] -= 1
                rank = self.order.taken(queue)
                self.now += seconds
                return queue, rank
        self.now += seconds
        return None


def test_priorities_go_first() -> None:
    """High, then normal, then low, each with its rank."""
    pool = Pool()
    for priority in ("low", "high", "normal"):
        pool.put(priority, 1)
    assert [pool.take() for _ in range(4)] == [
        ("promptmill:high:one", 0),
        ("promptmill:normal:one", 1),
        ("promptmill:low:one", 2),
        None,
    ]


def test_low_is_slow_and_never_starved() -> None:
    """Beside endless high work normal gets a shard each 10 seconds here, low one each 60, before all others."""
    pool = Pool()
    pool.put("high", 10_000)
    pool.put("normal", 100)
    pool.put("low", 100)
    taken = [pool.take() for _ in range(240)]
    ranks = {found[1] for found in taken if found is not None}
    counts = {queue: sum(found is not None and found[0] == queue for found in taken) for queue in pool.work}
    assert ranks == {0}
    assert 20 <= counts["promptmill:normal:one"] <= 24
    assert 3 <= counts["promptmill:low:one"] <= 4
    assert taken[0] == ("promptmill:high:one", 0)


@pytest.mark.parametrize("seconds", [30.0, 400.0])
def test_slow_shards_do_not_turn_priorities_over(seconds: float) -> None:
    """Where a shard takes longer than the patience, four of high work go for one of normal, and normal lines that
    nothing was preferred to go by their own rank."""
    pool = Pool()
    pool.put("normal", 10_000)
    assert {pool.take(seconds) for _ in range(20)} == {("promptmill:normal:one", 1)}
    pool.put("high", 10_000)
    taken = [pool.take(seconds) for _ in range(100)]
    assert 16 <= sum(found == ("promptmill:normal:one", 0) for found in taken) <= 20
    assert sum(found == ("promptmill:high:one", 0) for found in taken) >= 80


def test_patience_begins_when_others_are_preferred() -> None:
    """A low batch that arrives at a pool busy for hours waits like any other."""
    pool = Pool()
    pool.put("high", 10_000)
    for _ in range(500):
        pool.take()
    pool.put("low", 1)
    assert [found[0] for _ in range(59) if (found := pool.take()) is not None] == ["promptmill:high:one"] * 59
    assert "promptmill:low:one" in {found[0] for _ in range(3) if (found := pool.take()) is not None}


def test_the_first_rank_is_asked_for_even_where_the_rest_is_full() -> None:
    """Enough lines of a lower priority ahead do not keep higher ones from being taken."""
    pool = Pool()
    pool.put("high", 1)
    pool.put("normal", 1)
    pool.full = {(ONE, 1), (ONE, 2)}
    assert pool.take() == ("promptmill:high:one", 0)
    assert pool.take() is None


@pytest.mark.parametrize("priority", ["high", "normal"])
def test_models_of_one_priority_alternate(priority: str) -> None:
    """The one that has waited longest goes first."""
    pool = Pool((ONE, OTHER))
    pool.put(priority, 3)
    pool.put(priority, 3, OTHER)
    taken = [found[0].rpartition(":")[2] for _ in range(6) if (found := pool.take(0.1)) is not None]
    assert taken == ["one", "other"] * 3


def test_what_is_put_off_waits_and_keeps_a_worker_from_ending() -> None:
    """A model's queues, or one of them; the others are taken from meanwhile."""
    pool = Pool((ONE, OTHER))
    assert pool.order.put_off(ONE, 10.0)
    assert not pool.order.put_off(ONE, 5.0)  # so it was already
    pool.put("normal", 1)
    pool.put("low", 1, OTHER)
    assert [pool.take(), pool.take()] == [("promptmill:low:other", 2), None]
    assert pool.order.waiting
    pool.now += 10
    assert pool.take() == ("promptmill:normal:one", 1)
    assert pool.take() is None
    assert not pool.order.waiting
    pool.put("high", 1)
    pool.put("normal", 1)
    assert pool.order.put_off_queue("promptmill:high:one", 10.0)
    assert [pool.take(), pool.take()] == [("promptmill:normal:one", 1), None]
