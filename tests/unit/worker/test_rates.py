"""The rates that a worker publishes of itself."""

from __future__ import annotations

from worker.health.snapshot import Rates, Snapshot


def test_rates_are_of_the_last_second_and_shares_of_the_last_minute() -> None:
    """Tokens and occupancy since the last beat; lines and what came from the prefix cache over the minute."""
    recent = Rates(0.0, Snapshot())
    first = recent.add(1.0, Snapshot((), 30, 40, 200, 100, 50, 2))
    assert first["tokens_per_second"] == 200.0
    assert first["occupancy"] == 0.75
    assert first["cached_share"] == 0.5
    assert first["lines_per_second"] == 2.0
    second = recent.add(2.0, Snapshot((), 70, 80, 500, 300, 250, 2))
    assert second["tokens_per_second"] == 300.0
    assert second["speeds"] == [200, 300]
    assert second["occupancy"] == 1.0
    assert second["cached_share"] == round(250 / 300, 3)
    assert second["lines_per_second"] == 1.0


def test_what_is_older_than_a_minute_does_not_count() -> None:
    """A worker that has had nothing to do for a minute says no share, and as many speeds as there are seconds."""
    recent = Rates(0.0, Snapshot())
    busy = Snapshot((), 30, 40, 200, 100, 50, 2)
    shown = [recent.add(float(second), busy) for second in range(1, 200)]
    assert shown[0]["cached_share"] == 0.5
    assert shown[-1]["cached_share"] is None
    assert shown[-1]["lines_per_second"] == 0.0
    assert shown[-1]["occupancy"] is None
    assert shown[-1]["speeds"] == [0] * 60


def test_tokens_of_texts_that_are_scored_have_a_rate() -> None:
    """Apart from those that are generated, over the last minute."""
    shown = Rates(0.0, Snapshot()).add(2.0, Snapshot(scored_tokens=500))
    assert (shown["scored_per_second"], shown["tokens_per_second"]) == (250.0, 0.0)


def test_prefixes_taken_again_do_not_pass_the_whole() -> None:
    """Rows that begin again take their prefixes again: the share stays one."""
    assert Rates(0.0, Snapshot()).add(1.0, Snapshot((), 1, 1, 1, 100, 150, 1))["cached_share"] == 1.0
