"""Measuring how many rows suit a model, on real models; the speeds themselves are the machine's affair."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from jobs.app.worker_options import EngineSettings
from tests.engine.conftest import MarkovModel
from worker.engine.decode import DecodeBatch
from worker.engine.loading.config import Experts
from worker.engine.loading.model import CacheCost, LoadedModel
from worker.engine.sequence import Sequence
from worker.engine.tuning import device, measure as tuning
from worker.engine.tuning.device import weights_read
from worker.engine.tuning.limit import Limit
from worker.engine.tuning.policy import Curve
from worker.models.autotune import Choice, Tuned, TunedFile, Tuning, choose, tuned_rows

LIMIT = Limit(100e9, 2000.0, weights=10**9, row_bytes=10**6)


class Narrow(MarkovModel):
    """A model that cannot run more than ``most`` rows."""

    most = 4

    def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
        if tokens.shape[0] > self.most:
            raise MemoryError("too many rows")
        return super().__call__(tokens, cache)


def copied(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Have less memory copied than the speed of a machine's is measured with."""
    for name in ("COPIED", "COPIED_ON_CPU"):
        monkeypatch.setattr(device, name, size)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "lfm2"])
def test_each_size_is_measured_in_a_batch_of_that_size(tiny: Callable[..., LoadedModel], kind: str) -> None:
    """Steps that all take the same time show as rates that grow as the rows do; windows and recurrent state too."""
    ticks = count()
    curve = tuning.tune(tiny(kind), 6, within_s=1e9, clock=lambda: float(next(ticks)))
    assert curve == Curve({1: 1.0, 2: 2.0, 4: 4.0, 6: 6.0}, 6)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "lfm2"])
