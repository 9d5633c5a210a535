"""The scheduler's policy: what begins when, in what company, within which memory. No model, no tensors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from jobs.params import Sampling
from worker.engine.scheduler import MOST_OVERTAKEN, Scheduler, SequenceGroup
from worker.engine.sequence import PreparedLine, sequences_of


def group_of(name: Any = "x", length: int = 10, *, end: int = 100, rows: int = 1, rank: int = 0) -> SequenceGroup:
    """A group whose line has the key ``name``."""
    line = PreparedLine(name, (0,), Sampling(seed=0, n=rows), frozenset())
    return SequenceGroup([], length, end, sequences_of(line, None, 0.0), name, rank=rank)


def names(batches: list[list[SequenceGroup]]) -> list[list[str]]:
    return [[item.key for item in batch] for batch in batches]


def begun(scheduler: Scheduler) -> list[SequenceGroup]:
    """Begin a wave and have it prefilled at once."""
    groups = [item for batch in scheduler.begin() for item in batch]
    scheduler.prefilled(groups)
    return groups


def started(scheduler: Scheduler) -> list[tuple[SequenceGroup, int]]:
    """The groups of which rows start now, and how many of each."""
    return [(group, len(rows)) for group, rows in scheduler.start()]


def scheduler_of(groups: list[SequenceGroup], **options: Any) -> Scheduler:
    scheduler = Scheduler(**options)
    for item in groups:
        scheduler.add(item)
    return scheduler


def test_first_come_first_served() -> None:
    """Rows start in the order in which lines came."""
    scheduler = scheduler_of([group_of(name) for name in "abcdef"], decode_concurrency=4, prompt_concurrency=2)
    assert names(scheduler.begin()) == [["a", "b"]]
    assert scheduler.begin() == []
    assert (scheduler.waiting, scheduler.staged, scheduler.free) == (4, 2, 4)


def test_similar_prompts_are_grouped() -> None:
    """A wave is parted where padding would cost more than another forward; prompts of one token stay apart."""
    groups = [group_of(str(length), length) for length in (500, 30, 0, 40, 510, 45, 0, 2000)]
    scheduler = scheduler_of(groups)
    assert names(scheduler.begin()) == [["0", "0"], ["30", "40", "45"], ["500", "510"], ["2000"]]


def test_a_wave_is_the_first_prompt_and_those_most_like_it() -> None:
    """Prompts of like length go together, from a few waves ahead; the one that came first is in every wave, so none
    is passed over for ever."""
    lengths = [300, 20, 310, 25, 900, 290, 21, 880, 5000, 301]
    waves = []
    scheduler = scheduler_of([group_of(str(n), n) for n in lengths], prompt_concurrency=2)
    while scheduler.waiting:
        waves.append([item.key for item in begun(scheduler)])
        for item, count in started(scheduler):
            for _ in range(count):
                scheduler.ended(item)
    assert waves == [["300", "310"], ["20", "21"], ["25", "290"], ["880", "900"], ["301", "5000"]]


def test_equal_lengths_only_where_padding_harms() -> None:
    """Models that do not mask padding get batches of one length."""
    scheduler = scheduler_of([group_of(str(n), n) for n in (7, 8, 7)], padding=False)
    assert names(scheduler.begin()) == [["7", "7"], ["8"]]


def test_prompts_are_computed_ahead_when_rows_are_busy() -> None:
    """With all rows busy and nothing ready the next prompts are prefilled, so that the next free row finds one."""
    scheduler = scheduler_of([group_of(str(n)) for n in range(9)], decode_concurrency=2, prompt_concurrency=2)
    begun(scheduler)
    running = started(scheduler)
    assert [item.key for item, _ in running] == ["0", "1"]
    assert [item.key for item in begun(scheduler)] == ["2", "3"]
    assert scheduler.begin() == []
    assert started(scheduler) == []
    scheduler.ended(running[0][0])
    assert [item.key for item, _ in started(scheduler)] == ["2"]
    assert scheduler.begin() == []


def test_choices_start_as_rows_come_free() -> None:
    """A line with more choices than rows starts them in turn from one prefill, ahead of the next line."""
    many = group_of("many", rows=5)
    scheduler = scheduler_of([many, group_of("next")], decode_concurrency=2, prompt_concurrency=1)
    begun(scheduler)
    assert started(scheduler) == [(many, 2)]
    scheduler.ended(many)
    assert started(scheduler) == [(many, 1)]
    for _ in range(2):
        scheduler.ended(many)
    assert started(scheduler) == [(many, 2)]
    assert many.rows == 0
    scheduler.ended(many)
    scheduler.ended(many)
    assert many.done
    assert [item.key for item in begun(scheduler)] == ["next"]


def test_memory_is_charged_at_the_widest_row() -> None:
    """A batch is as wide as its longest row, so each row is charged for that one."""
    groups = [group_of("short", end=10), group_of("wide", end=50), group_of("third", end=10)]
    scheduler = scheduler_of(groups, memory=100, row_bytes=lambda tokens: tokens)
    assert names(scheduler.begin()) == [["short", "wide"]]


def test_a_wide_line_waits_for_room() -> None:
    """A line that does not fit beside the others waits, holds back later lines, and runs when there is room."""
    groups = [*(group_of(str(n), end=10) for n in range(4)), group_of("wide", end=60), group_of("late", end=10)]
    scheduler = scheduler_of(groups, memory=100, row_bytes=lambda tokens: tokens)
    begun(scheduler)
    running = [item for item, _ in started(scheduler)]
    assert len(running) == 4
    assert scheduler.begin() == []
    for item in running:
        scheduler.ended(item)
    assert names(scheduler.begin()) == [["wide"]]


def test_what_never_fits_is_told() -> None:
    """A row larger than the whole memory can never run; one as large can."""
    scheduler = Scheduler(memory=100, row_bytes=lambda tokens: 2 * tokens)
    assert scheduler.too_large(group_of(end=50)) is None
    assert "102 bytes" in str(scheduler.too_large(group_of(end=51)))


def prepared(prompt: int, max_tokens: int | None) -> PreparedLine:
    return PreparedLine("x", (1,) * prompt, Sampling(max_tokens=max_tokens, seed=0), frozenset())


@pytest.mark.parametrize(
    ("memory", "most", "context", "expected"),
    [
        (None, None, 1000, 1000),
        (5000, None, 1000, 500),
        (5000, 8000, 1000, 800),
        (20_000, None, 1000, 1000),
        (70, None, 1000, 9),
        (None, None, None, None),
        (5000, None, None, 500),
    ],
)
def test_a_text_to_the_contexts_end_asks_for_no_more_than_a_row_alone_can_have(
    memory: int | None, most: int | None, context: int | None, expected: int | None
) -> None:
    """Its end is the context's or the memory's, whichever comes first; a prompt that does not fit still fails."""
    scheduler = Scheduler(memory=memory, row_bytes=lambda tokens: 10 * tokens)
    scheduler.most = most
    assert scheduler.context_of(prepared(8, None), context) == expected
    assert scheduler.context_of(prepared(8, 5000), context) == context


def test_rows_that_come_back_are_first() -> None:
    """A row that must begin again is not sent to the end of the queue."""
    scheduler = scheduler_of([group_of("a"), group_of("b")])
    scheduler.add_first(group_of("again"))
    assert names(scheduler.begin()) == [["again", "a", "b"]]


def test_drop_in_every_state() -> None:
    """A dropped group is forgotten wherever it is, and its company is not."""
    groups = [group_of(name) for name in "abcd"]
    scheduler = scheduler_of(groups, prompt_concurrency=2, decode_concurrency=2)
    scheduler.begin()
    scheduler.drop(groups[0])
    scheduler.prefilled([groups[1]])
    scheduler.drop(groups[2])
    assert [item.key for item, _ in started(scheduler)] == ["b"]
    assert [item.key for item in begun(scheduler)] == ["d"]


@pytest.mark.parametrize("options", [{"decode_concurrency": 0}, {"prompt_concurrency": 0}])
def test_nonsense_is_refused(options: dict[str, int]) -> None:
    """Concurrencies below one are refused."""
    with pytest.raises(ValueError, match="at least 1"):
        Scheduler(**options)


@given(
    shapes=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100), st.integers(1, 9)), min_size=1, max_size=25),
    rows=st.integers(1, 6),
    prompts=st.integers(1, 4),
    memory=st.one_of(st.none(), st.integers(400, 2000)),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_everything_runs_within_the_limits(
    shapes: list[tuple[int, int, int]], rows: int, prompts: int, memory: int | None, order: Any
) -> None:
    """Whatever comes, and in whatever order rows end: every row runs once, never too many, never beyond the memory
    but for a row that is all by itself."""
    groups = [
        group_of(index, length, end=length + more, rows=count) for index, (length, more, count) in enumerate(shapes)
    ]
    scheduler = scheduler_of(
        groups, decode_concurrency=rows, prompt_concurrency=prompts, memory=memory, row_bytes=lambda tokens: tokens
    )
    counts = {item.key: 0 for item in groups}
    running: list[SequenceGroup] = []
    for _ in range(2000):
        scheduler.prefilled([item for batch in scheduler.begin() for item in batch])
        for item, count in started(scheduler):
            counts[item.key] += count
            running += [item] * count
        assert len(running) == scheduler.running <= rows
        if memory is not None and len(running) > 1:
            assert len(running) * max(item.end for item in running) <= memory
        if not running:
            break
        ending = running.pop(order.randrange(len(running)))
        scheduler.ended(ending)
    assert counts == {index: count for index, (_, _, count) in enumerate(shapes)}
    assert scheduler.waiting == scheduler.staged == 0


def test_lower_ranks_begin_first() -> None:
    """Those that came later too, whatever their length; within a rank the order is that of arrival."""
    scheduler = Scheduler(decode_concurrency=2, prompt_concurrency=2)
    groups = [group_of(name, length, rank=rank) for name, length, rank in
               (("a", 10, 1), ("b", 10, 1), ("c", 90, 0), ("d", 10, 2), ("e", 95, 0), ("f", 10, 1))]  # fmt: skip
    for group in groups:
        scheduler.add(group)
    order = []
    while scheduler.waiting:
        wave = [group for batch in scheduler.begin() for group in batch]
        order.append({group.key for group in wave})
        scheduler.prefilled(wave)
        for group, count in started(scheduler):
            for _ in range(count):
                scheduler.ended(group)
    assert order == [{"c", "e"}, {"a", "b"}, {"f"}, {"d"}]


def test_nothing_is_overtaken_for_ever() -> None:
    """A group that waits lets so many of lower ranks pass, then it goes before those that come."""
    scheduler = Scheduler(decode_concurrency=1, prompt_concurrency=1)
    scheduler.add(group_of("patient", 10, rank=2))
    for number in range(MOST_OVERTAKEN + 10):
        scheduler.add(group_of(number, 10, rank=0))
    order = [group.key for group in scheduler._waiting]
    assert order.index("patient") == MOST_OVERTAKEN
    assert order[MOST_OVERTAKEN + 1 :] == list(range(MOST_OVERTAKEN, MOST_OVERTAKEN + 10))


def test_what_was_running_before_is_overtaken_by_none() -> None:
    """Whatever its rank was, and whatever comes later."""
    scheduler = Scheduler(decode_concurrency=1, prompt_concurrency=1)
    scheduler.add(group_of("waiting", 10, rank=0))
    scheduler.add_first(group_of("again", 10, rank=2))
    for number in range(3):
        scheduler.add(group_of(number, 10, rank=0))
    assert [group.key for batch in scheduler.begin() for group in batch] == ["again"]
