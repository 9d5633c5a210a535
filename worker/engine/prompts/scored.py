"""What of a line's prompts is scored. No MLX."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from worker.engine.scoring.task import ScoringTask

if TYPE_CHECKING:
    from jobs.lines.line import Job


def prompts_of(job: Job) -> Iterator[tuple[Job, tuple[int, ...] | None]]:
    """A job for each prompt of a line, and the prompt's token ids where it has them in place of a text."""
    if not job.prompts:
        yield job, None
    for prompt in job.prompts:
        if isinstance(prompt, str):
            yield replace(job, prompt=prompt, prompts=()), None
        else:
            yield replace(job, prompts=()), prompt


def task_of(job: Job, border: int | None) -> ScoringTask | None:
    """What is scored of a prompt, whose continuation begins at ``border`` (None: it has none); None: nothing."""
    if not job.scored and job.generates:
        return None
    # Alternatives are wanted by several names; a record shows of them as many as each asks for.
    tops = [job.prompt_logprobs or 0]
    if border is not None or job.echo:
        tops.append(job.sampling.top_logprobs if job.sampling.logprobs else 0)
    listed = job.prompt_logprobs
    first = border if border is not None and listed is None else 1
    return ScoringTask(first, top=max(tops), border=border, listed=listed, generates=job.generates)
