"""Which models stay loaded, and whose turn it is: the policy alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Set

import pytest

from jobs.errors import ModelLoadError
from jobs.shard import Group
from worker.models.residency import HURRY, STARVATION_S, Residency, WeightSize, refuse_too_large, share_out

A, B, C = Group("a"), Group("b"), Group("c")
TUNED, RETUNED = Group("a", "lora"), Group("a", "lora-2")
NORMAL, LOW, HIGH = 1, 2, 0
LONG = 100 * STARVATION_S


def policy(budget: int | None, sizes: dict[Group, WeightSize], *loaded: Group) -> Residency:
    """A policy that knows ``sizes`` and has loaded some groups at time 0, the least recently used first."""
    warm = Residency()
    warm.budget = budget
    warm.sizes = dict(sizes)
    for group in loaded:
        warm.load(group, [], 0.0)
    return warm


def opened(warm: Residency, work: dict[Group, int], busy: Set[Group], now: float) -> set[Group]:
    """The groups that may be taken."""
    return set(warm.takeable(work, busy, now))


SIXTIES = {A: WeightSize(60), B: WeightSize(60), C: WeightSize(20)}


def test_a_cold_model_that_fits_is_taken_at_once() -> None:
    """Nothing goes for it, whatever the others do."""
    warm = policy(100, SIXTIES, A)
    assert opened(warm, {A: NORMAL, C: NORMAL}, {A}, 1.0) == {A, C}
    assert warm.takeable({A: NORMAL, C: NORMAL}, {A}, 1.0)[C] == []


def test_without_a_limit_everything_fits() -> None:
    """No budget, no unloading."""
    warm = policy(None, SIXTIES, A)
    assert opened(warm, {A: NORMAL, B: LOW}, {A}, 1.0) == {A, B}
    assert warm.takeable({B: LOW}, {A}, 1.0)[B] == []


def test_the_least_recently_used_idle_model_goes() -> None:
    """Use is having shards in hand, not the order of loading."""
    warm = policy(100, {A: WeightSize(30), B: WeightSize(30), C: WeightSize(60)}, A, B)
    warm.takeable({}, {A}, 1.0)
    assert warm.takeable({C: NORMAL}, set(), 2.0) == {A: [], C: [B]}
    warm.load(C, [B], 2.0)
    assert list(warm.loaded) == [A, C]


def test_no_more_is_unloaded_than_must_be() -> None:
    """A small model that was used longest ago stays when its going would not help."""
    warm = policy(200, {A: WeightSize(10), B: WeightSize(90), C: WeightSize(160)}, A, B)
    assert warm.victims(C) == [B]


def test_room_is_left_for_caches_beside_others_only() -> None:
    """Two models may take nine tenths of the budget, one all of it."""
    assert policy(100, {A: WeightSize(45), B: WeightSize(45)}, A).victims(B) == []
    assert policy(100, {A: WeightSize(45), B: WeightSize(46)}, A).victims(B) == [A]
    assert policy(100, {A: WeightSize(100)}).victims(A) == []


def test_a_model_too_large_for_the_budget_displaces_nobody() -> None:
    """It is let through for its load to fail: its lines must be told."""
    warm = policy(100, {**SIXTIES, B: WeightSize(101)}, A)
    assert warm.takeable({A: NORMAL, B: NORMAL}, {A}, 1.0) == {A: [], B: []}


@pytest.mark.parametrize(("given", "whose"), [(True, "the memory limit"), (False, "what the device recommends")])
def test_a_refusal_names_both_sizes_and_the_flag(given: bool, whose: str) -> None:
    """Weights and limit for a person, whichever limit it is; what fits alone, or has no limit, is not refused."""
    with pytest.raises(ModelLoadError, match=rf"'a' has 3\.5 GiB of weights, and {whose} is 2\.0 GiB: raise --memory-"):
        refuse_too_large(A, WeightSize(3 << 30, 1 << 29), 2 << 30, given=given)
    refuse_too_large(A, WeightSize(2 << 30), 2 << 30, given=given)
    refuse_too_large(A, WeightSize(2 << 30), None, given=given)


def test_adapters_share_their_base() -> None:
    """A base counts once: its adapters fit beside it where a second copy would not, whichever was loaded first."""
    sizes = {A: WeightSize(60), TUNED: WeightSize(60, 5), RETUNED: WeightSize(60, 5), B: WeightSize(60)}
    warm = policy(100, sizes, TUNED, A)
    assert warm.victims(RETUNED) == []
    warm.load(RETUNED, [], 1.0)
    assert share_out({group: sizes[group] for group in warm.loaded}) == {TUNED: 65, A: 0, RETUNED: 5}
    assert warm.victims(B) == [TUNED, A, RETUNED]


def test_a_cold_model_waits_until_the_warm_one_is_drained() -> None:
    """While shards are queued or held for the warm one nothing changes; then the other is taken."""
    warm = policy(100, SIXTIES, A)
    assert opened(warm, {A: NORMAL, B: NORMAL}, set(), 1.0) == {A}
    assert opened(warm, {A: NORMAL, B: NORMAL}, {A}, 2.0) == {A}
    assert opened(warm, {B: NORMAL}, {A}, 3.0) == {A}
    assert warm.takeable({B: NORMAL}, set(), 4.0) == {B: [A]}


def test_no_model_starves() -> None:
    """After the bound the busy one gets nothing new, finishes what it has, and goes."""
    warm = policy(100, SIXTIES, A)
    work = {A: NORMAL, B: NORMAL}
    assert opened(warm, work, {A}, 10.0) == {A}
    assert opened(warm, work, {A}, 9.9 + STARVATION_S) == {A}
    assert opened(warm, work, {A}, 10.0 + STARVATION_S) == set()
    assert warm.takeable(work, set(), 11.0 + STARVATION_S) == {B: [A]}


def test_a_wait_counts_only_while_there_is_work() -> None:
    """Another worker that empties the queue ends the wait."""
    warm = policy(100, SIXTIES, A)
    warm.takeable({A: NORMAL, B: NORMAL}, {A}, 0.0)
    warm.takeable({A: NORMAL}, {A}, 50.0)
    assert opened(warm, {A: NORMAL, B: NORMAL}, {A}, 0.5 + STARVATION_S) == {A}


def test_two_busy_models_alternate_in_long_slices() -> None:
    """Neither is unloaded sooner than the bound after it was loaded, and both are served half of the time."""
    warm = policy(100, SIXTIES, A)
    slices: list[tuple[Group, float]] = [(A, 0.0)]
    for second in range(int(10 * STARVATION_S)):
        current = slices[-1][0]
        # What is held takes five seconds to finish: without new shards, the model is idle then.
        busy = {current} if second - slices[-1][1] < STARVATION_S + 5 else set()
        for group, victims in warm.takeable({A: NORMAL, B: NORMAL}, busy, float(second)).items():
            if group != current:
                assert victims == [current]
                warm.load(group, victims, float(second))
                slices.append((group, float(second)))
    lengths = [later[1] - earlier[1] for earlier, later in itertools.pairwise(slices)]
    assert len(slices) == 10
    assert all(STARVATION_S <= length <= STARVATION_S + 6 for length in lengths)


def test_higher_priority_hurries_and_lower_waits_for_the_higher() -> None:
    """High work of a cold model takes over after a tenth of the bound; low work while there is higher, never."""
    warm = policy(100, SIXTIES, A)
    assert opened(warm, {A: NORMAL, B: HIGH}, {A}, 1.0) == {A}
    assert opened(warm, {A: NORMAL, B: HIGH}, {A}, 1.0 + STARVATION_S / HURRY) == set()
    warm = policy(100, SIXTIES, A)
    assert opened(warm, {A: NORMAL, B: LOW}, {A}, 0.0) == {A}
    assert opened(warm, {A: NORMAL, B: LOW}, {A}, LONG) == {A}


def test_of_two_that_wait_the_higher_and_then_the_older_goes_first() -> None:
    """One is loaded at a time."""
    sizes = {A: WeightSize(60), B: WeightSize(60), C: WeightSize(60)}
    warm = policy(100, sizes, A)
    warm.takeable({A: NORMAL, C: NORMAL}, {A}, 0.0)
    assert opened(warm, {B: NORMAL, C: NORMAL}, set(), 1.0) == {C}
    assert opened(warm, {B: HIGH, C: NORMAL}, set(), 1.0) == {B}


def test_a_small_model_is_not_held_up_by_a_large_one_that_waits() -> None:
    """Until the large one's time has come."""
    warm = policy(100, SIXTIES, A)
    work = {A: NORMAL, B: NORMAL, C: NORMAL}
    warm.takeable({A: NORMAL, B: NORMAL}, {A}, 0.0)
    assert opened(warm, work, {A}, 1.0) == {A, C}
    assert opened(warm, work, {A}, STARVATION_S) == set()


