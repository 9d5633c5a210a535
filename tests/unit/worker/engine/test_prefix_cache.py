"""Which prefixes are shared and which are kept. No model, no tensors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from worker.engine.caches.prefix_cache import Prefix, PrefixCache, PromptTree, prefix_budget
from worker.engine.scheduler import Scheduler, SequenceGroup

HEAD = tuple(range(1000, 1100))


def prompt(*parts: Any) -> tuple[int, ...]:
    """A prompt of parts: tuples as they are, numbers as five tokens of their own; one more token at the end."""
    tokens = [part if isinstance(part, tuple) else tuple(range(part * 10, part * 10 + 5)) for part in parts]
    return (*(token for part in tokens for token in part), 7)


def group_of(tokens: tuple[int, ...]) -> SequenceGroup:
    return SequenceGroup(list(tokens), len(tokens) - 1, len(tokens) + 10)


def prefixes_of(*prompts: tuple[int, ...], budget: int = 10_000, **options: Any) -> PrefixCache:
    found = PrefixCache(budget, lambda tokens: tokens, **options)
    for one in prompts:
        found.see(one)
    return found


def assigned(prefixes: PrefixCache, *prompts: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Length of the prefix, tokens left to compute and cached tokens of each prompt; what is planned gets computed."""
    wave = [group_of(tokens) for tokens in prompts]
    prefixes.assign(wave)
    for planned in prefixes.planned():
        prefixes.computed(planned, "caches", len(planned))
    return [(len(item.prefix or ()), item.length, item.cached) for item in wave]


def test_common_beginning_is_found_and_paid_once() -> None:
    """The first prompt pays for what all have in common, later ones find it."""
    prompts = [prompt(HEAD, i) for i in range(6)]
    prefixes = prefixes_of(*prompts)
    assert assigned(prefixes, *prompts[:4]) == [(100, 5, 0), (100, 5, 100), (100, 5, 100), (100, 5, 100)]
    assert assigned(prefixes, *prompts[4:]) == [(100, 5, 100)] * 2
    assert (len(prefixes), prefixes.nbytes) == (1, 100)


def test_prompts_of_the_past_count() -> None:
    """A prompt shares with those that have long ended, though nothing was kept of them."""
    prefixes = prefixes_of(prompt(HEAD, 1))
    assert assigned(prefixes, prompt(HEAD, 1)) == [(0, 105, 0)]
    prefixes.see(prompt(HEAD, 2))
    assert assigned(prefixes, prompt(HEAD, 2)) == [(100, 5, 0)]


@pytest.mark.parametrize(("length", "others", "shared"), [(31, 9, 0), (32, 1, 0), (32, 2, 32), (64, 1, 64)])
def test_what_spares_little_is_not_shared(length: int, others: int, shared: int) -> None:
    """Short beginnings, and those that hardly anyone has, are not worth a forward of their own."""
    prompts = [prompt(HEAD[:length], i) for i in range(1 + others)]
    prefixes = prefixes_of(*prompts)
    assert assigned(prefixes, prompts[0])[0][0] == shared


def test_tokens_in_common_by_chance_do_not_count() -> None:
    """Prompts that agree a little further than all the others start from what all have."""
    prompts = [prompt(HEAD, (5, 6), 1), prompt(HEAD, (5, 6), 2), prompt(HEAD, 3), prompt(HEAD, 4)]
    prefixes = prefixes_of(*prompts)
    assert [size for size, _, _ in assigned(prefixes, *prompts)] == [100] * 4


def test_prefixes_of_prefixes() -> None:
    """A document after a system prompt goes on from the system prompt: each part is paid once."""
    documents = [tuple(range(2000, 2080)), tuple(range(3000, 3050))]
    prompts = [prompt(HEAD, documents[i % 2], i) for i in range(6)]
    prefixes = prefixes_of(*prompts)
    assert assigned(prefixes, *prompts[:3]) == [(180, 5, 0), (150, 5, 100), (180, 5, 180)]
    assert assigned(prefixes, prompt(HEAD, 9)) == [(100, 5, 100)]


def test_last_token_is_left() -> None:
    """Prompts that are equal leave their last token to compute, and no more."""
    prompts = [prompt(HEAD)] * 3
    assert assigned(prefixes_of(*prompts), *prompts) == [(100, 0, 0), (100, 0, 100), (100, 0, 100)]


def test_rows_that_begin_again_use_prefixes() -> None:
    """A row that comes back with tokens of its own shares its prompt's prefix."""
    prompts = [prompt(HEAD, i) for i in range(3)]
    prefixes = prefixes_of(*prompts)
    assigned(prefixes, *prompts)
    assert assigned(prefixes, (*prompts[0], 1, 2, 3)) == [(100, 8, 100)]


def test_least_recently_used_goes_first() -> None:
    """A prefix that is used stays; the one unused for longest makes room."""
    heads = [tuple(range(start, start + 100)) for start in (1000, 2000, 3000)]
    prompts = [[prompt(head, i) for i in range(4)] for head in heads]
    prefixes = prefixes_of(*(one for group in prompts for one in group), budget=200)
    assigned(prefixes, prompts[0][0], prompts[1][0], prompts[0][1])
    assert assigned(prefixes, prompts[2][0]) == [(100, 5, 0)]
    assert prefixes.nbytes == 200
    assert assigned(prefixes, prompts[0][2], prompts[1][2]) == [(100, 5, 100), (100, 5, 0)]


