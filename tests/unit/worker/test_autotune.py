"""What --autotune and `promptmill tune` remember, and how it is lost and found."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from worker.engine.loading.config import Experts
from worker.engine.tuning.limit import Limit
from worker.engine.tuning.policy import Curve
from worker.models.autotune import Tuned, TunedFile

KEY = {"model": "org/pocket", "revision": None, "host": "mini", "memory": 2**36, "mlx": "0.32.4"}
LIMIT = Limit(100e9, 2000.0, weights=10**9, row_bytes=10**6, expert_weights=10**10, experts=Experts(128, 8))
TUNED = Tuned(Curve({1: 41.25, 8: 250.0, 24: 610.0}, 24), LIMIT, 512, "2026-11-21")
OTHER = Tuned(Curve({1: 1.0}, None), replace(LIMIT, experts=None), 64, "2026-11-22")


@pytest.fixture
def file(tmp_path: Path) -> TunedFile:
    return TunedFile(tmp_path / "data" / "tuned.json")


def test_a_measurement_is_found_again_with_its_day(file: TunedFile) -> None:
    """By another worker too, that reads the file afresh."""
    assert file.find(KEY) is None
    assert file.remember(KEY, TUNED)
    assert TunedFile(file.path).find(KEY) == TUNED
    assert [path.name for path in file.path.parent.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize("change", [{"model": "org/other"}, {"host": "mini-2"}, {"mlx": "0.33.0"}, {"revision": "abc"}])
def test_other_circumstances_are_not_told_of(file: TunedFile, change: dict[str, str]) -> None:
    """Another model, revision, host or version is measured by itself, and both are remembered."""
    file.remember(KEY, TUNED)
    assert file.find(KEY | change) is None
    file.remember(KEY | change, OTHER)
    assert file.find(KEY) == TUNED


def test_a_new_measurement_takes_the_place_of_the_old(file: TunedFile) -> None:
    """The same circumstances have one entry."""
    file.remember(KEY, OTHER)
    file.remember(KEY, TUNED)
    assert file.find(KEY) == TUNED
    assert file.path.read_text().count("measured_on") == 1


@pytest.mark.parametrize("text", ["", "{", "\xff", "7"])
def test_a_corrupt_file_is_rewritten(file: TunedFile, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is no error: what it said is measured again, and the warning names the file."""
    file.path.parent.mkdir()
    file.path.write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert file.find(KEY) is None
    assert str(file.path) in caplog.text
    file.remember(KEY, TUNED)
    assert file.find(KEY) is not None


STRANGE = [
    "3",
    '{"key": {}}',
    '{"key": {}, "rates": {"1": 40.0, "8": 250.0}, "reach": 8, "measured_on": "2026-11-21"}',
    *(
        orjson.dumps({"key": {}, **TUNED.as_dict(), **changed}).decode()
        for changed in (
            {"rates": []},
            {"rates": {"many": 1}},
            {"rates": {"1": "fast"}},
            {"rates": {"1": 0}},
            {"rates": {"0": 1}},
            {"reach": "far"},
            {"limit": None},
            {"limit": {"bandwidth": 1}},
            {"limit": {"bandwidth": 0, "prefill": 0, "weights": 1, "row_bytes": 1, "experts": None}},
            {"prompt_tokens": "many"},
        )
    ),
]
"""The third is of a version that measured copies of one prompt."""


@pytest.mark.parametrize("entry", STRANGE)
def test_a_strange_entry_is_passed_over(file: TunedFile, entry: str) -> None:
    """The others count."""
    file.remember(KEY, TUNED)
    file.path.write_text(f"[{entry}, {file.path.read_text()[1:]}")
    assert file.find({}) is None
    assert file.find(KEY) == TUNED


def test_a_folder_that_cannot_be_written_costs_the_memory_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker goes on with what it measured, and says that it is not remembered."""
    (tmp_path / "data").write_text("a file, where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert not TunedFile(tmp_path / "data" / "tuned.json").remember(KEY, TUNED)
    assert "cannot remember" in caplog.text
