"""Lines that have ended on a worker, and the records made of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs.errors import LineError
from jobs.lines.line_id import readable_id
from jobs.record import RunStats, error_record, result_record
from jobs.store.shard_records import stored
from jobs.store.store import FinishedLine
from worker.shards.claimed import HeldShard

if TYPE_CHECKING:
    from jobs.lines.line import Job
    from jobs.shard import ShardLine
    from worker.engine.sequence import Finished, Sequence
    from worker.models.compute import ServedModel

__all__ = ["EndedLine", "FailedLine", "failed_line", "may_pass", "record_of", "waiting_form"]

LONGEST_VALUE = 512 * 2**20 - 1
"""What a server takes in one value unless it is told otherwise (``proto-max-bulk-len``)."""

log = logging.getLogger("promptmill.worker")


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line the engine is done with."""

    held: HeldShard
    index: int
    served: ServedModel
    finished: Finished
    at: float


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A line that failed outside the engine: it could not be read, prepared, or its model not loaded."""

    held: HeldShard
    index: int
    code: str
    message: str
    param: str | None
    at: float


def failed_line(held: HeldShard, line: ShardLine, error: LineError, at: float) -> FailedLine:
    """A line that ``error`` ends, at ``at`` seconds since the epoch."""
    return FailedLine(held, line.index, error.code, error.at(line.line).text, error.field, at)


def may_pass(item: EndedLine) -> bool:
    """Whether a line gets another attempt: it failed for a reason that may pass, and not too often yet."""
    failure = item.finished.error
    return failure is not None and failure.passing and not item.held.last(item.index)


def record_of(item: EndedLine | FailedLine, worker: str) -> FinishedLine:
    """The record of a line that ended on a worker of this name."""
    if isinstance(item, FailedLine):
        return _failure(item, worker, item.code, item.message, item.param)
    if item.finished.error is not None:
        return _failure(item, worker, item.finished.error.code, item.finished.error.message, None)
    try:
        return _result(item, worker)
    except Exception as error:
        # A tokenizer can raise anything on odd tokens: that is this line's failure, nobody else's.
        log.exception("line %d of %s cannot be written down", item.index, item.held.job_id)
        return _failure(item, worker, "internal_error", f"the result cannot be written down: {error}", None)


def waiting_form(item: EndedLine | FailedLine, line: FinishedLine, worker: str) -> FinishedLine:
    """The line as it waits for Redis, which may be out or slow for long: with a long record compressed, and one that
    Redis would not take, for ever, replaced."""
    value = stored(line.record)
    if len(value) <= LONGEST_VALUE:
        return replace(line, record=value)
    message = (
        f"its record has {len(line.record)} bytes, {len(value)} compressed, and Redis takes {LONGEST_VALUE} in one "
        "piece: ask for fewer choices, tokens or log-probabilities; a worker with a --spool has it whole there"
    )
    return _failure(item, worker, "internal_error", message, None)


def _failure(item: EndedLine | FailedLine, worker: str, code: str, message: str, param: str | None) -> FinishedLine:
    held = item.held
    line = next(line for line in held.lines if line.index == item.index)
    try:
        job = held.job(line)
    except LineError:
        job = None
    record = error_record(
        line_id=job.id if job is not None else readable_id(line.raw) or f"line-{line.line}",
        index=item.index,
        batch_id=held.attempt.batch_id,
        code=code,
        message=message,
        param=param,
        attempt=held.attempt_at(item.index),
        finished_at=item.at,
        worker=worker,
        model=held.group.model,
        adapter_path=held.group.adapter_path,
        endpoint=job.endpoint if job is not None else None,
        metadata=job.metadata if job is not None else None,
    )
    return FinishedLine(item.index, False, 0, 0, 0, record)


def _result(item: EndedLine, worker: str) -> FinishedLine:
    held, sequences = item.held, item.finished.sequences
    job = _effective(held.jobs[item.index], sequences[0])
    stats = run_stats(item, held)
    ended_at = max(sequence.finished_at or 0.0 for sequence in sequences)
    generated_for = ended_at - (sequences[0].prefill_started or ended_at)
    record = result_record(
        job,
        map(item.served.assembler.assemble, sequences),
        stats,
        batch_id=held.attempt.batch_id,
        model_revision=item.served.revision,
        worker=worker,
        attempt=held.attempt_at(item.index),
        created_at=item.at - generated_for,
        finished_at=item.at,
    )
    usage = (stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens)
    return FinishedLine(item.index, True, *usage, record)


def _effective(job: Job, sequence: Sequence) -> Job:
    """The job with the values that its texts were generated with: one to the context's end had that for its cap."""
    if job.sampling.max_tokens is not None:
        return job
    return replace(job, sampling=replace(job.sampling, max_tokens=sequence.limit))


def run_stats(item: EndedLine, held: HeldShard) -> RunStats:
    """The line's statistics; with n > 1 tokens are summed and times are those of the longest choice."""
    sequences = item.finished.sequences
    first = sequences[0]
    accepted = [seq.accepted_draft_tokens for seq in sequences if seq.accepted_draft_tokens is not None]
    begun = first.prefill_started if first.prefill_started is not None else first.submitted_at
    return RunStats(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=sum(sequence.completion_tokens for sequence in sequences),
        cached_tokens=first.cached_tokens,
        time_to_first_token_s=first.prefill_s or 0.0,
        prefill_s=first.prefill_s or 0.0,
        decode_s=max(sequence.decode_s or 0.0 for sequence in sequences),
        queue_s=max(held.taken_at - held.committed_at, 0.0) + max(begun - first.submitted_at, 0.0) + first.waited_s,
        accepted_draft_tokens=sum(accepted) if accepted else None,
    )
