"""What a batch came to, in a few lines for a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from jobs.batch import Batch
from jobs.errors import ModelLoadError
from jobs.results import StoredRecord
from submit.envelopes import choices_of
from submit.text import count, duration, plural, rate

__all__ = ["Tally", "exit_status", "summary"]

SOME_FAILED = 1


@dataclass(slots=True)
class Tally:
    """How a batch's lines ended: completions by stop reason, failed lines by code."""

    lines: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, record: StoredRecord) -> None:
        self.lines += 1
        data = orjson.loads(record.raw)
        if "error" in data:
            self.failures[data["error"]["code"]] += 1
        else:
            self.stops.update(choice["stop_reason"] for choice in choices_of(data))


def exit_status(batch: Batch, tally: Tally | None = None) -> int:
    """0: every line succeeded; 5: every line failed because its model cannot be loaded; else 1."""
    if batch.done and batch.completed == batch.total:
        return 0
    if tally is not None and batch.total and tally.failures[ModelLoadError.code] == batch.total:
        return ModelLoadError.exit_status
    return SOME_FAILED


def summary(
    batch: Batch,
    tally: Tally,
    *,
    out: Path | None,
    errors: Path | None,
    seconds: float,
    tokens_per_second: float | None,
) -> list[str]:
    """Lines for stderr; ``seconds`` is how long the user waited, ``errors`` None when no line failed."""
    head = f"{plural(batch.total, 'line')}: {batch.completed:,} succeeded"
    if batch.failed:
        head += f", {batch.failed:,} failed ({_counts(tally.failures)})"
    if missing := batch.total - batch.finished:
        head += f", {missing:,} not run ({batch.status})"
    usage = batch.usage
    tokens = f"tokens: {count(usage.prompt_tokens)} prompt"
    if usage.cached_tokens:
        tokens += f" ({count(usage.cached_tokens)} cached)"
    tokens += f", {count(usage.completion_tokens)} generated"
    if tokens_per_second is not None:
        tokens += f", {rate(tokens_per_second)} tok/s"
    lines = [head, f"{tokens}; {duration(seconds)}"]
    if tally.stops:
        lines.insert(1, f"ended by: {_counts(tally.stops)}")
    if out is not None:
        lines.append(f"results: {out}")
    if errors is not None:
        lines.append(f"errors: {errors}")
    return lines


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counter.most_common())
