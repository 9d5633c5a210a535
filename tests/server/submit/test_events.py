"""What the Python client tells while a batch runs, on a real server and without an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.exceptions

from jobs.errors import BatchNotFoundError, LineError, WaitTimeoutError
from jobs.lines.line import Job
from jobs.record import Choice
from jobs.store.keys import worker_key
from jobs.store.store import Store
from submit import BatchFinished, Client, FirstToken, LineFinished, PromptProgress
from tests.pool import echo, prompts, publish, work

Step = Callable[[], None]


class Script:
    """A clock, and a sleep that makes the next thing happen; each sleep takes a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: Iterator[Step] = iter(())

    def sleep(self, _seconds: float) -> None:
        self.now += 1.0
        next(self.steps, lambda: None)()

    def clock(self) -> float:
        return self.now


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def client(server_url: str, script: Script) -> Iterator[Client]:
    with Client(server_url, clock=script.clock, sleep=script.sleep) as opened:
        yield opened


def flying(batch_id: str, index: int, prefilled: int, tokens: int = 0) -> dict[str, Any]:
    """A line in flight as workers publish it; prompts have 10 tokens, as ``work`` writes in their records."""
    return {
        "batch_id": batch_id,
        "index": index,
        "id": f"row-{index}",
        "phase": "decode" if tokens else "prefill",
        "prompt_tokens": 10,
        "prefilled": prefilled,
        "completion_tokens": tokens,
    }


def short(event: Any) -> tuple[Any, ...]:
    match event:
        case PromptProgress():
            return ("prompt", event.index, event.prefilled)
        case FirstToken():
            return ("first", event.index)
        case LineFinished():
            return ("line", event.index, event.ok)
    return ("batch", event.batch.status)


def test_events_come_as_workers_publish_and_records_are_stored(client: Client, store: Store, script: Script) -> None:
    """A prompt's progress, the first token once, the line with its record, the batch."""
    batch = client.submit(prompts(1), model="m")
    script.steps = iter(
        [
            lambda: publish(store, "mini.1", in_flight=[flying(batch.id, 0, 4)]),
            lambda: publish(store, "mini.1", in_flight=[flying(batch.id, 0, 4)]),
            lambda: publish(store, "mini.1", in_flight=[flying(batch.id, 0, 10)]),
            lambda: publish(store, "mini.1", in_flight=[flying(batch.id, 0, 10, 3)]),
            lambda: publish(store, "mini.1", in_flight=[flying(batch.id, 0, 10, 9)]),
            lambda: work(store, batch.id),
        ]
    )
    events = list(batch.watch())
    assert [short(event) for event in events] == [
        ("prompt", 0, 4),
        ("prompt", 0, 10),
        ("first", 0),
        ("line", 0, True),
        ("batch", "completed"),
    ]
    assert events[0] == PromptProgress(0, "row-0", 4, 10, "mini.1")
    assert events[2] == FirstToken(0, "row-0", "mini.1")
    assert events[3].record["text"] == "answer to row-0"
    assert events[4].batch.completed == 1


def test_lines_that_no_poll_has_seen_are_told_from_their_records(client: Client, store: Store, script: Script) -> None:
    """Each that finished well has the end of its prompt and one first token before it; one that failed has not."""

    def failing(job: Job) -> list[Choice]:
        if job.index == 1:
            raise LineError("context_length_exceeded", "prompt", "too long")
        return echo(job)

    batch = client.submit(prompts(3), model="m")
    script.steps = iter([lambda: work(store, batch.id, only=[2, 1, 0], answer=failing)])
    assert [short(event) for event in batch.watch()] == [
        ("prompt", 2, 10), ("first", 2), ("line", 2, True),
        ("line", 1, False),
        ("prompt", 0, 10), ("first", 0), ("line", 0, True),
        ("batch", "completed"),
    ]  # fmt: skip