def test_rows_are_of_like_length_and_unlike(
    tiny: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They share their beginning and end in tokens of their own, so that they go through unlike experts."""
    joined: list[list[Sequence]] = []
    join = DecodeBatch.join

    def noted(batch: DecodeBatch, rows: list[Sequence], caches: list[object], inputs: list[int]) -> None:
        joined.append(list(rows))
        join(batch, rows, caches, inputs)

    monkeypatch.setattr(DecodeBatch, "join", noted)
    tuning.tune(tiny(kind), 16, prompt_tokens=40)
    prompts = [row.prompt for row in joined[-1]]
    assert {len(prompt) for prompt in prompts} == {41}
    assert len({prompt[:32] for prompt in prompts}) == 1
    assert len({prompt[32:] for prompt in prompts}) == len(prompts) == 16
    assert len({prompt[-1] for prompt in prompts}) > 12


def test_sizes_at_which_the_experts_kernel_begins_are_tried(tiny: Callable[..., LoadedModel]) -> None:
    """A model with 64 experts, 4 per token: 64 rows, and twice as many, though the time is up before."""
    model = tiny("qwen3_moe", num_experts=64, num_experts_per_tok=4)
    ticks = count()
    curve = tuning.tune(model, 256, prompt_tokens=16, within_s=32.0, clock=lambda: float(next(ticks)))
    assert set(curve.rates) == {1, 2, 4, 8, 32, 64, 128}


def test_models_that_share_no_prefixes_are_measured_with_short_rows(tiny: Callable[..., LoadedModel]) -> None:
    """Their prompts would have to be computed whole, for every row."""
    ticks = count()
    model = replace(tiny(), prefixes=False)
    assert tuning.tune(model, 2, clock=lambda: float(next(ticks))) == Curve({1: 1.0, 2: 2.0}, 2)


def test_a_model_whose_rows_run_alone_has_one_speed(tiny: Callable[..., LoadedModel]) -> None:
    """For `promptmill tune`, which shows it."""
    ticks = count()
    assert tuning.tune(tiny("gemma2"), 1, clock=lambda: float(next(ticks))) == Curve({1: 1.0}, 1)


def test_the_limit_counts_what_a_step_reads(tiny: Callable[..., LoadedModel]) -> None:
    """All weights but the embeddings, which are looked up, unless they are the output layer too; experts by how many
    the rows go through."""
    moe = tiny("qwen3_moe")
    arrays = dict(tree_flatten(moe.model.parameters()))
    experts = sum(array.nbytes for name, array in arrays.items() if "switch_mlp" in name)
    embeddings = arrays["model.embed_tokens.weight"].nbytes
    total = sum(array.nbytes for array in arrays.values())
    assert weights_read(moe, Experts(4, 2)) == (total - experts - embeddings, experts)
    tied = tiny("qwen3", tie_word_embeddings=True)
    total = sum(array.nbytes for _, array in tree_flatten(tied.model.parameters()))
    assert weights_read(tied, None) == (total, 0)


def test_the_limit_is_measured_on_this_machine(
    tiny: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a copy of memory and with prompts, where there is time with several together; what a row takes is the
    model's own."""
    copied(monkeypatch, 2**20)
    monkeypatch.setattr(device, "TRY_S", 100.0)
    ticks = count()
    found = device.limit_of(tiny("qwen3_moe"), 100, 4096, clock=lambda: float(next(ticks)))
    assert found.bandwidth == 2 * 2**20 * device.COPIES
    assert found.prefill == device.TOGETHER * device.PREFILL_TOKENS
    assert found.row_bytes == tiny("qwen3_moe").cache_cost(100)
    assert found.experts == Experts(4, 2)


def test_a_slow_step_by_chance_is_not_counted(markov: Callable[..., LoadedModel]) -> None:
    """What happens once, such as a kernel that is compiled, does not weigh: the median of several steps counts."""
    times = iter([0.0, 0.0, 0.0, *[float(n) for n in range(4)], *[50.0 + n for n in range(9)], 60.0])
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
    row = 1000 * 2 * tuning.PROMPT_TOKENS
    assert tuning.most_rows(model, 256, None) == 256
    assert tuning.most_rows(model, 256, 20 * row) == 20
    assert tuning.most_rows(model, 8, 20 * row) == 8
    assert tuning.most_rows(model, 256, row // 2) == 1
    assert tuning.most_rows(model, 256, 20 * row, 2 * tuning.PROMPT_TOKENS) == 10


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TunedFile:
    """The file that remembers, on a machine whose limits are measured quickly."""
    copied(monkeypatch, 2**10)
    monkeypatch.setattr(device, "TRY_S", 0.0)
    return TunedFile(tmp_path / "tuned.json")


def test_a_result_is_measured_once_and_remembered(
    tiny: Callable[..., LoadedModel], file: TunedFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what was measured and where it is kept, and at the next load that it is from there."""
    settings = EngineSettings(decode_concurrency=4)
    with caplog.at_level(logging.INFO):
        first = tuned_rows(tiny(), settings, None, file)
        again = tuned_rows(tiny(), settings, None, file)
    assert first == again
    assert 1 <= first <= 4
    measured, remembered = [record.getMessage() for record in caplog.records]
    assert measured.startswith(f"qwen3: {first} rows together (measured: 1: ")
    assert measured.endswith(f"tokens/s; remembered in {file.path})")
    day = time.strftime("%Y")
    assert remembered.startswith(f"qwen3: {first} rows together (measured on {day}-")
    assert remembered.endswith("; `promptmill tune --again` measures again)")


def test_more_room_than_was_measured_is_measured_anew(tiny: Callable[..., LoadedModel], file: TunedFile) -> None:
    """A bound that was raised, by flag or by memory, is not held to what was found below it."""
    key = tuning.fingerprint(tiny(), None)
    file.remember(key, Tuned(Curve({1: 100.0, 2: 200.0}, 2), LIMIT, 512, "2026-11-21"))
    assert tuned_rows(tiny(), EngineSettings(decode_concurrency=2), None, file) == 2
    assert tuned_rows(tiny(), EngineSettings(decode_concurrency=1), None, file) == 1
    tuned_rows(tiny(), EngineSettings(decode_concurrency=4), None, file)
    found = file.find(key)
    assert found is not None
    assert set(found.curve.rates) == {1, 2, 4}


def test_the_command_and_workers_share_what_is_remembered(tiny: Callable[..., LoadedModel], file: TunedFile) -> None:
    """Whoever measures first; rows of another length, or `--again`, are a reason to measure again."""
    settings, told = EngineSettings(decode_concurrency=2), []

    def ask(**asked: Any) -> Choice:
        told.clear()
        return choose(tiny(), settings, None, file, Tuning(2, **asked), on_speed=lambda rows, rate: told.append(rows))

    tuned_rows(tiny(), settings, None, file)
    assert ask().remembered
    assert told == []
    assert not ask(again=True).remembered
    assert not ask(prompt_tokens=32).remembered
    assert told == [1, 2]
    assert ask().tuned.prompt_tokens == 32
    assert ask(prompt_tokens=32).remembered


def test_a_model_that_cannot_be_batched_is_not_measured(tiny: Callable[..., LoadedModel], file: TunedFile) -> None:
    """One row, and nothing to remember."""
    alone = replace(tiny(), unbatchable="a draft model", model=None)
    assert tuned_rows(alone, EngineSettings(), None, file) == 1
    assert not file.path.exists()


def test_other_weights_in_the_same_folder_are_another_model(tiny: Callable[..., LoadedModel]) -> None:
    """A model that was converted anew, under its old name, is measured again."""
    other = replace(tiny(num_hidden_layers=1), name=tiny().name)
    assert tuning.fingerprint(tiny(), None) == tuning.fingerprint(tiny(), None)
    assert tuning.fingerprint(other, None) != tuning.fingerprint(tiny(), None)
    assert tuning.fingerprint(tiny(), 2**30) != tuning.fingerprint(tiny(), None)
