"""What `promptmill status` shows, as text and as JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson
import pytest

from jobs.batch import Batch, Usage
from submit.status.batch_view import BatchView
from submit.status.pool_view import PoolView
from submit.status.rates import BatchRates
from submit.status.text import cells
from submit.status.waiting import BatchOutlook
from submit.status.worker_state import LineInFlight, WorkerState

NOW = 1_790_000_300.0
QUEUE = "promptmill:normal:org/pocket"
QUEUES = frozenset({QUEUE})
RUNNING = Batch(
    id="b_01M7WHRNPRZGVFB4KZDYHB524A",
    status="in_progress",
    name="nightly",
    source="prompts.jsonl",
    models=("org/pocket",),
    times={"created": NOW - 310, "started": NOW - 300},
    total=1000,
    completed=590,
    failed=10,
    rejected=4,
    usage=Usage(12_000, 60_000, 2_000),
    defaults={"model": "org/pocket", "temperature": 0.7, "stop": ["END"]},
    metadata={"team": "a"},
)
DECODING = LineInFlight(RUNNING.id, 601, "row-601", "decode", 40, 40, 87)
PREFILLING = LineInFlight(RUNNING.id, 602, "row-602", "prefill", 2048, 512, 0)
OTHERS = LineInFlight("b_other", 3, "x", "decode", 1, 1, 1)


def worker(state: str = "busy", *lines: LineInFlight, queues: tuple[str, ...] = (QUEUE,)) -> WorkerState:
    return WorkerState("mini.7", state, "org/pocket", ("org/pocket",), queues, 230.0, 0.9, 3 * 2**30, lines)


def batch_table(batches: Sequence[Batch], *, width: int | None = None, **known: Any) -> list[str]:
    """What `status` prints of these batches."""
    return PoolView(NOW, batches, **known).text(width)


def detail(batch: Batch, workers: Sequence[WorkerState], queues: frozenset[str] = QUEUES, **known: Any) -> list[str]:
    """What `status BATCH` prints."""
    return BatchView(NOW, BatchOutlook(batch, queues, workers, **known)).text()


def test_the_list_has_a_row_per_batch() -> None:
    """Counts, tokens, speed since the start, time left, model and age."""
    header, row = batch_table([RUNNING])
    assert header.split() == ["batch", "name", "status", "done/failed/total", "tokens", "tok/s", "eta", "model", "age"]
    assert row.split() == [
        RUNNING.id, "nightly", "running", "590/10/1,000", "72.0k", "200", "3m21s", "pocket", "5m10s",
    ]  # fmt: skip


def test_recent_rates_win_over_those_since_the_start() -> None:
    """While it is watched, speed and time left are those of the last minute."""
    row = batch_table([RUNNING], rates={RUNNING.id: BatchRates(4.0, 10.0, 50.0)})[1]
    assert "50.0" in row
    assert "1m40s" in row


def test_no_batches_is_said_with_what_to_do() -> None:
    """An empty list is a sentence, not a lone header."""
    assert batch_table([]) == ["no batches; `promptmill submit FILE --model MODEL` makes one"]


@pytest.mark.parametrize("width", [60, 70, 80, 100, 120])
def test_narrow_terminals_lose_columns_not_rows(width: int) -> None:
    """Columns that matter less are dropped until the table fits; id, status and counts stay."""
    lines = batch_table([RUNNING], width=width)
    assert max(map(cells, lines)) <= width
    assert lines[0].split()[0] == "batch"
    assert "590/10/1,000" in lines[1]


def test_names_cannot_steer_the_terminal() -> None:
    """Control characters in what users named are shown as question marks."""
    assert "\x1b" not in batch_table([replace(RUNNING, name="a\x1b[2J")])[1]


def test_detail_shows_facts_and_lines_in_flight() -> None:
    """One batch: its counts, speed, defaults, workers, and each line being worked on."""
    states = [worker("busy", PREFILLING, DECODING, OTHERS)]
    text = detail(RUNNING, states, QUEUES)
    facts = dict(line.split(maxsplit=1) for line in text[: text.index("")])
    assert facts["batch"] == f"{RUNNING.id} (nightly)"
    assert facts["status"] == "in_progress"
    assert facts["lines"] == "600 of 1,000 done, 10 failed (4 of them refused at submission)"
    assert facts["tokens"] == "12,000 prompt (2,000 cached), 60,000 generated"
    assert facts["rate"] == "200 tok/s, 3m21s left"
    assert facts["defaults"] == 'temperature 0.7, stop ["END"]'
    assert facts["metadata"] == '{"team":"a"}'
    assert facts["worker"] == "mini.7: busy, 230 tok/s, 90% full, 3.0 GiB"
    rows = [line.split() for line in text[text.index("") + 1 :]]
    assert rows == [
        ["2", "lines", "in", "flight"],
        ["index", "id", "phase", "tokens", "worker"],
        ["601", "row-601", "decode", "87", "generated", "mini.7"],
        ["602", "row-602", "prefill", "512", "of", "2,048", "read", "mini.7"],
    ]


def test_detail_of_a_finished_batch_has_no_eta_and_no_flight() -> None:
    """What is over shows when it ended, and neither a rest nor lines in flight."""
    done = replace(RUNNING, status="completed", completed=990, times={**RUNNING.times, "completed": NOW - 60})
    text = "\n".join(detail(done, [worker("idle")], QUEUES))
    assert "ended     " in text
    assert "left" not in text
    assert "in flight" not in text


def test_detail_of_a_cancelled_batch_counts_what_was_run() -> None:
    """Lines that were not run are neither done nor failed."""
    times = {**RUNNING.times, "cancelled": NOW - 60}
    ended = replace(RUNNING, status="cancelled", completed=390, failed=610, rejected=0, unrun=600, times=times)
    shown = detail(ended, [], QUEUES)
    assert "lines     400 of 1,000 done, 10 failed, 600 not run: the batch was cancelled" in shown


def test_a_batch_that_is_done_has_the_rate_of_all_its_time() -> None:
    """Whatever was seen of it while it was watched."""
    done = replace(RUNNING, status="completed", completed=990, times={**RUNNING.times, "completed": NOW})
    row = batch_table([done], rates={done.id: BatchRates(4.0, 10.0, 50.0)})[1]
    assert row.split()[-4:-2] == ["200", "-"]


def test_the_json_object_has_the_lines_in_flight() -> None:
    """The contract's fields, and each line in flight with its worker."""
    shown = orjson.loads(
        orjson.dumps(BatchView(NOW, BatchOutlook(RUNNING, QUEUES, [worker("busy", DECODING)]), memory=4096).as_json())
    )
    assert shown["id"] == RUNNING.id
    assert shown["request_counts"] == {"total": 1000, "completed": 590, "failed": 10}
    assert shown["rates"]["eta_s"] == pytest.approx(201.3)
    assert shown["waiting"] is None
    (one,) = shown["workers"]
    assert (one["name"], one["state"], one["models"]) == ("mini.7", "busy", ["org/pocket"])
    assert (one["tokens_per_second"], one["occupancy"], one["memory_bytes"]) == (230.0, 0.9, 3 * 2**30)
    assert shown["in_flight"] == [
        {
            "index": 601,
            "id": "row-601",
            "phase": "decode",
            "prompt_tokens": 40,
            "prefilled": 40,
            "completion_tokens": 87,
            "worker": "mini.7",
        }
    ]