def test_what_a_worker_still_says_of_finished_lines_is_nothing_new(
    client: Client, store: Store, script: Script
) -> None:
    """States are up to a second old: after its record a line is told of no more. Nor are lines of other batches."""
    batch = client.submit(prompts(2), model="m")
    stale = [flying(batch.id, 0, 5), flying("b_other", 1, 5), flying(batch.id, 77, 5)]
    script.steps = iter(
        [
            lambda: work(store, batch.id, only=[0]),
            lambda: publish(store, "mini.1", in_flight=stale),
            lambda: work(store, batch.id, only=[1]),
        ]
    )
    told = [short(event) for event in batch.watch()]
    assert told == [
        ("prompt", 0, 10), ("first", 0), ("line", 0, True),
        ("prompt", 1, 10), ("first", 1), ("line", 1, True),
        ("batch", "completed"),
    ]  # fmt: skip


def test_a_line_that_begins_again_elsewhere_has_one_first_token(client: Client, store: Store, script: Script) -> None:
    """Its worker died: another one reads the prompt again, of which nothing more is told."""
    batch = client.submit(prompts(1), model="m")

    def taken_over() -> None:
        store.connection.delete(worker_key("mini.1"))
        publish(store, "studio.2", in_flight=[flying(batch.id, 0, 2)])

    script.steps = iter(
        [
            lambda: publish(store, "mini.1", in_flight=[flying(batch.id, 0, 10, 5)]),
            taken_over,
            *[lambda: None] * 6,  # as long as new workers may not be looked for
            lambda: publish(store, "studio.2", in_flight=[flying(batch.id, 0, 10, 5)]),
            lambda: work(store, batch.id),
        ]
    )
    assert [short(event) for event in batch.watch()] == [
        ("prompt", 0, 10),
        ("first", 0),
        ("line", 0, True),
        ("batch", "completed"),
    ]


def test_lines_finished_before_come_first(client: Client, store: Store) -> None:
    """A watch of a batch that is done tells everything of it, in the order of finishing."""
    batch = client.submit(prompts(3), model="m")
    work(store, batch.id, only=[1, 0, 2])
    lines = [event.index for event in batch.watch() if isinstance(event, LineFinished)]
    assert lines == [1, 0, 2]
    assert isinstance(list(batch.watch())[-1], BatchFinished)


def test_lines_of_a_cancelled_batch_are_told_once(client: Client, store: Store) -> None:
    """Those that were not run finish with an error record of their own."""
    batch = client.submit(prompts(3), model="m")
    work(store, batch.id, only=[1])
    batch.cancel()
    lines = [(event.index, event.ok) for event in batch.watch() if isinstance(event, LineFinished)]
    assert lines == [(1, True), (0, False), (2, False)]


def test_callbacks_are_called_with_what_they_asked_for(client: Client, store: Store) -> None:
    """Those that were not given are not missed; the batch comes last, and is what wait returns."""
    batch = client.submit(prompts(2), model="m")
    work(store, batch.id)
    told: list[Any] = []
    done = batch.wait(on_first_token=told.append, on_line=told.append, on_batch=told.append)
    assert [type(item).__name__ for item in told] == [
        "FirstToken", "LineFinished", "FirstToken", "LineFinished", "Batch",
    ]  # fmt: skip
    assert told[-1] == done
    alone: list[Any] = []
    assert batch.wait(on_batch=alone.append) == alone[0]


def test_an_exception_of_a_callback_comes_out_and_the_batch_goes_on(client: Client, store: Store) -> None:
    """As it was raised, whatever it is: even one that looks like Redis' own."""
    batch = client.submit(prompts(2), model="m")
    work(store, batch.id, only=[0])

    def broken(_event: LineFinished) -> None:
        raise redis.exceptions.ConnectionError("mine")

    with pytest.raises(redis.exceptions.ConnectionError, match="mine"):
        batch.wait(on_line=broken)
    assert batch.status().status == "in_progress"


def test_a_watch_gives_up_after_its_timeout(client: Client, store: Store) -> None:
    """What was finished by then has been told."""
    batch = client.submit(prompts(2), model="m")
    work(store, batch.id, only=[1])
    told: list[LineFinished] = []
    with pytest.raises(WaitTimeoutError, match="it goes on without you"):
        batch.wait(timeout=3, on_line=told.append)
    assert [event.index for event in told] == [1]


def test_a_purged_batch_is_said_to_be_gone(client: Client, store: Store, script: Script) -> None:
    """In the middle of a watch too."""
    batch = client.submit(prompts(2), model="m")
    script.steps = iter([lambda: store.discard(batch.id)])
    with pytest.raises(BatchNotFoundError):
        list(batch.watch())
