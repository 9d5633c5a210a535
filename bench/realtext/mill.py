"""Promptmill's engine alone on real text: made as a worker makes it, prepared lines in, texts that end out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.realtext.reads import HostReads, counted
from bench.realtext.task import WARM_LINES, WARM_TOKENS, TextTask
from bench.task import Measured
from bench.work import CONCURRENCY
from jobs.lines.line import Defaults, check_line
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import load_model
from worker.engine.prompts.prepare import Preparer
from worker.engine.sequence import PreparedLine, Sequence


def engine(task: TextTask) -> list[Measured]:
    """``extra`` has the ``lengths`` of lines, prompt and output, and what a step cost besides its tokens."""
    model = load_model(task.folder)
    made = Engine(model, decode_concurrency=CONCURRENCY)
    preparer = Preparer(model)
    _run(made, _prepared(preparer, task.warm_up(WARM_LINES, WARM_TOKENS)))
    lines = _prepared(preparer, task)
    with counted() as reads:
        found = _run(made, lines, reads)
    rows = [found.rows[line.key] for line in lines]
    tokens = sum(len(row.tokens) for row in rows)
    prompt_tokens = sum(len(row.prompt) for row in rows)
    extra = {
        **found.extra(),
        **_waits(rows),
        "prompt_tokens": prompt_tokens,
        "cached": sum(row.cached_tokens for row in rows) / prompt_tokens,
        "lengths": [(len(row.prompt), len(row.tokens)) for row in rows],
    }
    return [Measured("promptmill", tokens, found.seconds, len(lines), found.occupancy, extra)]


def _prepared(preparer: Preparer, task: TextTask) -> list[PreparedLine]:
    defaults = Defaults({"model": task.folder})
    checked = [check_line(orjson.dumps(line)) for line in task.job_lines()]
    jobs = [line.job(index=i, line=i + 1, batch_id="", defaults=defaults) for i, line in enumerate(checked)]
    return [preparer.prepare(job) for job in jobs]


@dataclass(slots=True)
class _Run:
    """What a run counted: over all of it, and over ``waiting`` steps, those in which lines waited for rows."""

    seconds: float = 0.0
    steps: int = 0
    columns: int = 0
    needed: int = 0
    repeated: int = 0
    waiting: int = 0
    waiting_rows: int = 0
    waiting_reads: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    rows: dict[Any, Sequence] = field(default_factory=dict)

    @property
    def occupancy(self) -> float | None:
        return self.waiting_rows / (self.waiting * CONCURRENCY) if self.waiting else None

    def extra(self) -> dict[str, Any]:
        """``padding`` is the columns computed over those needed, ``host_reads`` those of a step while lines wait."""
        return {
            "padding": self.columns / self.needed if self.needed else None,
            "repeated_rows": self.repeated,
            "host_reads": self.waiting_reads / self.waiting if self.waiting else None,
            "reads": self.reads,
            "steps": self.steps,
        }


def _run(engine: Engine, lines: Items[PreparedLine], reads: HostReads | None = None) -> _Run:
    reads = reads or HostReads()
    stats, found = engine.stats, _Run()
    before = (stats.decode_steps, stats.decode_columns, stats.needed_columns, stats.repeated_rows)
    began = time.perf_counter()
    for line in lines:
        engine.add(line)
    while engine.has_work:
        steps, rows, read = stats.decode_steps, stats.decode_rows, reads.total
        waiting = engine.pending > 0
        for finished in engine.step():
            if finished.error is not None:
                raise RuntimeError(f"line {finished.key} failed: {finished.error}")
            found.rows[finished.key] = finished.sequences[0]
        if waiting and stats.decode_steps > steps:
            found.waiting += stats.decode_steps - steps
            found.waiting_rows += stats.decode_rows - rows
            found.waiting_reads += reads.total - read
    found.seconds = time.perf_counter() - began
    after = (stats.decode_steps, stats.decode_columns, stats.needed_columns, stats.repeated_rows)
    found.steps, found.columns, found.needed, found.repeated = (b - a for a, b in zip(before, after, strict=True))
    found.reads = dict(reads.kinds)
    return found


def _waits(rows: Items[Sequence]) -> dict[str, float]:
    """Mean seconds: ``queued_s`` until a line's prompt began, ``waited_s`` that it waited, computed, for a free row,
    and ``first_token_s`` until its first token."""
    began = [row.prefill_started - row.submitted_at for row in rows if row.prefill_started is not None]
    first = [row.first_token_at - row.submitted_at for row in rows if row.first_token_at is not None]
    waited = [row.waited_s for row in rows]
    return {
        "queued_s": statistics.fmean(began),
        "waited_s": statistics.fmean(waited),
        "longest_wait_s": max(waited),
        "first_token_s": statistics.fmean(first),
    }