def test_prefix_in_use_outlives_its_place() -> None:
    """Prefixes that push each other out within one wave are all computed, each before those who need it."""
    heads = [tuple(range(start, start + 100)) for start in (1000, 2000)]
    prompts = [prompt(heads[i % 2], i) for i in range(8)]
    prefixes = prefixes_of(*prompts, budget=100)
    wave = [group_of(one) for one in prompts]
    prefixes.assign(wave)
    planned = prefixes.planned()
    assert prefixes.planned() == []
    assert all(item.prefix in planned for item in wave)
    for prefix in planned:
        prefixes.computed(prefix, "caches", 100)
    assert (len(prefixes), prefixes.nbytes) == (1, 100)


def test_too_large_for_the_budget() -> None:
    """A prefix that does not fit is not planned; one that turns out larger than was thought is not kept."""
    prompts = [prompt(HEAD, i) for i in range(4)]
    assert assigned(prefixes_of(*prompts, budget=99), *prompts)[0] == (0, 105, 0)
    prefixes = prefixes_of(*prompts, budget=100)
    prefixes.assign([group_of(prompts[0])])
    (planned,) = prefixes.planned()
    prefixes.computed(planned, "caches", 101)
    assert len(prefixes) == 0


def test_parts_of_prefixes() -> None:
    """Where caches can be cut, a part of a longer prefix costs nothing; where not, it is computed."""
    prompts = [prompt(HEAD, i) for i in range(3)]
    shorter = [prompt(HEAD[:60], i) for i in range(4, 7)]
    for shorten, paid in ((lambda caches, tokens: (caches, tokens), 0), (lambda caches, tokens: None, 60)):
        prefixes = prefixes_of(*prompts, shorten=shorten)
        assigned(prefixes, *prompts)
        for one in shorter:
            prefixes.see(one)
        assert assigned(prefixes, *shorter) == [(60, 5, 60 - paid), (60, 5, 60), (60, 5, 60)]


def test_forgetting() -> None:
    """After a failure the caches are gone and the prompts remembered; after clear both are gone."""
    prompts = [prompt(HEAD, i) for i in range(3)]
    prefixes = prefixes_of(*prompts)
    assigned(prefixes, *prompts)
    prefixes.forget()
    assert len(prefixes) == 0
    assert assigned(prefixes, prompts[1]) == [(100, 5, 0)]
    prefixes.clear()
    assert assigned(prefixes, prompts[1]) == [(0, 105, 0)]


def test_switched_off() -> None:
    """A budget of 0 shares nothing."""
    prompts = [prompt(HEAD, i) for i in range(3)]
    assert assigned(prefixes_of(*prompts, budget=0), *prompts) == [(0, 105, 0)] * 3


def test_budget() -> None:
    """A tenth of the memory unless given, never more than the memory, and not below 0."""
    assert prefix_budget(None, 1000) == 100
    assert prefix_budget(None, None) == 512 << 20
    assert prefix_budget(5000, 1000) == 1000
    assert prefix_budget(0, None) == 0
    with pytest.raises(ValueError, match="prefix_memory"):
        prefix_budget(-1, None)


def test_groups_have_one_prefix() -> None:
    """Prompts are grouped by what they start from, then by what is left of them; rows keep their order of arrival."""
    prefixes = [Prefix((1,)), Prefix((2,))]

    def assign(wave: list[SequenceGroup]) -> None:
        for item in wave:
            item.prefix = {"a": prefixes[0], "b": prefixes[1]}.get(item.key[0])

    scheduler = Scheduler(assign=assign)
    for name, length in (("a1", 10), ("b1", 12), ("c1", 9), ("a2", 5), ("b2", 300), ("c2", 11)):
        scheduler.add(SequenceGroup([], length, 400, key=name))
    found = [[item.key for item in batch] for batch in scheduler.begin()]
    assert found == [["a2", "a1"], ["b1"], ["b2"], ["c1", "c2"]]


short = st.lists(st.integers(0, 2), max_size=8).map(tuple)


@given(prompts=st.lists(short, min_size=1, max_size=14), most=st.integers(1, 60), asked=short)
@settings(max_examples=300, deadline=None)
def test_index_knows_where_ways_part(prompts: list[tuple[int, ...]], most: int, asked: tuple[int, ...]) -> None:
    """Against comparing with all prompts one by one: the same branches, for prompts that are in the tree and not."""
    index = PromptTree(most)
    for one in prompts:
        index.add(one)
    kept = list(prompts)
    while sum(map(len, kept)) > most and len(kept) > 1:
        kept.pop(0)
    for tokens in {asked, *kept}:
        others = list(kept)
        known = tokens in others
        if known:
            others.remove(tokens)
        counts = [sum(one[:size] == tokens[:size] for one in others) for size in range(1, len(tokens) + 1)]
        ends = [size for size, count in enumerate(counts, 1) if count and [*counts, 0][size] < count]
        found = dict(index.branches(tokens))
        assert set(ends) <= set(found)
        for size in found:
            assert found[size] <= counts[size - 1]
            assert not known or found[size] == counts[size - 1]
