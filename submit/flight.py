"""The lines in flight, as the full-screen views show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from rich.text import Text

from submit.text import plural
from submit.widgets import Column, bar, columns, more, text
from submit.worker_state import LineInFlight, WorkerState

__all__ = ["Flight", "flight_section", "taking_turns"]

Flight = tuple[WorkerState, LineInFlight]

BAR = 12


def flight_section(
    flights: Sequence[Flight],
    count: int,
    width: int,
    rows: int,
    *,
    batch_name: Callable[[str], str] | None = None,
    unicode: bool = True,
) -> list[Text]:
    """A title and as many lines in flight as ``rows`` have room for; nothing where there is none.

    ``flights`` are those that workers name and ``count`` how many there are, ``batch_name`` what to call their batches
    by (None: they are all of one).
    """
    if not flights or rows < 3:
        return []
    reading = sum(line.phase == "prefill" for _, line in flights)
    title = f"{plural(count, 'line')} in flight"
    if reading:
        title += f", {reading:,} of them reading their prompts"
    shown = flights[:rows]  # the rest is only counted
    table = [
        Column("line", [text(_name(line)) for _, line in shown], least=8),
        Column("progress", [_progress(line, unicode) for _, line in shown]),
        Column("worker", [text(state.name, "bright_black") for state, _ in shown], rank=2, least=8),
    ]
    if batch_name is not None:
        table.insert(0, Column("batch", [text(batch_name(line.batch_id)) for _, line in shown], rank=3, least=8))
    return [text(title, "bold"), *more(columns(table, width), rows - 1, count)]


def taking_turns(flights: Sequence[Flight]) -> list[Flight]:
    """The lines whose prompts are read first, and of each worker one after the other, so that none fills the screen."""
    found: list[Flight] = []
    for phase in (True, False):
        by_worker: dict[str, list[Flight]] = {}
        for flight in flights:
            if (flight[1].phase == "prefill") is phase:
                by_worker.setdefault(flight[0].name, []).append(flight)
        rounds = zip_longest(*(sorted(lines, key=_place) for _, lines in sorted(by_worker.items())))
        found += [flight for one_round in rounds for flight in one_round if flight is not None]
    return found


def _place(flight: Flight) -> tuple[str, int]:
    return flight[1].batch_id, flight[1].index


def _name(line: LineInFlight) -> str:
    return f"{line.index}" if line.id == "-" else line.id


def _progress(line: LineInFlight, unicode: bool) -> Text:
    if line.phase != "prefill":
        return text(f"{line.completion_tokens:,} tokens")
    share = line.prefilled / line.prompt_tokens if line.prompt_tokens else 0.0
    drawn = bar(share, BAR, "yellow", unicode=unicode)
    return drawn.append(f" {int(share * 100):>3}% of {line.prompt_tokens:,} read")
