"""How fast a batch goes: over the last minute, or over all its time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from jobs.batch import Batch
from submit.status.text import rate

WINDOW_S = 60.0
SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True)
class BatchRates:
    """Per second, over the recent past; None while nothing has finished."""

    lines: float | None = None
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    scored_tokens: float | None = None

    def eta(self, batch: Batch) -> float | None:
        """Seconds left at this rate; None when unknown or done."""
        if batch.done or not self.lines:
            return None
        return max(batch.total - batch.finished, 0) / self.lines


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    lines: int
    prompt_tokens: int
    completion_tokens: int
    scored_tokens: int


class Window:
    """What a batch counted over the last minute; lines finished before the first look do not count."""

    def __init__(self, span_s: float = WINDOW_S) -> None:
        self._span = span_s
        self._first: _Sample | None = None
        self._recent: deque[_Sample] = deque()

    def add(self, now: float, batch: Batch) -> BatchRates:
        """Take in the batch as it is at ``now`` (seconds of a steady clock); the rates with it."""
        usage = batch.usage
        sample = _Sample(now, batch.finished, usage.prompt_tokens, usage.completion_tokens, usage.scored_tokens)
        if self._first is None:
            self._first = sample
        if not self._recent or now - self._recent[-1].at >= SAMPLE_S:
            self._recent.append(sample)
        while len(self._recent) > 1 and now - self._recent[0].at > self._span:
            self._recent.popleft()
        recent = _between(self._recent[0], sample)
        # Long lines can leave a minute without a finished one: then the whole time since the first look counts.
        return recent if recent.lines else _between(self._first, sample)


def _between(start: _Sample, end: _Sample) -> BatchRates:
    span, lines = end.at - start.at, end.lines - start.lines
    if span <= 0 or lines <= 0:
        return BatchRates()
    return BatchRates(
        lines / span,
        (end.prompt_tokens - start.prompt_tokens) / span,
        (end.completion_tokens - start.completion_tokens) / span,
        (end.scored_tokens - start.scored_tokens) / span,
    )


def over_all_its_time(batch: Batch) -> BatchRates:
    """The rates of a batch that is done, from its first line's start to its end: what its summary says too."""
    # The time of the end is all that they need.
    rates, elapsed = batch.rates(batch.ended_at or 0.0), batch.elapsed(batch.ended_at or 0.0)
    if rates["lines_per_second"] is None:
        return BatchRates()
    # What was read before a retry is not counted apart: of such a batch the rate at which prompts were read is unknown.
    read = None if batch.carried else batch.usage.prompt_tokens / elapsed
    made, scored = rates["completion_tokens_per_second"], rates["scored_tokens_per_second"]
    return BatchRates(rates["lines_per_second"], read, made, scored)


def pace(batch: Batch, now: float, recent: BatchRates | None) -> tuple[float | None, float | None]:
    """New tokens per second, and seconds left; of a batch that is done those of all its time."""
    if recent is not None and recent.lines and not batch.done:
        return recent.completion_tokens, recent.eta(batch)
    rates = batch.rates(now)
    return rates["completion_tokens_per_second"], rates["eta_s"]


def scored_pace(batch: Batch, now: float, recent: BatchRates | None) -> str:
    """Tokens of texts that were there, per second, as views say it; empty where none are scored."""
    if recent is not None and recent.lines and not batch.done:
        speed = recent.scored_tokens
    else:
        speed = batch.rates(now)["scored_tokens_per_second"]
    return f"{rate(speed)} scored tok/s" if speed else ""
