"""Lines that have ended on a worker, and the records made of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from jobs.errors import LineError
from jobs.lines.line_id import readable_id
from jobs.record import RunStats, error_record, result_record
from jobs.store.shard_records import stored
from jobs.store.store import FinishedLine
from worker.engine.sequence import Failure
from worker.shards.claimed import End, HeldShard
from worker.shards.judge import Judges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence as Items

    from jobs.lines.line import Job
    from jobs.record import Choice
    from jobs.shard import Group
    from worker.engine.sequence import Sequence
    from worker.models.engine_factory import ServedModel

LONGEST_VALUE = 512 * 2**20 - 1
"""What a server takes in one value as it is set up (``proto-max-bulk-len``)."""

log = logging.getLogger("promptmill.worker")


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line that ended ``at`` seconds since the epoch: with its texts, or with why it failed. ``served`` is the model
    that generated it; None where the line never came to the engine."""

    held: HeldShard
    index: int
    at: float
    failure: Failure | None = None
    sequences: Items[Sequence] = ()
    served: ServedModel | None = None

    @property
    def tried_again(self) -> bool:
        """Whether the line gets another attempt: it failed for a reason that may pass, and not too often yet."""
        return self.failure is not None and self.failure.passing and not self.held.last(self.index)


class Observer:
    """Hears of lines and shards and keeps no account of them: see :class:`worker.health.prometheus.PrometheusMetrics`
    for one that does. Threads: any; each method says its own."""

    def line_ended(self, line: EndedLine, *, ok: bool) -> None:
        """A record was made of a line. Thread: scribe."""

    def line_retried(self, group: Group) -> None:
        """An attempt at a line failed, and it gets another one. Thread: writer."""

    def shard_taken(self, group: Group) -> None:
        """A shard was claimed. Thread: main."""

    def shard_ended(self, group: Group, end: End) -> None:
        """A shard is no longer this worker's; once for each. Threads: any."""


def record_of(line: EndedLine, worker: str, judges: Judges | None = None) -> FinishedLine | None:
    """The record of a line that ended on a worker of this name; None of one whose text is not as expected, and which is
    to be asked again: its job has another seed by then."""
    if line.failure is not None:
        return _failure(line, worker, line.failure)
    try:
        return _result(line, worker, judges or Judges())
    except Exception as error:
        # A tokenizer can raise anything on odd tokens: that is this line's failure, nobody else's.
        log.exception("line %d of %s cannot be written down", line.index, line.held.job_id)
        return _failure(line, worker, Failure("internal_error", f"the result cannot be written down: {error}"))


def waiting_form(line: EndedLine, record: FinishedLine, worker: str) -> FinishedLine:
    """The record as it waits for Redis, which may be out or slow for long: a long one compressed, and one that Redis
    would not take, for ever, replaced."""
    value = stored(record.record)
    if len(value) <= LONGEST_VALUE:
        return replace(record, record=value)
    message = (
        f"its record has {len(record.record)} bytes, {len(value)} compressed, and Redis takes {LONGEST_VALUE} in one "
        "piece: ask for fewer choices, tokens or log-probabilities; a worker with a --spool has it whole there"
    )
    return _failure(line, worker, Failure("internal_error", message))


def _failure(ended: EndedLine, worker: str, failure: Failure) -> FinishedLine:
    held = ended.held
    line = next(line for line in held.lines if line.index == ended.index)
    try:
        job = held.job(line)
    except LineError:
        job = None
    record = error_record(
        line_id=job.id if job is not None else readable_id(line.raw) or f"line-{line.line}",
        index=ended.index,
        batch_id=held.attempt.batch_id,
        code=failure.code,
        message=failure.message,
        param=failure.param,
        attempt=held.attempt_at(ended.index),
        finished_at=ended.at,
        worker=worker,
        model=held.group.model,
        adapter_path=held.group.adapter_path,
        endpoint=job.endpoint if job is not None else None,
        metadata=job.metadata if job is not None else None,
    )
    return FinishedLine(ended.index, False, 0, 0, 0, record)


def _result(line: EndedLine, worker: str, judges: Judges) -> FinishedLine | None:
    held, sequences, served = line.held, line.sequences, cast("ServedModel", line.served)
    first, stats = sequences[0], run_stats(line)
    job = held.jobs[line.index]
    if job.sampling.max_tokens is None:  # a text to the context's end had that for its cap
        job = replace(job, sampling=replace(job.sampling, max_tokens=first.limit))
    ids, one_prompt = job.return_token_ids, all(sequence.line is first.line for sequence in sequences)
    assemble = partial(served.assembler.assemble, token_ids=ids, prompt_ids=ids and not one_prompt)
    choices: Iterable[Choice] = map(assemble, sequences)
    judged = None
    if job.expect is not None:
        choices = list(choices)
        tries = held.tries.get(line.index, 0) + 1
        passed = _passed(job, choices, judges)
        if not passed and tries <= job.re_ask and not job.sampling.greedy:
            held.ask_again(line.index, tries)
            return None
        judged = {"passed": passed, "tries": tries}
    ended_at = max(sequence.finished_at or 0.0 for sequence in sequences)
    record = result_record(
        job,
        choices,
        stats,
        batch_id=held.attempt.batch_id,
        model_revision=served.revision,
        worker=worker,
        attempt=held.attempt_at(line.index),
        created_at=line.at - (ended_at - (first.prefill_started or ended_at)),
        finished_at=line.at,
        judged=judged,
        prompt_token_ids=first.prompt if ids and one_prompt else None,
    )
    tokens = stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens
    return FinishedLine(line.index, True, *tokens, record, stats.scored_tokens)


def _passed(job: Job, choices: Items[Choice], judges: Judges) -> bool:
    """Whether all texts of a line are as expected."""
    judge = judges.of(job.expect)
    return all(
        judge(choice.text, {**job.metadata, "reasoning": choice.reasoning, "stop_reason": choice.stop_reason})
        for choice in choices
    )


def run_stats(line: EndedLine) -> RunStats:
    """The line's statistics; with n > 1 tokens are summed and times are those of the longest choice."""
    held, sequences = line.held, line.sequences
    first = sequences[0]
    prompts = {id(sequence.line): sequence for sequence in reversed(sequences)}.values()
    accepted = [seq.accepted_draft_tokens for seq in sequences if seq.accepted_draft_tokens is not None]
    begun = first.prefill_started if first.prefill_started is not None else first.submitted_at
    return RunStats(
        prompt_tokens=sum(sequence.prompt_tokens for sequence in prompts),
        completion_tokens=sum(sequence.completion_tokens for sequence in sequences),
        cached_tokens=sum(sequence.cached_tokens for sequence in prompts),
        time_to_first_token_s=first.prefill_s or 0.0,
        prefill_s=first.prefill_s or 0.0,
        decode_s=max(sequence.decode_s or 0.0 for sequence in sequences),
        queue_s=max(held.taken_at - held.committed_at, 0.0) + max(begun - first.submitted_at, 0.0) + first.waited_s,
        accepted_draft_tokens=sum(accepted) if accepted else None,
        scored_tokens=sum(sequence.scored_tokens for sequence in prompts),
    )
