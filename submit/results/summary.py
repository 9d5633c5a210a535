"""What a batch came to, in a few lines for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.batch import Batch
from jobs.errors import ModelLoadError
from jobs.params import PARAMETERS
from jobs.record_head import ChoiceHead, RecordHead, head_of
from submit.results.destination import Destination
from submit.results.formats import left_out
from submit.results.read import StoredRecord
from submit.status.text import count, duration, plural, rate

SOME_FAILED = 1
LEFT_OUT = (
    ("cut", "cut by max_tokens or the context (--keep-cut keeps them)"),
    ("empty", "empty"),
    ("invalid", "not valid"),
    ("unparsed", "with a tool call that cannot be read"),
    ("unexpected", "not as expected"),
    ("cancelled", "cancelled or expired"),
)
SHORT_S = 10.0
"""Of less than this, tenths of seconds count."""
DEFAULT_MAX_TOKENS = PARAMETERS["max_tokens"].default
"""What a line gets that says nothing about it."""


def _worth_noting(record: RecordHead, completions: Sequence[ChoiceHead]) -> Iterator[str]:
    """What of a succeeded line the user is notified of: ``unanswered`` (all thought), ``cut_at_default`` (by
    max_tokens' default), ``judged``, ``asked_again`` and ``unexpected`` (by what was expected of its text)."""
    if any(choice.reasoning and choice.blank for choice in completions):
        yield "unanswered"
    if record.judged is not None:
        yield "judged"
        if record.judged.tries > 1:
            yield "asked_again"
        if not record.judged.passed:
            yield "unexpected"
    limit = None if record.sampling is None else record.sampling.max_tokens
    if limit == DEFAULT_MAX_TOKENS and "max_tokens" in [choice.stop_reason for choice in completions]:
        yield "cut_at_default"


@dataclass(slots=True)
class Tally:
    """How a batch's lines ended: completions by stop reason, failed lines by code, lines that have a note, and, for
    training data, completions that are ``left_out`` of it by reason. ``invalid`` has the stop reasons of completions
    that are not what their constraints ask for; ``unparsed`` counts those with a tool call that cannot be read."""

    destination: Destination = field(default_factory=Destination)
    lines: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)
    unparsed: int = 0

    def add(self, record: StoredRecord, head: RecordHead | None = None) -> None:
        """Count a record, whose head may be at hand."""
        self.lines += 1
        head = head or head_of(record.raw)
        if head.error is not None:
            self.failures[head.error.code] += 1
            return
        completions = head.completions
        for choice in completions:
            self.stops[choice.stop_reason] += 1
            if choice.valid is False:
                self.invalid[choice.stop_reason] += 1
            self.unparsed += choice.tool_call_error is not None
        for note in _worth_noting(head, completions):
            self.noted[note] += 1
        if self.destination.training:
            if head.unexpected:
                self.left_out["unexpected"] += len(completions)
                return
            reasons = (left_out(choice, keep_cut=self.destination.keep_cut) for choice in completions)
            self.left_out.update(reason for reason in reasons if reason is not None)

    @property
    def failed(self) -> int:
        """Lines that failed."""
        return self.failures.total()

    @property
    def errors_file(self) -> Path | None:
        """The file that the records of failed lines are in; None where there is none."""
        return self.destination.errors_file if self.failed else None

    @property
    def written(self) -> int:
        """Lines that hold a result: a line of the input each, and in training data a completion each."""
        if self.destination.training:
            return self.stops.total() - self.left_out.total()
        return self.lines - self.failed

    def notes(self, defaults: Mapping[str, Any]) -> list[str]:
        """What a person should know of the texts of a batch with these defaults, a line each."""
        notes = []
        if unanswered := self.noted["unanswered"]:
            notes.append(
                f"{plural(unanswered, 'line')} thought and gave no answer: raise max_tokens, or give them "
                'chat_template_kwargs {"enable_thinking": false}'
            )
        if (cut := self.noted["cut_at_default"]) and "max_tokens" not in defaults:
            were = "line was" if cut == 1 else "lines were"
            default = f"{DEFAULT_MAX_TOKENS} tokens, the default of max_tokens"
            notes.append(f"{cut:,} {were} cut at {default}: give --max-tokens")
        if judged := self.noted["judged"]:
            again, not_passed = self.noted["asked_again"], self.noted["unexpected"]
            notes.append(
                f"expected: {judged - not_passed:,} of {plural(judged, 'line')} passed"
                + (f", {again:,} asked again" if again else "")
                + (f'; {not_passed:,} did not, and have "passed": false' if not_passed else "")
            )
        if self.invalid:
            invalid = self.invalid.total()
            are = "is" if invalid == 1 else "are"
            notes.append(f"{plural(invalid, 'text')} {are} not valid (cut by: {_counts(self.invalid)})")
        if self.unparsed:
            have = "has" if self.unparsed == 1 else "have"
            notes.append(f"{plural(self.unparsed, 'text')} {have} a tool call that cannot be read: see tool_call_error")
        if self.left_out:
            reasons = [f"{self.left_out[reason]:,} {text}" for reason, text in LEFT_OUT if self.left_out[reason]]
            notes.append(f"left out of the training data: {', '.join(reasons)}")
        return notes


def exit_status(batch: Batch, tally: Tally) -> int:
    """0: every line succeeded; 5: every line failed because its model cannot be loaded; else 1."""
    if batch.done and batch.completed == batch.total:
        return 0
    if batch.total and tally.failures[ModelLoadError.code] == batch.total:
        return ModelLoadError.exit_status
    return SOME_FAILED


def summary(batch: Batch, tally: Tally, *, seconds: float, now: float) -> list[str]:
    """Lines for stderr; ``seconds`` is how long the user waited.

    The rate is that of the whole batch: the tokens it generated over the time from its first line's start to its end,
    or to ``now`` (seconds since the epoch) where that is still to come.
    """
    head = f"{plural(batch.total, 'line')}: {batch.completed:,} succeeded"
    if batch.failed:
        head += f", {batch.failed:,} failed ({_counts(tally.failures)})"
    if missing := batch.total - batch.finished:
        head += f", {missing:,} not run ({batch.status})"
    if batch.twins:
        head += f"; {plural(batch.twins, 'more line')} equal to some of these, not run again"
    usage = batch.usage
    tokens = f"tokens: {count(usage.prompt_tokens)} prompt"
    if usage.cached_tokens:
        tokens += f" ({count(usage.cached_tokens)} cached)"
    tokens += f", {count(usage.completion_tokens)} generated"
    if usage.scored_tokens:
        tokens += f", {count(usage.scored_tokens)} scored"
    per_second = batch.rates(now)["completion_tokens_per_second"]
    if per_second is not None:
        end = "its end" if batch.done else "now"
        elapsed = batch.elapsed(now)
        over = f"{elapsed:.2g}s" if elapsed < SHORT_S else duration(elapsed)
        tokens += f"; {rate(per_second)} tok/s over {over} from the first line's start to {end}"
    lines = [head, f"{tokens}; {duration(seconds)} in all"]
    if tally.stops:
        lines.insert(1, f"ended by: {_counts(tally.stops)}")
    lines += tally.notes(batch.defaults)
    files = (("results", tally.destination.out and tally.destination.written_to), ("errors", tally.errors_file))
    return lines + [f"{what}: {path}" for what, path in files if path is not None]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counter.most_common())
