"""What was measured of each side, summed up over the rounds; the sides' names and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.record import Measurement

LABELS = {
    "limit": "limit",
    "mlx_lm_greedy": "mlx-lm greedy",
    "mlx_lm_cold": "mlx-lm, rows' own params, cold",
    "mlx_lm_warm": "same, compiled before",
    "mlx_lm_one": "mlx-lm one at a time",
    "mlx_lm_server": "mlx_lm.server, 32 clients",
    "promptmill_greedy": "promptmill greedy",
    "promptmill_own": "promptmill, rows' own params",
}
"""The sides of the engine's benchmark, in the order they are shown."""
GOALS = {"nano": 0.6, "small": 0.85, "wide": 0.85}
"""Promptmill with rows' own parameters, as a share of the limit."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The rounds of one side on one model: median and half the range of tokens/s.

    ``with_prompts`` is for the limit: its median with the time of the prompts' forwards.
    """

    median: float
    with_prompts: float
    half_range: float
    rounds: int
    occupancy: float | None
    lines: int
    failed: int

    @property
    def text(self) -> str:
        spread = f" ± {_number(self.half_range)}" if self.rounds > 1 else ""
        failed = f" ({self.failed} requests failed)" if self.failed else ""
        return f"{_number(self.median)}{spread}{failed}"


def summarise(measurements: Iterable[Measurement], bench: str) -> dict[tuple[str, str], Summary]:
    """By model and side."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for item in measurements:
        if item.bench == bench:
            groups.setdefault((item.model, item.side), []).append(item)
    return {key: _summary(items) for key, items in groups.items()}


def _summary(items: Sequence[Measurement]) -> Summary:
    rates = [item.tokens_per_second for item in items]
    occupancies = [item.occupancy for item in items if item.occupancy is not None]
    return Summary(
        median=statistics.median(rates),
        with_prompts=statistics.median(item.tokens / (item.seconds + item.extra.get("prompt_s", 0)) for item in items),
        half_range=(max(rates) - min(rates)) / 2,
        rounds=len(items),
        occupancy=statistics.median(occupancies) if occupancies else None,
        lines=items[0].lines,
        failed=sum(int(item.extra.get("failed_requests", 0)) for item in items),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
