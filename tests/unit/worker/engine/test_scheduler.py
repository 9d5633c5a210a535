"""The scheduler's policy: what begins when, in what company, within which memory. No model, no tensors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from jobs.params import Sampling
from worker.engine.room import CacheBytes
from worker.engine.scheduler import MOST_OVERTAKEN, Scheduler, SequenceGroup
from worker.engine.sequence import PreparedLine, Sequence, sequences_of
from worker.engine.text_lengths import FIRST_GUESS

FLAT = CacheBytes(lambda tokens: tokens, lambda tokens: tokens, growth=0)
"""A token is a byte, and caches are as wide as their longest row."""


def group_of(
    name: Any = "x", length: int = 10, *, limit: int = 90, rows: int = 1, rank: int = 0, tokens: tuple[int, ...] = ()
) -> SequenceGroup:
    """A group whose line has the key ``name``, and texts of at most ``limit`` tokens."""
    prompt = tuple(range(length)) or (0,)
    line = PreparedLine(name, prompt, Sampling(seed=0, n=rows, max_tokens=limit), frozenset(), rank=rank)
    sequences = sequences_of(line, None, 0.0)
    return SequenceGroup([*prompt, *tokens], length, len(prompt) + limit, sequences, name, rank=rank)


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


def end_row(scheduler: Scheduler, group: SequenceGroup) -> None:
    """One running row of a group ends: the one that started first."""
    scheduler.ended(next(row for row, other in scheduler._running.items() if other is group))


def scheduler_of(groups: list[SequenceGroup], *, memory: int | None = None, **options: Any) -> Scheduler:
    scheduler = Scheduler(**options)
    scheduler.room.memory = memory
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
                end_row(scheduler, item)
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
    end_row(scheduler, running[0][0])
    assert [item.key for item, _ in started(scheduler)] == ["2"]
    assert scheduler.begin() == []


def test_choices_start_as_rows_come_free() -> None:
    """A line with more choices than rows starts them in turn from one prefill, ahead of the next line."""
    many = group_of("many", rows=5)
    scheduler = scheduler_of([many, group_of("next")], decode_concurrency=2, prompt_concurrency=1)
    begun(scheduler)
    assert started(scheduler) == [(many, 2)]
    end_row(scheduler, many)
    assert started(scheduler) == [(many, 1)]
    for _ in range(2):
        end_row(scheduler, many)
    assert started(scheduler) == [(many, 2)]
    assert many.rows == 0
    end_row(scheduler, many)
    end_row(scheduler, many)
    assert many.done
    assert [item.key for item in begun(scheduler)] == ["next"]


def test_memory_is_charged_at_the_widest_row() -> None:
    """A batch is as wide as its longest row, so each row is charged for that one."""
    groups = [group_of("short", 5, limit=5), group_of("wide", 5, limit=45), group_of("third", 5, limit=5)]
    scheduler = scheduler_of(groups, memory=100, sizes=FLAT)
    assert names(scheduler.begin()) == [["short", "wide"]]


def test_a_wide_line_waits_for_room() -> None:
    """A line that does not fit beside the others waits, holds back later lines, and runs when there is room."""
    groups = [*(group_of(str(n), 5, limit=5) for n in range(4)), group_of("wide", 5, limit=55), group_of("late", 5)]
    scheduler = scheduler_of(groups, memory=100, sizes=FLAT)
    begun(scheduler)
    running = [item for item, _ in started(scheduler)]
    assert len(running) == 4
    assert scheduler.begin() == []
    for item in running:
        end_row(scheduler, item)
    assert names(scheduler.begin()) == [["wide"]]


def test_what_never_fits_is_told() -> None:
    """A row larger than the whole memory can never run; one as large can."""
    room = scheduler_of([], memory=100, sizes=CacheBytes(lambda tokens: 2 * tokens, growth=0)).room
    assert room.too_large(50) is None
    assert "102 bytes" in str(room.too_large(51))


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
    room = scheduler_of([], memory=memory, sizes=CacheBytes(lambda tokens: 10 * tokens, growth=0)).room
    room.most = most
    assert room.context_of(prepared(8, None), context) == expected
    assert room.context_of(prepared(8, 5000), context) == context


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


def room_taken(scheduler: Scheduler) -> int:
    """What the caches of all that has begun take after the next step, were they as wide as they must be."""
    lengths = [len(row.prompt) + len(row.tokens) + 1 for row in scheduler._running]
    prompts = sum(FLAT.prompts(batch.lengths) for batch in scheduler._staged if batch.rows)
    return FLAT.decoding(lengths) + prompts


def readmit(scheduler: Scheduler) -> int:
    """Take back what must go and queue it again; how many running rows had to go."""
    before = scheduler.running
    for rows in scheduler.take_back():
        tokens = [*rows[0].prompt, *rows[0].tokens]
        again = SequenceGroup(tokens, len(tokens) - 1, 0, rows, rows[0].key, rank=rows[0].line.rank, again=True)
        scheduler.add_first(again)
    return before - scheduler.running


def text(scheduler: Scheduler, lengths: dict[Any, int]) -> list[Sequence]:
    """A token for every running row; those that end with it."""
    ended = []
    for row in list(scheduler._running):
        row.tokens.append(1)
        if len(row.tokens) >= min(lengths[row.key], row.limit):
            scheduler.ended(row)
            scheduler.room.texts.add(len(row.tokens))
            ended.append(row)
    return ended


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 100), st.integers(1, 9), st.integers(0, 2)),
        min_size=1,
        max_size=25,
    ),
    rows=st.integers(1, 6),
    prompts=st.integers(1, 4),
    memory=st.one_of(st.none(), st.integers(500, 2000)),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_everything_runs_within_the_limits(
    shapes: list[tuple[int, int, int, int]], rows: int, prompts: int, memory: int | None, order: Any
) -> None:
    """Whatever comes, however long texts get and whatever had been expected: every row comes to its end, in bounded
    time, never too many together, and never beyond the memory."""
    groups = [
        group_of(index, length, limit=limit, rows=count, rank=rank)
        for index, (length, limit, count, rank) in enumerate(shapes)
    ]
    scheduler = scheduler_of(groups, decode_concurrency=rows, prompt_concurrency=prompts, memory=memory, sizes=FLAT)
    scheduler.room.texts.add(order.choice([1, 50, 1000]))
    lengths = {group.key: order.randint(1, 120) for group in groups}
    ended: list[Sequence] = []
    for _ in range(20_000):
        readmit(scheduler)
        scheduler.start()
        assert scheduler.running <= rows
        if order.random() < 0.7:
            scheduler.prefilled([item for batch in scheduler.begin() for item in batch])
        if memory is not None:
            assert room_taken(scheduler) <= memory or scheduler.running + scheduler.staged <= 1
        ended += text(scheduler, lengths)
        if len(ended) == sum(count for _, _, count, _ in shapes):
            break
    assert sorted((row.key, row.choice) for row in ended) == [
        (index, choice) for index, (_, _, count, _) in enumerate(shapes) for choice in range(count)
    ]
    assert scheduler.waiting == scheduler.staged == scheduler.running == 0


def test_rows_are_let_in_by_what_texts_need() -> None:
    """With max_tokens of 32,768, texts of 500 tokens and memory for 16 full rows, more than a hundred decode together;
    the limit is never passed, though nothing is known of the texts at first, and no row goes more than once."""
    memory = 16 * (100 + 32_768)
    groups = [group_of(index, 100, limit=32_768) for index in range(600)]
    scheduler = scheduler_of(groups, memory=memory, decode_concurrency=2048, sizes=CacheBytes(FLAT.row, FLAT.row))
    lengths = {group.key: 450 + group.key % 100 for group in groups}
    together, preempted, ended = [], 0, 0
    while ended < len(groups):
        preempted += readmit(scheduler)
        scheduler.start()
        scheduler.prefilled([item for batch in scheduler.begin() for item in batch])
        held = [scheduler.room.needed(scheduler._running), scheduler._held(scheduler._staged)]
        assert sum(held) <= memory
        together.append(scheduler.running)
        ended += len(text(scheduler, lengths))
    assert max(together) > 300
    assert sorted(together)[len(together) // 2] > 100
    assert preempted < 100


def test_the_youngest_goes_and_comes_back_first() -> None:
    """The row that began last makes room; it begins again before all that waits, keeps its place among the others, and
    only when there is room for what it is expected to need."""
    groups = [group_of(name, 10, limit=440) for name in "abc"]
    scheduler = scheduler_of(groups, memory=3 * 300, prompt_concurrency=4, sizes=FLAT)
    begun(scheduler)
    assert len(started(scheduler)) == 3
    lengths = {"a": 420, "b": 440, "c": 440, "d": 5}
    gone = 0
    while not gone:
        text(scheduler, lengths)
        gone = readmit(scheduler)
    assert {row.key for row in scheduler._running} == {"a", "b"}
    assert next(len(row.tokens) for row in scheduler._running) > FIRST_GUESS
    scheduler.add(group_of("d", 10, limit=5))
    assert scheduler.begin() == []
    while not text(scheduler, lengths):
        assert scheduler.begin() == []
        assert readmit(scheduler) == 0
    assert [group.key for group in begun(scheduler)] == ["c"]
    started(scheduler)
    assert [row.started for row in scheduler._running if row.key == "c"] == [3]


def test_rows_of_a_higher_priority_stay() -> None:
    """Who must go is decided by rank before age."""
    groups = [group_of("low", 10, limit=400, rank=2), group_of("high", 10, limit=400)]
    scheduler = scheduler_of([], memory=600, prompt_concurrency=1, sizes=FLAT)
    for group in groups:
        scheduler.add(group)
        begun(scheduler)
        started(scheduler)
    lengths = {"low": 400, "high": 400}
    while not readmit(scheduler):
        text(scheduler, lengths)
    assert {row.key for row in scheduler._running} == {"high"}


def test_prompts_computed_ahead_go_before_rows() -> None:
    """What has no token yet loses least."""
    groups = [group_of(index, 40, limit=600) for index in range(4)]
    scheduler = scheduler_of(groups, memory=1200, decode_concurrency=2, prompt_concurrency=2, sizes=FLAT)
    for _ in range(2):
        begun(scheduler)
        started(scheduler)
    assert (scheduler.running, scheduler.staged) == (2, 2)
    lengths = dict.fromkeys(range(4), 600)
    while scheduler.staged:
        text(scheduler, lengths)
        assert readmit(scheduler) == 0
    assert (scheduler.running, scheduler.waiting) == (2, 2)


def test_choices_of_a_prompt_that_fills_the_memory() -> None:
    """Where its copy and the prompt do not fit beside each other the choices run one after the other, each from a
    prompt computed anew."""
    scheduler = scheduler_of([group_of("many", 60, limit=20, rows=3)], memory=100, sizes=FLAT)
    ended: list[Sequence] = []
    for _ in range(200):
        readmit(scheduler)
        scheduler.start()
        begun(scheduler)
        assert room_taken(scheduler) <= 100
        ended += text(scheduler, {"many": 20})
    assert [row.choice for row in ended] == [0, 1, 2]


def test_less_memory_is_kept_to_at_once() -> None:
    """Another model was loaded beside this one: rows make room in the next step."""
    groups = [group_of(index, 10, limit=50) for index in range(4)]
    scheduler = scheduler_of(groups, memory=1000, sizes=FLAT)
    begun(scheduler)
    started(scheduler)
    scheduler.room.memory = 30
    assert readmit(scheduler) == 2
    assert {row.key for row in scheduler._running} == {0, 1}


def test_the_next_wave_begins_before_the_last_prompt_is_gone() -> None:
    """While it is computed, what is left of the wave before follows rows that end."""
    scheduler = scheduler_of([group_of(n) for n in range(20)], decode_concurrency=4, prompt_concurrency=4)
    begun(scheduler)
    running = started(scheduler)
    assert len(begun(scheduler)) == 4
    for group, _ in running[:2]:
        assert scheduler.begin() == []
        end_row(scheduler, group)
        started(scheduler)
    assert scheduler.staged == 2
    assert scheduler.begin() == []
    end_row(scheduler, running[2][0])
    started(scheduler)
    assert len(scheduler.begin()[0]) == 4
    end_row(scheduler, running[3][0])
    assert len(started(scheduler)) == 1


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
                end_row(scheduler, group)
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
