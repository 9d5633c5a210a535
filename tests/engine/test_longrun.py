"""A long run takes no more memory at its end than in its middle; and what is watched for that would show a leak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from bench import longrun
from bench.longrun import Plan
from worker.engine.decode import SETTLE_EVERY, DecodeBatch
from worker.engine.loading.mlx_models import compiler_present

PLAN = Plan(tokens=2700, rows=8, every=SETTLE_EVERY, longest=16, deck=24)
NOISE = 0.2
"""A batch this small has some fifty buffers, and ten more or less with the lines that happen to be in it."""


@pytest.mark.parametrize(("name", "compile"), [("dense", False), ("hybrid", False), ("dense", True)])
def test_memory_is_flat(name: str, compile: bool) -> None:
    """Live buffers do not grow, with rows of all kinds coming and going and prefixes given up, whether or not sampling
    is compiled; nor do bytes, beyond what one step of the caches' growth, 256 columns, makes of them in so short a
    run."""
    if compile and not compiler_present():
        pytest.skip("g++ not on PATH")
    grown = longrun.growth(longrun.run(longrun.MODELS[name](), replace(PLAN, compile=compile)))
    assert grown["live_buffers"] < NOISE, grown
    assert max(grown.values()) < 0.5, grown


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that each step makes from the one before, and that nobody evaluates, shows in the count of live
    buffers."""
    advance, kept = DecodeBatch.advance, [mx.zeros(1)]

    def leaking(batch: DecodeBatch) -> None:
        advance(batch)
        kept[0] = kept[0] + mx.array([1.0])

    monkeypatch.setattr(DecodeBatch, "advance", leaking)
    grown = longrun.growth(longrun.run(longrun.dense(), PLAN))
    assert grown["live_buffers"] > 2 * NOISE, grown


def test_too_few_samples_tell_nothing() -> None:
    """A verdict needs three samples in each third."""
    sample: Any = longrun.Sample(1, 50, 7, 0.1, 1000, 1000, 10)
    with pytest.raises(ValueError, match="take more tokens"):
        longrun.growth([sample] * 8)
    assert set(longrun.growth([sample] * 9).values()) == {0.0}
