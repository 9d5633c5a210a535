"""What is read of a worker's published state, whoever wrote it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from submit.status.worker_state import FailingModel, ModelInMemory, parse_state

FULL: dict[str, Any] = {
    "name": "mini.7",
    "state": "busy",
    "model": None,
    "models": ["org/pocket", "org/other"],
    "loaded": [{"model": "org/pocket", "bytes": 3 * 2**30}],
    "queues": ["promptmill:normal:org/pocket"],
    "hostname": "mini",
    "version": "0.1.0",
    "started_at": 1_790_000_000.5,
    "tokens_per_second": 230.0,
    "speeds": [200, 230],
    "occupancy": 0.9,
    "cached_share": 0.41,
    "lines_per_second": 1.5,
    "scored_per_second": 12.5,
    "failing": [{"model": "org/other", "reason": "the hub\x1b cannot be reached", "retry_s": 40.2, "given_up": False}],
    "refused": [{"batch_id": "b_1", "reason": "'min_p' is not a field of a line"}],
    "memory_bytes": 5 * 2**30,
    "memory_limit_bytes": 20 * 2**30,
    "totals": {"lines": 12, "prompt_tokens": 100, "cached_tokens": 41, "completion_tokens": 900, "scored_tokens": 70},
    "lines_in_flight": 300,
    "in_flight": [{"batch_id": "b", "index": 1, "id": "row", "phase": "prefill", "prompt_tokens": 9, "prefilled": 4}],
}


def test_all_that_a_worker_publishes_is_read() -> None:
    """Sizes, limits, shares, totals, and how many lines are in flight beyond those that are listed."""
    state = parse_state(orjson.dumps(FULL))
    assert state is not None
    assert state.loaded == (ModelInMemory("org/pocket", 3 * 2**30),)
    assert state.failing == (FailingModel("org/other", "the hub? cannot be reached", 40.2),)
    assert state.refused == {"b_1": "'min_p' is not a field of a line"}
    assert (state.memory_bytes, state.memory_limit_bytes) == (5 * 2**30, 20 * 2**30)
    assert (state.speeds, state.occupancy, state.cached_share) == ((200.0, 230.0), 0.9, 0.41)
    assert (state.lines_done, state.lines_in_flight, len(state.in_flight)) == (12, 300, 1)
    assert (state.as_dict()["scored_per_second"], state.scored_tokens) == (12.5, 70)
    assert (state.hostname, state.version, state.uptime(1_790_000_060.5)) == ("mini", "0.1.0", 60.0)
    assert state.as_dict()["started_at"] == "2026-09-21T14:13:20.500Z"
    assert state.as_dict()["totals"] == FULL["totals"]


def test_states_of_older_workers_have_defaults() -> None:
    """A worker that says only what it always had to is shown all the same."""
    state = parse_state(b'{"name": "old.1", "state": "idle"}')
    assert state is not None
    assert (state.name, state.effective_state, state.loaded, state.speeds, state.paused) == (
        "old.1",
        "idle",
        (),
        (),
        False,
    )
    assert (state.memory_limit_bytes, state.cached_share, state.started_at, state.uptime(5.0)) == (None,) * 4


@pytest.mark.parametrize(
    ("state", "paused", "word"),
    [
        ("idle", True, "paused"),
        ("busy", True, "paused"),
        ("loading", True, "loading"),
        ("draining", True, "draining"),
        ("busy", False, "busy"),
        ("idle", "yes", "idle"),
    ],
)
def test_a_paused_worker_says_so(state: str, paused: Any, word: str) -> None:
    """Unless it has something else to say; what is no truth value is none."""
    found = parse_state(orjson.dumps({"name": "a", "state": state, "paused": paused}))
    assert found is not None
    assert found.effective_state == word


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_limit_bytes": -1},
        {"memory_bytes": 2**60},
        {"loaded": [{"model": "m"}]},
        {"loaded": [{"model": "m", "bytes": "3"}]},
        {"loaded": {"m": 3}},
        {"speeds": {"a": 1}},
        {"speeds": [1, "2"]},
        {"speeds": "12"},
        {"failing": [{"model": "m"}]},
        {"failing": [{"model": "m", "reason": 5}]},
        {"failing": [{"model": "m", "reason": "r", "retry_s": -1}]},
        {"refused": {"b_1": "no"}},
        {"refused": [{"batch_id": "b_1"}]},
        {"totals": [1]},
        {"totals": {"lines": -2}},
        {"started_at": 1e15},
        {"started_at": "now"},
        {"hostname": 5},
        {"cached_share": -0.1},
        {"lines_in_flight": 1.5},
    ],
)
def test_a_state_with_a_wrong_field_is_none(wrong: dict[str, Any]) -> None:
    """It is somebody else's: the whole of it is passed over."""
    assert parse_state(orjson.dumps(FULL | wrong)) is None


def test_what_is_too_much_is_cut_and_what_could_steer_a_terminal_is_replaced() -> None:
    """A minute of speeds, shares of at most one, printable letters."""
    odd = {"speeds": list(range(1000)), "occupancy": 7.0, "name": "a\x1b[2Jb\u202ec", "hostname": "h\r\n"}
    state = parse_state(orjson.dumps(FULL | odd))
    assert state is not None
    assert state.speeds == tuple(map(float, range(940, 1000)))
    assert state.occupancy == 1.0
    assert (state.name, state.hostname) == ("a?[2Jb?c", "h??")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null", b'{"name": 1, "state": "x", "in_flight": [{}]}', b"\xff"])
def test_what_is_no_state_is_passed_over(raw: bytes) -> None:
    """JSON of another kind under a worker's key is ignored, not an error."""
    assert parse_state(raw) is None
