"""A measurement as text: what bounds the model on this machine, and a row for each number of rows."""

from __future__ import annotations

from submit.status.table import Column, plain_table
from submit.status.text import memory_size, printable, rate
from submit.tune.measurement import Measurement, Speed


def report(found: Measurement, width: int | None = None) -> list[str]:
    """The lines for a person; the table has room in ``width`` columns (None: any)."""
    columns: list[Column[Speed]] = [
        Column("rows", lambda speed: str(speed.rows), right=True),
        Column("tokens/s", lambda speed: rate(speed.tokens_per_s), right=True),
        Column("per row", lambda speed: rate(speed.tokens_per_s / speed.rows), right=True, rank=2),
        Column("ms a step", lambda speed: rate(1000 * speed.rows / speed.tokens_per_s), right=True, rank=3),
        Column("limit", lambda speed: rate(speed.limit), right=True, rank=1),
        Column("of it", lambda speed: f"{speed.share:.2f}", right=True, rank=1),
        Column("", lambda speed: "<- chosen" if speed.rows == found.choice else ""),
    ]
    return [*_head(found), "", *plain_table(columns, found.sizes, width), "", *_foot(found)]


def _head(found: Measurement) -> list[str]:
    on = f" on {printable(found.device)}" if found.device else ""
    each = f"{memory_size(found.row_bytes)} of caches per row of {found.prompt_tokens:,} tokens"
    read = f"a step reads {memory_size(found.weights)} of weights"
    if found.experts is not None:
        chosen = f"{found.experts_per_token} of {found.experts} chosen per token"
        read += f", what it needs of {memory_size(found.expert_weights)} of experts ({chosen})"
    speeds = f"{found.bandwidth / 1e9:,.1f} GB/s, prompts are computed at {rate(found.prefill_tokens_per_s)} tokens/s"
    lines = [f"{printable(found.model)}{on}, measured on {found.measured_on}"]
    lines += [f"  {read} and {each}", f"  memory is copied at {speeds}"]
    if found.one_at_a_time is not None:
        lines.append(f"  its rows run one at a time: {printable(found.one_at_a_time)}")
    return lines


def _foot(found: Measurement) -> list[str]:
    if found.one_at_a_time is not None:
        return []
    chosen = f"--decode-concurrency {found.choice}"
    if found.file is None:
        return [f"give workers {chosen}"]
    how = "remembered from an earlier measurement, --again measures anew" if found.remembered else "remembered"
    return [f"{how}: {found.file}", f"workers with --autotune take it; without, give them {chosen}"]
