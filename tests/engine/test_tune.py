"""Measuring how many rows suit a model, on real models; the speeds themselves are the machine's affair."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import mlx.core as mx
import pytest

from tests.engine.conftest import MarkovModel
from worker.engine.loading.model import CacheCost, LoadedModel
from worker.engine.tuning import measure as tuning
from worker.engine.tuning.policy import Curve
from worker.models.autotune import TunedFile, tuned_rows
from worker.settings import EngineSettings


class Narrow(MarkovModel):
    """A model that cannot run more than ``most`` rows."""

    most = 4

    def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
        if tokens.shape[0] > self.most:
            raise MemoryError("too many rows")
        return super().__call__(tokens, cache)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "lfm2"])
def test_each_size_is_measured_in_a_batch_of_that_size(tiny: Callable[..., LoadedModel], kind: str) -> None:
    """Steps that all take the same time show as rates that grow as the rows do; windows and recurrent state too."""
    ticks = count()
    curve = tuning.tune(tiny(kind), 6, within_s=1e9, clock=lambda: float(next(ticks)))
    assert curve == Curve({1: 1.0, 2: 2.0, 4: 4.0, 6: 6.0}, 6)


def test_a_slow_step_by_chance_is_not_counted(markov: Callable[..., LoadedModel]) -> None:
    """What happens once, such as a kernel that is compiled, does not weigh: the median of several steps counts."""
    times = iter([0.0, 0.0, 0.0, *[float(n) for n in range(4)], *[50.0 + n for n in range(9)]])
    assert tuning.tune(markov(), 1, clock=lambda: next(times)).rates == {1: 1.0}


def test_too_many_rows_end_the_measurement(
    markov: Callable[..., LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    """A size that fails is said and not chosen; the worker goes on with the smaller ones."""
    known = markov()
    model = replace(known, model=Narrow(known.model.table))
    with caplog.at_level(logging.WARNING):
        curve = tuning.tune(model, 256)
    assert set(curve.rates) == {1, 2, 4}
    assert "8 rows together cannot run: too many rows" in caplog.text


def test_memory_bounds_what_is_tried(tiny: Callable[..., LoadedModel]) -> None:
    """As many rows of a typical length as the caches' memory has room for, and one in any case."""
    model = replace(tiny(), cache_cost=CacheCost(growing=1000))
    row = 1000 * tuning.ROW_TOKENS
    assert tuning.most_rows(model, 256, None) == 256
    assert tuning.most_rows(model, 256, 20 * row) == 20
    assert tuning.most_rows(model, 8, 20 * row) == 8
    assert tuning.most_rows(model, 256, row // 2) == 1


def test_a_result_is_measured_once_and_remembered(
    tiny: Callable[..., LoadedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what was measured and where it is kept, and at the next load that it is from there."""
    settings = EngineSettings(decode_concurrency=4)
    file = TunedFile(tmp_path / "tuned.json", today=lambda: "2026-11-21")
    with caplog.at_level(logging.INFO):
        first = tuned_rows(tiny(), settings, None, file)
        again = tuned_rows(tiny(), settings, None, file)
    assert first == again
    assert 1 <= first <= 4
    measured, remembered = [record.getMessage() for record in caplog.records]
    assert measured.startswith(f"qwen3: {first} rows together (measured: 1: ")
    assert measured.endswith(f"tokens/s; remembered in {file.path})")
    assert remembered == (
        f"qwen3: {first} rows together (measured on 2026-11-21; --autotune with {file.path} removed measures again)"
    )


def test_more_room_than_was_measured_is_measured_anew(tiny: Callable[..., LoadedModel], tmp_path: Path) -> None:
    """A bound that was raised, by flag or by memory, is not held to what was found below it."""
    file = TunedFile(tmp_path / "tuned.json")
    key = tuning.fingerprint(tiny(), None)
    file.remember(key, Curve({1: 100.0, 2: 200.0}, 2))
    assert tuned_rows(tiny(), EngineSettings(decode_concurrency=2), None, file) == 2
    assert tuned_rows(tiny(), EngineSettings(decode_concurrency=1), None, file) == 1
    tuned_rows(tiny(), EngineSettings(decode_concurrency=4), None, file)
    found = file.find(key)
    assert found is not None
    assert set(found.curve.rates) == {1, 2, 4}


def test_a_model_that_cannot_be_batched_is_not_measured(tiny: Callable[..., LoadedModel], tmp_path: Path) -> None:
    """One row, and nothing to remember."""
    alone = replace(tiny(), unbatchable="a draft model", model=None)
    file = TunedFile(tmp_path / "tuned.json")
    assert tuned_rows(alone, EngineSettings(), None, file) == 1
    assert not file.path.exists()


def test_other_weights_in_the_same_folder_are_another_model(tiny: Callable[..., LoadedModel]) -> None:
    """A model that was converted anew, under its old name, is measured again."""
    other = replace(tiny(num_hidden_layers=1), name=tiny().name)
    assert tuning.fingerprint(tiny(), None) == tuning.fingerprint(tiny(), None)
    assert tuning.fingerprint(other, None) != tuning.fingerprint(tiny(), None)
    assert tuning.fingerprint(tiny(), 2**30) != tuning.fingerprint(tiny(), None)
