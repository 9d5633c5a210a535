"""Real text on the page: rates beside those of the peers, what the engine's steps cost besides tokens, and goals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.record import Measurement, Run
from bench.report.summary import Summary, summarise
from bench.report.table import NOTHING, goal, occupancy, table

TEXT_LABELS = {
    "limit": "limit",
    "mlx_lm_batch": "mlx-lm `BatchGenerator`, rows' own params, cold",
    "mlx_lm_one": "mlx-lm one at a time",
    "promptmill": "promptmill's engine",
    "promptmill_worker": "promptmill, `submit` to records",
}
"""The sides, in the order they are shown."""
OURS = "promptmill"
OF_LIMIT_GOAL = 0.80
TIMES_BATCH_GOAL = 2.5
PADDING_GOAL = 1.15
READS_GOAL = 1.0
COSTS = {
    "padding": ("columns computed / needed", ".2f"),
    "repeated_rows": ("rows repeated in full", ".0f"),
    "host_reads": ("host reads a step", ".2f"),
    "cached": ("prompt tokens cached", ".2f"),
    "queued_s": ("until a prompt began, s", ".1f"),
    "waited_s": ("until its row was free, s", ".2f"),
    "longest_wait_s": ("longest, s", ".1f"),
    "first_token_s": ("until the first token, s", ".1f"),
}
"""What is counted of the engine's rounds, with its heading and how it is written."""

NOTES = """\
Questions as chats: {source}, answers of at most {new_tokens} tokens, ended by the model. Every line has its own
temperature, top_p, repetition and presence penalty, half of them top_k, half min_p. {lines} lines in a round, fewer
one at a time ({fewer}). A model draws other answers on each side, so sides compare by output tokens per second, with
the time of the prompts in it. The limit is bare forwards of as many prompt and output tokens as the engine had:
prompts by eights of similar length, what they share in each of them, then steps with all 32 rows in use, each as wide
as the engine's rows were on average."""
COSTS_NOTE = """\
What the engine's steps cost besides tokens, medians over the rounds. Occupancy and host reads are those of steps while
lines waited. A host read waits for the device; the tokens of a step are one."""


def text_part(run: Run) -> list[str]:
    """The parts of the page; none where real text was not measured."""
    items = [item for item in run.measurements if item.bench == "realtext"]
    if not items:
        return []
    found = {side: summary for (_, side), summary in summarise(items, "realtext").items()}
    parts = [f"## Real text: {items[0].model}"]
    if "limit" in found:
        parts.append("![Tokens per second on real text](realtext.png)")
    parts += [_rates(items, found), _notes(items, found)]
    ours = [item for item in items if item.side == OURS]
    if ours:
        head = ["", "occupancy", *(title for title, _ in COSTS.values())]
        parts.append(COSTS_NOTE)
        parts.append(table(head, [["engine", occupancy(found[OURS]), *(_cost(ours, name) for name in COSTS)]]))
    return parts


def _rates(items: Sequence[Measurement], found: dict[str, Summary]) -> str:
    limit, batch = found.get("limit"), found.get("mlx_lm_batch")
    rows = []
    for side, label in TEXT_LABELS.items():
        if (summary := found.get(side)) is None:
            continue
        per_line = statistics.median(item.seconds / item.lines for item in items if item.side == side)
        output = statistics.median(item.tokens / item.lines for item in items if item.side == side)
        ratios = [f"{summary.median / other.median:.2f}" if other else NOTHING for other in (limit, batch)]
        rows.append([label, str(summary.lines), f"{output:.0f}", summary.text, f"{per_line:.2f}", *ratios])
    head = ["side", "lines", "tokens a line", "tokens/s", "s a line", "of the limit", "× `BatchGenerator`"]
    return table(head, rows)


def _notes(items: Sequence[Measurement], found: dict[str, Summary]) -> str:
    source = items[0].extra.get("source") or "those of the benchmark's own"
    fewer = found["mlx_lm_one"].lines if "mlx_lm_one" in found else "not measured"
    lines = max(summary.lines for summary in found.values())
    return NOTES.format(source=source, new_tokens=items[0].new_tokens, lines=lines, fewer=fewer)


def _cost(ours: Sequence[Measurement], name: str) -> str:
    value = _median(ours, name)
    return NOTHING if value is None else f"{value:{COSTS[name][1]}}"


def _median(ours: Sequence[Measurement], name: str) -> float | None:
    values = [item.extra[name] for item in ours if item.extra.get(name) is not None]
    return statistics.median(values) if values else None


def text_goals(run: Run) -> list[list[str]]:
    """Rows of the table of goals."""
    items = [item for item in run.measurements if item.bench == "realtext"]
    found = {side: summary for (_, side), summary in summarise(items, "realtext").items()}
    if OURS not in found:
        return []
    rate, rows = found[OURS].median, []
    if "limit" in found:
        rows.append(goal("real text: of the limit", OF_LIMIT_GOAL, rate / found["limit"].median))
    if "mlx_lm_batch" in found:
        ratio = rate / found["mlx_lm_batch"].median
        rows.append(goal("real text: times mlx-lm's `BatchGenerator`", TIMES_BATCH_GOAL, ratio))
    ours = [item for item in items if item.side == OURS]
    for name, what, most in (
        ("padding", "real text: columns computed over needed", PADDING_GOAL),
        ("host_reads", "real text: host reads a step", READS_GOAL),
    ):
        if (value := _median(ours, name)) is not None:
            rows.append(goal(what, most, value, at_most=True))
    return rows
