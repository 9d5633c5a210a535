"""What a worker holds: a shard under lease, its lines, and which of them still lack a record."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobs.attempt import Attempt
from jobs.batch import Batch
from jobs.errors import LineError
from jobs.line import Defaults, Job, check_line
from jobs.shard import Group, ShardLine

if TYPE_CHECKING:
    from worker.lease import Lease

__all__ = ["MAX_ATTEMPTS", "HeldShard", "LineKey"]

MAX_ATTEMPTS = 3

LineKey = tuple[str, int, int]
"""A line's identity in this process: (RQ job id of its shard, fence it was taken under, index in the batch)."""


@dataclass(slots=True)
class HeldShard:
    """A claimed shard.

    ``remaining`` are the indices without a stored record; the writer alone takes from it. ``ended`` is set once
    the shard is finished, handed back or lost, and whoever sets it removes the shard from the worker's table.
    ``rank`` is what its lines go by: those of a lower one begin first. ``paused`` says that its batch is held back,
    ``withdrawing`` that no more of its lines are to begin here, ``withdrawn`` that none of them is under way any more.
    ``refused`` are lines that no live worker takes: they are not to be prepared.
    ``lease`` and ``attempt`` are renewed when this worker takes its own shard up again, as after an outage.
    """

    lease: Lease
    attempt: Attempt
    batch: Batch
    group: Group
    queue: str
    defaults: Defaults
    committed_at: float
    lines: list[ShardLine]
    taken_at: float
    max_attempts: int = MAX_ATTEMPTS
    rank: int = 0
    paused: bool = False
    withdrawing: bool = False
    withdrawn: bool = False
    remaining: set[int] = field(default_factory=set)
    jobs: dict[int, Job] = field(default_factory=dict)
    refused: dict[int, LineError] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    taken_under: int = field(init=False)

    def __post_init__(self) -> None:
        self.taken_under = self.attempt.fence
        self.remaining = {line.index for line in self.lines} - self.attempt.finished

    @property
    def job_id(self) -> str:
        return self.lease.job_id

    def attempt_at(self, index: int) -> int:
        """The number of the attempt at a line, from 1: of the one under way, or of the last there was."""
        return self.attempt.tries.get(index, 0) + (0 if self.hopeless(index) else 1)

    def last(self, index: int) -> bool:
        """Whether the attempt under way is the last that a line gets."""
        return self.attempt.failures(index) + 1 >= self.max_attempts

    def hopeless(self, index: int) -> bool:
        """Whether all attempts that a line gets have failed."""
        return self.attempt.failures(index) >= self.max_attempts

    def suspect(self, index: int) -> bool:
        """Whether a worker died while it had this line under way, or an attempt at it failed, or it may have been what
        ended a model."""
        return self.attempt.failures(index) > 0 or index in self.attempt.suspects

    def key(self, index: int) -> LineKey:
        return (self.job_id, self.taken_under, index)

    def job(self, line: ShardLine) -> Job:
        """The job of a line, checked once more: nothing that comes from Redis is trusted.

        Raises:
            LineError: the line breaks the contract, or is for another model than its shard.
        """
        if line.index not in self.jobs:
            checked = check_line(line.raw)
            job = checked.job(index=line.index, line=line.line, batch_id=self.attempt.batch_id, defaults=self.defaults)
            if Group(job.model, job.adapter_path) != self.group:
                raise LineError("conflicting_fields", "model", f"'{job.model}' is not the model of the line's shard")
            self.jobs[line.index] = job
        return self.jobs[line.index]

    def todo(self) -> list[ShardLine]:
        """Lines that no earlier attempt finished."""
        return [line for line in self.lines if line.index in self.remaining]