def test_a_batch_waits_for_the_adapter_that_nobody_serves() -> None:
    """It is said first, however busy the workers at hand are; while other lines run, that some of them wait."""
    queues = QUEUES | {"promptmill:normal:org/pocket+lora"}
    for state in (worker("idle"), worker("busy", OTHERS), worker("loading")):
        assert BatchOutlook(RUNNING, queues, [state]).why_waiting == "waiting: no worker serves org/pocket+lora"
    assert BatchOutlook(RUNNING, queues, [worker("busy", DECODING)]).why_waiting is None
    shown = detail(RUNNING, [worker("busy", DECODING)], queues)
    assert "status    in_progress, some of its lines wait: no worker serves org/pocket+lora" in shown
    assert [line for line in shown if line.startswith("rate")] == ["rate      200 tok/s"]  # no time left is known
    assert BatchView(NOW, BatchOutlook(RUNNING, queues, [worker("busy", DECODING)])).as_json()["unserved"] == [
        "org/pocket+lora"
    ]


def test_a_paused_pool_is_said() -> None:
    """In the batch's status where nothing of it runs, and for itself; its workers are called paused."""
    shown = detail(RUNNING, [replace(worker("idle"), paused=True)], QUEUES, pool_paused=True)
    assert "status    in_progress, paused with the pool: `promptmill resume` lets it go on" in shown
    assert "pool      the pool is paused: `promptmill resume` lets it go on" in shown
    assert [line[:22] for line in shown if line.startswith("worker")] == ["worker    mini.7: paus"]
    draining = detail(RUNNING, [worker("busy", DECODING)], QUEUES, pool_paused=True)
    assert "status    in_progress" in draining  # lines that were begun are finished
    done = replace(RUNNING, status="completed", times={**RUNNING.times, "completed": NOW - 60})
    assert "paused" not in "\n".join(detail(done, [], QUEUES, pool_paused=True))