def test_small_models_in_rotation_do_not_hold_off_a_large_one() -> None:
    """All have work without end, and one of the small ones is always new: the large one's time comes all the same."""
    large, *small = groups = [Group(name) for name in ("large", "s1", "s2", "s3", "s4")]
    warm = policy(100, {group: WeightSize(90 if group is large else 40) for group in groups})
    warm.load(small[0], [], 0.0)
    warm.load(small[1], [], STARVATION_S / 2)
    work = dict.fromkeys(groups, NORMAL)
    for second in range(int(STARVATION_S / 2), int(3 * STARVATION_S)):
        for group, victims in warm.takeable(work, set(), float(second)).items():
            if group not in warm.loaded:
                warm.load(group, victims, float(second))
        if large in warm.loaded:
            return
    raise AssertionError("the large model was never loaded")


def test_what_has_work_is_kept_before_what_is_idle() -> None:
    """A model whose next shard waits in its queue is not the one to go, though it was used longest ago."""
    warm = policy(100, {A: WeightSize(30), B: WeightSize(30), C: WeightSize(60)}, A, B)
    assert warm.takeable({A: NORMAL, C: NORMAL}, set(), 1.0) == {A: [], C: [B]}


def test_a_model_of_unknown_size_waits() -> None:
    """It is not known what must go for it."""
    warm = policy(100, {A: WeightSize(60)}, A)
    assert opened(warm, {B: NORMAL}, set(), LONG) == {A}


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_and_everyone_is_served(seed: int) -> None:
    """Models of random sizes and random work: the loaded ones fit, what is busy stays, and no wait is endless."""
    draw = random.Random(seed)
    groups = [Group(f"m{number}", draw.choice([None, "x", "y"])) for number in range(5)]
    sizes = {group: WeightSize(draw.randint(10, 80), draw.randint(0, 5)) for group in groups}
    base = {group.model: sizes[group].base for group in groups}
    warm = policy(100, {group: WeightSize(base[group.model], sizes[group].own) for group in groups})
    queued = dict.fromkeys(warm.sizes, 0)
    held: dict[Group, float] = {}
    waited = dict.fromkeys(queued, 0.0)
    for second in range(int(20 * STARVATION_S)):
        held = {group: end for group, end in held.items() if end > second}
        for group in queued:
            queued[group] += draw.random() < 0.05
        work = {group: NORMAL for group, count in queued.items() if count}
        for group, victims in warm.takeable(work, held.keys(), float(second)).items():
            if queued[group]:
                if group not in warm.loaded:
                    assert not held.keys() & set(victims)
                    warm.load(group, victims, float(second))
                queued[group] -= 1
                held[group] = second + draw.uniform(1, 20)
        assert held.keys() <= warm.loaded.keys()
        assert sum(share_out({group: warm.sizes[group] for group in warm.loaded}).values()) <= 100
        for group, count in queued.items():
            waited[group] = waited[group] + 1 if count and group not in warm.loaded else 0
            assert waited[group] <= len(groups) * (STARVATION_S + 25)
