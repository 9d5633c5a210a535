"""Result and error records: the JSON that ends each line of the input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.batch import Usage, timestamp
from jobs.errors import ProblemLine
from jobs.lines.line import Job


def finish_reason(stop_reason: str, *, calls: bool = False) -> str | None:
    """OpenAI's word for a stop reason: ``stop``, or ``tool_calls`` where a text that ended has any; ``length``; or None
    where the text was cut off from outside."""
    if stop_reason in ("eos", "stop_string"):
        return "tool_calls" if calls else "stop"
    return "length" if stop_reason in ("max_tokens", "context_length", "scored") else None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user gets of one completion.

    ``valid``, of a line with a constraint, says whether the text meets it. ``tool_calls``, of a line with tools, are
    OpenAI's, with the arguments as JSON text; ``tool_call_error`` says why a call was left in the text.
    ``token_ids``, where asked for, are all tokens that were generated: the EOS too, and those of a stop string;
    ``prompt_token_ids`` are those of the choice's prompt, where the line has several.
    ``logprobs``, where asked for, has an entry for each of ``token_ids``, or without those for each token of the text
    (so none for EOS); after those of an echoed prompt, for all that was generated. It has OpenAI's names, with the
    token's ``id`` besides; a token that is part of a character is shown as ``bytes:\\xf0\\x9f``.
    ``prompt_logprobs`` and ``score`` are those of the prompt and of a continuation.
    """

    index: int
    text: str
    stop_reason: str
    stop_string: str | None = None
    reasoning: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    valid: bool | None = None
    tool_calls: Sequence[dict[str, Any]] | None = None
    tool_call_error: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: Sequence[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    score: dict[str, Any] | None = None

    @property
    def finish_reason(self) -> str | None:
        return finish_reason(self.stop_reason, calls=bool(self.tool_calls))

    def as_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "text": self.text,
            "stop_reason": self.stop_reason,
            "stop_string": self.stop_string,
            "finish_reason": self.finish_reason,
        }
        asked = {
            "reasoning": self.reasoning,
            "valid": self.valid,
            "tool_calls": self.tool_calls,
            "tool_call_error": self.tool_call_error,
            "prompt_token_ids": self.prompt_token_ids,
            "token_ids": self.token_ids,
            "logprobs": self.logprobs,
            "prompt_logprobs": self.prompt_logprobs,
            "score": self.score,
        }
        return fields | {name: value for name, value in asked.items() if value is not None}


SHORTEST_DECODE_S = 1e-3
"""No step of a model is shorter: what took less was one step, and has no rate."""


@dataclass(frozen=True, slots=True)
class RunStats:
    """Measured by the engine for one line; seconds, and tokens of all its choices. ``accepted_draft_tokens`` is
    None without a draft model, and then no part of the record. ``scored_tokens`` of its prompts got log-probabilities,
    which the batch counts."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    time_to_first_token_s: float
    prefill_s: float
    decode_s: float
    queue_s: float
    accepted_draft_tokens: int | None = None
    scored_tokens: int = 0

    def usage(self) -> dict[str, Any]:
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens).as_dict()

    def stats(self) -> dict[str, float | None]:
        # One token says nothing about decoding: it comes with the prompt. So do all that a draft model had right there.
        timed = self.completion_tokens > 1 and self.decode_s >= SHORTEST_DECODE_S
        rate = self.completion_tokens / self.decode_s if timed else None
        drafted = {} if self.accepted_draft_tokens is None else {"accepted_draft_tokens": self.accepted_draft_tokens}
        return {
            "time_to_first_token_s": round(self.time_to_first_token_s, 4),
            "prefill_s": round(self.prefill_s, 4),
            "decode_s": round(self.decode_s, 4),
            "queue_s": round(self.queue_s, 3),
            "tokens_per_second": None if rate is None else round(rate, 2),
            **drafted,
        }


def result_record(
    job: Job,
    choices: Iterable[Choice],
    stats: RunStats,
    *,
    batch_id: str,
    model_revision: str | None,
    worker: str,
    attempt: int,
    created_at: float,
    finished_at: float,
    prompt_token_ids: Sequence[int] | None = None,
    judged: dict[str, Any] | None = None,
) -> bytes:
    """The JSON of a line that was generated; ``created_at`` and ``finished_at`` are seconds since the epoch.

    Each choice becomes JSON before the next one is taken: objects of many log-probabilities take ten times as much.
    """
    record: dict[str, Any] = {
        "id": job.id,
        "index": job.index,
        "batch_id": batch_id,
        "model": job.model,
        "model_revision": model_revision,
    }
    if job.adapter_path is not None:
        record["adapter_path"] = job.adapter_path
    if job.sampling.n == 1 and len(job.prompts) < 2:
        record |= next(iter(choices)).as_dict()
    else:
        shown = ({"index": choice.index, **choice.as_dict()} for choice in choices)
        record["choices"] = [orjson.Fragment(orjson.dumps(fields)) for fields in shown]
    if prompt_token_ids is not None:
        record["prompt_token_ids"] = prompt_token_ids
    if job.warnings:
        record["warnings"] = job.warnings
    record["usage"] = stats.usage()
    record["stats"] = stats.stats()
    record["sampling"] = {**job.sampling.as_dict(), **_guidance(job)}
    if judged is not None:
        record["judged"] = judged
    if job.endpoint is not None:
        record["endpoint"] = job.endpoint
    record |= {
        "worker": worker,
        "attempt": attempt,
        "created_at": timestamp(created_at),
        "finished_at": timestamp(finished_at),
        "metadata": job.metadata,
    }
    return orjson.dumps(record)


def _guidance(job: Job) -> dict[str, Any]:
    """What else the line was generated with, as far as it was given: a constraint's kind and the tools' names, since
    the whole of them may be long."""
    given: dict[str, Any] = {}
    if job.constraint is not None:
        given["constraint"] = job.constraint.kind
    if job.thinking_budget is not None:
        given["thinking_budget"] = job.thinking_budget
    if job.tools:
        given["tools"] = [tool["function"]["name"] for tool in job.tools]
        given["tool_choice"] = job.tool_choice
        given["parallel_tool_calls"] = job.parallel_tool_calls
    return given


def error_record(
    *,
    line_id: str,
    index: int,
    batch_id: str,
    code: str,
    message: str,
    param: str | None = None,
    attempt: int = 1,
    finished_at: float,
    worker: str | None = None,
    model: str | None = None,
    adapter_path: str | None = None,
    endpoint: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """The JSON of a line that failed, with the code, the message and the field at fault."""
    record: dict[str, Any] = {
        "id": line_id,
        "index": index,
        "batch_id": batch_id,
        "error": {"code": code, "message": message, "param": param},
        "attempt": attempt,
        "model": model,
        "worker": worker,
        "finished_at": timestamp(finished_at),
    }
    if adapter_path is not None:
        record["adapter_path"] = adapter_path
    if endpoint is not None:
        record["endpoint"] = endpoint
    record["metadata"] = metadata or {}
    return orjson.dumps(record)


def rejected_record(
    *,
    line_id: str,
    index: int,
    batch_id: str,
    problems: Sequence[ProblemLine],
    now: float,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """The error record of a line refused at submission (``--on-bad-line skip``): it never had an attempt.

    Its code and field are those of the first of its ``problems``; the message has all of them.
    """
    first, *others = problems
    return error_record(
        line_id=line_id,
        index=index,
        batch_id=batch_id,
        code=first.code,
        message="; also ".join([first.text, *(problem.said for problem in others)]),
        param=first.field,
        attempt=0,
        finished_at=now,
        metadata=metadata,
    )
