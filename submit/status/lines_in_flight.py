"""The lines in flight: as a plain table of one batch, and by turns of the workers on a full screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import zip_longest

from rich.text import Text

from submit.status.table import NARROW_GAP, Column, plain_table, table, text
from submit.status.text import plural
from submit.status.widgets import bar, fit, more
from submit.status.worker_state import LineInFlight, WorkerState

LineOnWorker = tuple[WorkerState, LineInFlight]
"""A line in flight, and its worker."""

BAR = 12
MOST_PLAIN = 40


class Stage(Enum):
    """How far a line is, in the order in which they are shown: its prompt is read, its text is generated, or the one is
    done and the other waits for a row of the batch."""

    READING = "reading"
    GENERATING = "generating"
    READY = "ready"


def lines_in_flight(workers: Iterable[WorkerState], batch_id: str | None = None) -> list[LineOnWorker]:
    """The lines that workers name as in flight: all, or those of one batch."""
    return [
        (worker, line)
        for worker in workers
        for line in worker.in_flight
        if batch_id is None or line.batch_id == batch_id
    ]


def in_turns(in_flight: Iterable[LineOnWorker]) -> list[LineOnWorker]:
    """By stage, and of each worker one after the other, so that none fills the screen."""
    queues: dict[Stage, dict[str, list[LineOnWorker]]] = {stage: {} for stage in Stage}
    for worker, line in sorted(in_flight, key=lambda pair: (pair[0].name, pair[1].batch_id, pair[1].index)):
        queues[_stage(line)].setdefault(worker.name, []).append((worker, line))
    return [
        pair
        for by_worker in queues.values()
        for turn in zip_longest(*by_worker.values())
        for pair in turn
        if pair is not None
    ]


def plain_lines_in_flight(in_flight: Sequence[LineOnWorker]) -> list[str]:
    """An empty line, a title and the first lines in flight of one batch; nothing where there is none."""
    if not in_flight:
        return []
    columns: list[Column[LineOnWorker]] = [
        Column("index", lambda pair: str(pair[1].index), right=True),
        Column("id", lambda pair: pair[1].id),
        Column("phase", lambda pair: pair[1].phase),
        Column("tokens", lambda pair: _tokens(pair[1])),
        Column("worker", lambda pair: pair[0].name),
    ]
    shown = plain_table(columns, in_flight[:MOST_PLAIN], None)
    rest = [f"... and {len(in_flight) - MOST_PLAIN:,} more"] if len(in_flight) > MOST_PLAIN else []
    return ["", f"{plural(len(in_flight), 'line')} in flight", *shown, *rest]


def with_lines_in_flight(
    above: Sequence[Text],
    in_flight: Sequence[LineOnWorker],
    count: int,
    width: int,
    height: int,
    *,
    batch_name: Callable[[str], str] | None = None,
    unicode: bool = True,
) -> list[Text]:
    """The lines ``above`` on a screen, and below them a title and as many lines in flight as there is room for.

    ``in_flight`` are those that workers name and ``count`` how many there are; ``batch_name`` gives the name of a batch
    by its id (None: all lines are of one batch).
    """
    rows = height - len(above) - 1
    if not in_flight or rows < 3:
        return fit(above, width, height)
    stages = Counter(_stage(line) for _, line in in_flight)
    counts = [f"{stages[stage]:,} {stage.value}" for stage in Stage if stages[stage]]
    title = f"{plural(count, 'line')} in flight: {', '.join(counts)}"
    columns: list[Column[LineOnWorker]] = [
        Column("line", lambda pair: f"{pair[1].index}" if pair[1].id == "-" else pair[1].id, least=8),
        Column("progress", lambda pair: _progress(pair[1], unicode)),
        Column("worker", lambda pair: text(pair[0].name, "bright_black"), rank=2, least=8),
    ]
    if batch_name is not None:
        columns.insert(0, Column("batch", lambda pair: batch_name(pair[1].batch_id), rank=3, least=14, middle=True))
    drawn = table(columns, in_flight[:rows], width, least_gap=NARROW_GAP)
    return fit([*above, text(""), text(title, "bold"), *more(drawn, rows - 1, count)], width, height)


def _stage(line: LineInFlight) -> Stage:
    if line.phase != "prefill":
        return Stage.GENERATING
    return Stage.READY if line.prefilled >= line.prompt_tokens else Stage.READING


def _tokens(line: LineInFlight) -> str:
    if line.phase == "prefill":
        return f"{line.prefilled:,} of {line.prompt_tokens:,} read"
    return f"{line.completion_tokens:,} generated"


def _progress(line: LineInFlight, unicode: bool) -> Text:
    if line.phase != "prefill":
        return text(f"{line.completion_tokens:>5,} tokens")
    if _stage(line) is Stage.READY:
        return text(f"{line.prompt_tokens:,} read, ready", "bright_black")
    share = line.prefilled / line.prompt_tokens
    drawn = bar(share, BAR, "yellow", unicode=unicode)
    return drawn.append(f" {int(share * 100):>3}% of {line.prompt_tokens:,} read")
