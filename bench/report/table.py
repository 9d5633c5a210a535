"""Tables of Markdown and what stands in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report.summary import Summary

NOTHING = "—"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is names, the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def goal(what: str, wanted: float, measured: float, *, at_most: bool = False) -> list[str]:
    """A row that says whether a goal was met: ``measured`` is to be at least, or ``at_most``, so much."""
    met = measured <= wanted if at_most else measured >= wanted
    return [what, f"{'≤' if at_most else '≥'} {wanted:g}", f"{measured:.3f}", "met" if met else "**missed**"]


def occupancy(summary: Summary) -> str:
    return NOTHING if summary.occupancy is None else f"{summary.occupancy:.3f}"