def test_a_starting_worker_says_so() -> None:
    """Not idle: it is not ready for work."""
    assert "worker    mini.7: starting, 90% full, 3.0 GiB" in detail(RUNNING, [worker("starting")], QUEUES)


def test_the_list_has_the_words_of_the_views() -> None:
    """What runs, waits, is paused or begins later; only what runs has a speed and a time left."""
    later = replace(RUNNING, times={**RUNNING.times, "starts": NOW + 3600})
    batches = [replace(batch, id=f"b_{number}") for number, batch in enumerate([RUNNING, RUNNING, RUNNING, later])]
    why = {
        "b_1": "waiting: no worker serves org/pocket",
        "b_2": "paused: `promptmill resume b_2` lets it go on",
        "b_3": "waiting for its time",
    }
    rows = [line.split() for line in batch_table(batches, waiting=why)[1:]]
    at = datetime.fromtimestamp(NOW + 3600).strftime("%H:%M")
    assert [" ".join(row[2:-6]) for row in rows] == ["running", "waiting", "paused", f"begins {at}"]
    assert [row[-4:-2] for row in rows] == [["200", "3m21s"], ["-", "-"], ["-", "-"], ["-", "-"]]


@pytest.mark.parametrize(("days", "form"), [(3, "begins %a %H:%M"), (40, "begins %Y-%m-%d")])
def test_what_begins_on_another_day_has_the_day(days: int, form: str) -> None:
    """By its name within the week, by its date after that."""
    starts = NOW + days * 86400
    later = replace(RUNNING, times={"starts": starts})
    row = batch_table([later], waiting={RUNNING.id: "waiting for its time"})[1]
    assert datetime.fromtimestamp(starts).strftime(form) in row


def test_80_columns_have_names_and_short_ids() -> None:
    """Ids give way before names do, each still another's; a wide terminal has them whole."""
    twin = replace(RUNNING, id=f"{RUNNING.id[:-6]}X{RUNNING.id[-5:]}", name="a-very-long-name-of-a-batch-of-mine")
    header, *rows = batch_table([RUNNING, twin], width=80)
    assert header.split()[:2] == ["batch", "name"]
    assert [row.split()[1] for row in rows] == ["nightly", "a-very-long-name-of-a-b…"]
    shown = [row.split()[0] for row in rows]
    assert shown == ["b_01M7...HB524A", "b_01M7...XB524A"]
    assert batch_table([RUNNING], width=80)[1].split()[:4] == [
        "b_01M7...B524A", "nightly", "running", "590/10/1,000",
    ]  # fmt: skip
    assert RUNNING.id in batch_table([RUNNING], width=160)[1]


def test_ended_batches_say_when_and_live_ones_when_they_will() -> None:
    """A cancelled batch has its end, a running one the time at which it expires."""
    ended = replace(RUNNING, status="cancelled", times={"created": NOW - 310, "cancelled": NOW - 60})
    (line,) = (line for line in detail(ended, [], QUEUES) if line.startswith("ended"))
    assert line.endswith("(1m00s ago)")
    live = replace(RUNNING, times={**RUNNING.times, "in_progress": NOW - 300, "expires": NOW + 90})
    shown = detail(live, [], QUEUES)
    assert [line for line in shown if line.startswith("ended")] == []
    assert [line[-10:] for line in shown if line.startswith("expires")] == ["(in 1m30s)"]
