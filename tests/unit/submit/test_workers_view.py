"""What `promptmill workers` shows, as text and as JSON objects."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from submit.status.text import cells
from submit.status.worker_state import LineInFlight, ModelInMemory, WorkerState
from submit.status.workers import LostWorker
from submit.status.workers_view import WorkersView

NOW = 1_790_000_300.0
MINI = WorkerState(
    name="mini-2.4711",
    state="busy",
    model=None,
    models=("org/pocket", "org/other"),
    queues=(),
    tokens_per_second=230.0,
    occupancy=0.9,
    memory_bytes=3 * 2**30,
    in_flight=(LineInFlight("b_1", 7, "row-7", "decode", 40, 40, 87),),
    loaded=(ModelInMemory("org/pocket", 2 * 2**30),),
    memory_limit_bytes=20 * 2**30,
    cached_share=0.41,
    lines_in_flight=38,
    lines_done=1204,
    hostname="mini-2",
    version="0.1.0",
    started_at=NOW - 7500,
)
OLD = WorkerState("old.1", "idle", None, (), (), None, None, None, ())
DEAD = LostWorker("studio.9", 74.0, "studio")


def test_a_row_per_worker() -> None:
    """State, models in memory with their size and in brackets those that are not, memory, speed, shares, counts."""
    header, mini, old, dead = WorkersView(NOW, [MINI, OLD], [DEAD]).text(None)
    assert header.split() == [
        "worker", "state", "models", "memory", "tok/s", "full", "cached", "lines", "done", "uptime", "host", "version",
    ]  # fmt: skip
    assert " ".join(mini.split()) == (
        "mini-2.4711 busy pocket 2.0 GiB, (other) 3.0 GiB of 20.0 GiB 230 90% 41% 38 1,204 2h05m mini-2 0.1.0"
    )
    assert old.split() == ["old.1", "idle", "-", "-", "-", "-", "-", "0", "0", "-", "-", "-"]
    assert " ".join(dead.split()) == "studio.9 silent for 1m14s - - - - - - - - studio -"


def test_a_worker_that_loads_says_which_model() -> None:
    """Without the folders before its name."""
    loading = replace(MINI, state="loading", model="org/other")
    assert "  loading other  " in WorkersView(NOW, [loading], []).text(None)[1]


def test_no_workers_is_said_with_what_to_do() -> None:
    """An empty pool is a sentence, not a lone header."""
    assert WorkersView(NOW, [], []).text(None) == ["no workers; `promptmill worker --model MODEL` starts one"]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_narrow_terminals_lose_columns_not_rows(width: int) -> None:
    """Name, state, models, speed and lines in flight stay."""
    lines = WorkersView(NOW, [MINI, OLD], [DEAD]).text(width)
    assert len(lines) == 4
    assert max(map(cells, lines)) <= width
    assert {"worker", "state", "models", "tok/s", "lines"} <= set(lines[0].split())


def test_the_json_objects_have_everything() -> None:
    """Numbers as they are, with the lines in flight; the silent ones say since when."""
    mini, dead = orjson.loads(orjson.dumps(WorkersView(NOW, [MINI], [DEAD]).as_json()))
    assert mini["name"] == "mini-2.4711"
    assert mini["loaded"] == [{"model": "org/pocket", "bytes": 2 * 2**30}]
    assert (mini["memory_bytes"], mini["memory_limit_bytes"]) == (3 * 2**30, 20 * 2**30)
    assert (mini["cached_share"], mini["uptime_s"], mini["lines_in_flight"]) == (0.41, 7500.0, 38)
    assert mini["in_flight"][0]["batch_id"] == "b_1"
    assert mini["in_flight"][0]["completion_tokens"] == 87
    assert dead == {"name": "studio.9", "state": "silent", "silent_s": 74.0, "hostname": "studio"}
