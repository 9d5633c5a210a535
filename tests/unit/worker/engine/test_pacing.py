"""How large chunks of prompts are, by what decode steps and prompts took. Seconds are given, none pass."""

from __future__ import annotations

import pytest

from worker.engine.pacing import LEAST_CHUNK, STEPS_PER_CHUNK, Pace


def measured(step: float, token: float, most: int = 2048) -> Pace:
    pace = Pace(most)
    pace.prompts(1000, 1000 * token)
    pace.step(0, step)
    return pace


def test_all_at_once_while_nothing_decodes() -> None:
    """Nobody waits for the next step."""
    assert measured(0.01, 1.0).chunk(0, 32) == 2048


@pytest.mark.parametrize(("step", "token"), [(0.1, 0.0001), (0.05, 0.0002), (1.0, 0.003)])
def test_a_chunk_takes_as_long_as_a_few_steps(step: float, token: float) -> None:
    """At most, and more than half of it, in powers of two."""
    chunk = measured(step, token).chunk(32, 0)
    assert chunk & (chunk - 1) == 0
    assert 0.5 < chunk * token / (step * STEPS_PER_CHUNK) <= 1 or chunk == 2048


def test_bounds() -> None:
    """Never so little that reading the weights is not worth it, and never beyond what is allowed."""
    assert measured(0.001, 0.01).chunk(32, 0) == LEAST_CHUNK
    assert measured(1.0, 0.0001).chunk(32, 0) == 2048
    assert measured(0.001, 0.01, most=48).chunk(32, 0) == 48


def test_prompts_first_where_they_fill_free_slots() -> None:
    """The more rows are coming for each that waits, the longer is the chunk; one prompt among few rows changes
    little."""
    pace = measured(0.1, 0.001)
    assert pace.chunk(4, 1) <= 2 * pace.chunk(4, 0)
    assert pace.chunk(8, 24) >= 8 * pace.chunk(32, 0)


def test_nothing_is_known_at_first() -> None:
    """Until a step was measured: everything where more rows come than wait, the least where they do not."""
    pace = Pace(2048)
    assert pace.chunk(8, 24) == 2048
    assert pace.chunk(8, 1) == LEAST_CHUNK


def test_rates_are_learnt_beside_steps() -> None:
    """What the steps with chunks took in excess is what the chunks cost, though each shows one step later."""
    pace = measured(0.1, 0.01)
    assert pace.chunk(32, 0) == LEAST_CHUNK
    for _ in range(9):
        pace.step(512, 0.1)
        for _ in range(3):
            pace.step(512, 0.1 + 512 * 0.0001)
        pace.step(0, 0.1 + 512 * 0.0001)
        pace.step(0, 0.1)
    assert pace.chunk(32, 0) == 1024


def test_steps_are_learnt_where_each_has_a_chunk() -> None:
    """From what prompts took by themselves."""
    pace = Pace(2048)
    pace.prompts(1000, 0.1)
    for _ in range(9):
        pace.step(1000, 0.2)
    assert pace.chunk(32, 0) == 1024


def test_a_slow_step_now_and_then_does_not_count() -> None:
    """Half of the latest measurements must say so."""
    pace = measured(0.1, 0.001)
    usual = pace.chunk(32, 0)
    for seconds in (0.1, 5.0, 0.1, 0.1, 7.0):
        pace.step(0, seconds)
    assert pace.chunk(32, 0) == usual


def test_what_no_step_waited_for_is_forgotten() -> None:
    """The last row ended with a chunk behind it: the steps of the next rows do not pay for that."""
    pace = measured(0.1, 0.001)
    usual = pace.chunk(32, 0)
    pace.step(512, 0.1)
    pace.stopped()
    for _ in range(9):
        pace.step(0, 0.1)
    assert pace.chunk(32, 0) == usual
