"""What --autotune remembers, and how it is lost and found."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from worker.engine.tuning.policy import Curve
from worker.models.autotune import Tuned, TunedFile

KEY = {"model": "org/pocket", "revision": None, "host": "mini", "memory": 2**36, "mlx": "0.32.4"}
CURVE = Curve({1: 41.25, 8: 250.0, 24: 610.0}, 24)


@pytest.fixture
def file(tmp_path: Path) -> TunedFile:
    return TunedFile(tmp_path / "data" / "tuned.json", today=lambda: "2026-11-21")


def test_a_measurement_is_found_again_with_its_day(file: TunedFile) -> None:
    """By another worker too, that reads the file afresh."""
    assert file.find(KEY) is None
    assert file.remember(KEY, CURVE)
    assert TunedFile(file.path).find(KEY) == Tuned(CURVE, "2026-11-21")
    assert [path.name for path in file.path.parent.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize("change", [{"model": "org/other"}, {"host": "mini-2"}, {"mlx": "0.33.0"}, {"revision": "abc"}])
def test_other_circumstances_are_not_told_of(file: TunedFile, change: dict[str, str]) -> None:
    """Another model, revision, host or version is measured by itself, and both are remembered."""
    file.remember(KEY, CURVE)
    assert file.find(KEY | change) is None
    file.remember(KEY | change, Curve({1: 1.0}, None))
    assert file.find(KEY) == Tuned(CURVE, "2026-11-21")


def test_a_new_measurement_takes_the_place_of_the_old(file: TunedFile) -> None:
    """The same circumstances have one entry."""
    file.remember(KEY, Curve({1: 1.0}, 1))
    file.remember(KEY, CURVE)
    assert file.find(KEY) == Tuned(CURVE, "2026-11-21")
    assert file.path.read_text().count("measured_on") == 1


@pytest.mark.parametrize("text", ["", "{", "\xff", "7"])
def test_a_corrupt_file_is_rewritten(file: TunedFile, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is no error: what it said is measured again, and the warning names the file."""
    file.path.parent.mkdir()
    file.path.write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert file.find(KEY) is None
    assert str(file.path) in caplog.text
    file.remember(KEY, CURVE)
    assert file.find(KEY) is not None


@pytest.mark.parametrize(
    "entry",
    [
        "3",
        '{"key": {}}',
        '{"key": {}, "rates": [], "reach": null, "measured_on": "x"}',
        '{"key": {}, "rates": {"many": 1}, "reach": null, "measured_on": "x"}',
        '{"key": {}, "rates": {"1": "fast"}, "reach": null, "measured_on": "x"}',
        '{"key": {}, "rates": {"1": 1}, "reach": "far", "measured_on": "x"}',
    ],
)
def test_a_strange_entry_is_passed_over(file: TunedFile, entry: str) -> None:
    """The others count."""
    file.remember(KEY, CURVE)
    file.path.write_text(f"[{entry}, {file.path.read_text()[1:]}")
    assert file.find({}) is None
    assert file.find(KEY) == Tuned(CURVE, "2026-11-21")


def test_a_folder_that_cannot_be_written_costs_the_memory_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker goes on with what it measured, and says that it is not remembered."""
    (tmp_path / "data").write_text("a file, where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert not TunedFile(tmp_path / "data" / "tuned.json").remember(KEY, CURVE)
    assert "cannot remember" in caplog.text
