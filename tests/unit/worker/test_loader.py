"""The main thread's book of models, against a compute thread that answers when it is told to."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from jobs.errors import ModelLoadError
from jobs.shard import Group
from worker.models.loader import ModelLoader
from worker.models.residency import STARVATION_S, WeightSize

A, B = Group("a"), Group("b")
NORMAL = 1


class Answers:
    """A compute thread: what it was asked, and the answers that are due."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.loaded: dict[Group, WeightSize] = {}
        self.asked: list[tuple[str, Group]] = []
        self.futures: dict[tuple[str, Group], Future[Any]] = {}

    def size(self, group: Group) -> Future[Any]:
        return self._ask("size", group)

    def load(self, group: Group) -> Future[Any]:
        return self._ask("load", group)

    def unload(self, group: Group) -> None:
        self.asked.append(("unload", group))
        del self.loaded[group]

    def _ask(self, what: str, group: Group) -> Future[Any]:
        self.asked.append((what, group))
        self.futures[what, group] = Future()
        return self.futures[what, group]

    def tell(self, group: Group, size: int) -> None:
        self.futures["size", group].set_result(WeightSize(size))

    def bring(self, group: Group, size: int) -> None:
        self.loaded[group] = WeightSize(size)
        self.futures["load", group].set_result(None)


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def compute() -> Answers:
    return Answers(100)


@pytest.fixture
def models(compute: Any, clock: list[float]) -> ModelLoader:
    """Two models of which one fits at a time."""
    return ModelLoader(compute, (A, B), clock=lambda: clock[0])


def loaded(models: ModelLoader, compute: Answers, group: Group, size: int) -> None:
    models.takeable({group: NORMAL}, set())
    compute.tell(group, size)
    assert group in models.takeable({group: NORMAL}, set())
    models.load(group)
    compute.bring(group, size)


def test_a_size_is_asked_for_once_and_only_for_work(models: ModelLoader, compute: Answers) -> None:
    """A model nobody wants is not fetched from the hub."""
    assert models.takeable({A: NORMAL}, set()) == set()
    assert models.takeable({A: NORMAL}, set()) == set()
    compute.tell(A, 60)
    assert models.takeable({A: NORMAL}, set()) == {A}
    assert compute.asked == [("size", A)]


def test_what_must_go_is_unloaded_first(models: ModelLoader, compute: Answers) -> None:
    """The compute thread carries out commands in order: room is made before it is needed."""
    loaded(models, compute, A, 60)
    loaded(models, compute, B, 60)
    assert compute.asked[-3:] == [("size", B), ("unload", A), ("load", B)]


def test_measured_sizes_count(models: ModelLoader, compute: Answers) -> None:
    """What a load took is what the next decision goes by, not the size of the files."""
    loaded(models, compute, A, 40)
    compute.loaded[A] = WeightSize(70)
    models.takeable({B: NORMAL}, {A})
    compute.tell(B, 40)
    assert models.takeable({A: NORMAL, B: NORMAL}, {A}) == {A}


def test_a_model_that_cannot_be_loaded_is_let_through(models: ModelLoader, compute: Answers) -> None:
    """Its shard is taken so that its lines learn why, nobody goes for it, and its size is asked for the next time."""
    loaded(models, compute, A, 60)
    models.takeable({B: NORMAL}, {A})
    compute.futures["size", B].set_exception(ModelLoadError("no such model"))
    assert models.takeable({B: NORMAL}, {A}) == {A, B}
    failing = models.load(B)
    failing.set_exception(ModelLoadError("no such model"))
    assert models.takeable({B: NORMAL}, {A}) == {A}
    assert compute.asked[-2:] == [("load", B), ("size", B)]


def test_a_failed_load_takes_no_room(models: ModelLoader, compute: Answers) -> None:
    """What was counted for it is free again."""
    models.takeable({A: NORMAL, B: NORMAL}, set())
    compute.tell(A, 60)
    compute.tell(B, 60)
    assert models.takeable({A: NORMAL, B: NORMAL}, set()) == {A}
    models.load(A).set_exception(ModelLoadError("out of luck"))
    assert models.takeable({B: NORMAL}, {A}) == {B}


def test_nothing_goes_again_for_a_model_whose_load_failed(models: ModelLoader, compute: Answers) -> None:
    """Its size is asked for anew, and while that is refused its shards are told so without unloading anything."""
    broken = ModelLoadError("the weights are broken")
    models.takeable({A: NORMAL}, set())
    compute.tell(A, 60)
    assert models.takeable({A: NORMAL}, set()) == {A}
    models.load(A).set_exception(broken)
    loaded(models, compute, B, 60)
    assert models.takeable({A: NORMAL, B: NORMAL}, {B}) == {B}
    compute.futures["size", A].set_exception(broken)
    assert models.takeable({A: NORMAL, B: NORMAL}, {B}) == {A, B}
    models.load(A)
    assert ("unload", B) not in compute.asked


def test_the_time_of_a_model_begins_when_it_is_loaded(
    models: ModelLoader, compute: Answers, clock: list[float]
) -> None:
    """One that took long to load is not sent away as soon as it is there."""
    models.takeable({A: NORMAL, B: NORMAL}, set())
    compute.tell(A, 60)
    compute.tell(B, 60)
    models.takeable({A: NORMAL, B: NORMAL}, set())
    models.load(A)
    for clock[0] in (1.0, 2 * STARVATION_S, 4 * STARVATION_S):
        assert models.takeable({A: NORMAL, B: NORMAL}, {A}) == {A}
    compute.bring(A, 60)
    assert models.takeable({A: NORMAL, B: NORMAL}, {A}) == {A}
    clock[0] += STARVATION_S - 1
    models.load(A)
    assert models.takeable({A: NORMAL, B: NORMAL}, {A}) == {A}
    clock[0] += 1
    assert models.takeable({A: NORMAL, B: NORMAL}, {A}) == set()


def test_without_a_limit_everything_may_be_taken(compute: Answers, models: ModelLoader) -> None:
    """As soon as that is known, and no other size is asked for."""
    compute.budget = None
    loaded(models, compute, A, 60)
    assert models.takeable({}, set()) == {A, B}
    assert models.all_fit
    assert compute.asked == [("size", A), ("load", A)]
