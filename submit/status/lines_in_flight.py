"""The lines in flight, as the full-screen views show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import zip_longest

from rich.text import Text

from submit.status.text import plural
from submit.status.worker_state import LineInFlight, WorkerState
from submit.watch.widgets import Column, bar, columns, more, text

__all__ = ["Flight", "flight_section", "taking_turns"]

Flight = tuple[WorkerState, LineInFlight]

BAR = 12


class Stage(Enum):
    """How far a line is, in the order in which they are shown: its prompt is read, its text is generated, or the one is
    done and the other waits for a row of the batch."""

    READING = "reading"
    GENERATING = "generating"
    READY = "ready"


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
    stages = Counter(_stage(line) for _, line in flights)
    said = [f"{stages[stage]:,} {stage.value}" for stage in Stage if stages[stage]]
    title = f"{plural(count, 'line')} in flight: {', '.join(said)}"
    shown = flights[:rows]  # the rest is only counted
    table = [
        Column("line", [text(_name(line)) for _, line in shown], least=8),
        Column("progress", [_progress(line, unicode) for _, line in shown]),
        Column("worker", [text(state.name, "bright_black") for state, _ in shown], rank=2, least=8),
    ]
    if batch_name is not None:
        table.insert(
            0, Column("batch", [text(batch_name(line.batch_id)) for _, line in shown], rank=3, least=14, middle=True)
        )
    return [text(title, "bold"), *more(columns(table, width), rows - 1, count)]


def taking_turns(flights: Sequence[Flight]) -> list[Flight]:
    """By stage, and of each worker one after the other, so that none fills the screen."""
    found: list[Flight] = []
    for stage in Stage:
        by_worker: dict[str, list[Flight]] = {}
        for state, line in flights:
            if _stage(line) is stage:
                by_worker.setdefault(state.name, []).append((state, line))
        rounds = zip_longest(*(sorted(lines, key=_place) for _, lines in sorted(by_worker.items())))
        found += [flight for one_round in rounds for flight in one_round if flight is not None]
    return found


def _stage(line: LineInFlight) -> Stage:
    if line.phase != "prefill":
        return Stage.GENERATING
    return Stage.READY if line.prefilled >= line.prompt_tokens else Stage.READING


def _place(flight: Flight) -> tuple[str, int]:
    return flight[1].batch_id, flight[1].index


def _name(line: LineInFlight) -> str:
    return f"{line.index}" if line.id == "-" else line.id


def _progress(line: LineInFlight, unicode: bool) -> Text:
    if line.phase != "prefill":
        return text(f"{line.completion_tokens:>5,} tokens")
    if _stage(line) is Stage.READY:
        return text(f"{line.prompt_tokens:,} read, ready", "bright_black")
    share = line.prefilled / line.prompt_tokens
    drawn = bar(share, BAR, "yellow", unicode=unicode)
    return drawn.append(f" {int(share * 100):>3}% of {line.prompt_tokens:,} read")
