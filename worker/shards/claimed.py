"""A claimed shard: its lease, its lines, and which of them still lack a record."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobs.app.worker_options import MAX_ATTEMPTS
from jobs.attempt import Attempt
from jobs.batch import Batch
from jobs.errors import LineError
from jobs.lines.line import Defaults, Job, check_line, derived_seed
from jobs.shard import Group, ShardLine

if TYPE_CHECKING:
    from jobs.store.store import FinishedLine
    from worker.rq.worker import Lease

KEPT_BYTES = 4 << 20
"""Most bytes of a shard's records that are kept until it is compacted."""

LineKey = tuple[str, int, int]
"""A line's identity in this process: (RQ job id of its shard, fence it was taken under, index in the batch)."""


class State(enum.Enum):
    """Where a held shard is on its way: from one to the next, never back."""

    RUNNING = "running"
    WITHDRAWING = "withdrawing"
    """It is to go back because of a pause: no more of its lines begin here."""
    IDLE = "idle"
    """The same, and none of its lines is under way: it goes back when the records there are of it are stored."""
    ENDED = "ended"


class End(enum.Enum):
    """How a shard ends on this worker."""

    FINISHED = "finished"
    RETURNED = "returned"
    """It goes back to the head of its queue: its batch or this worker is paused, this worker ends or cannot load its
    model, or Redis has lost records of it, as after a crash, whose lines must be generated again."""
    REFUSED = "refused"
    """It goes back to the end of its queue: what Redis keeps of it is not ours, and nothing can be stored."""
    LOST = "lost"
    """Its lease went to another worker, and whatever this one still does for it is void."""


class QuarantineLevel(enum.Enum):
    """Whether a line runs with nothing beside it: see :mod:`worker.faults.quarantine`."""

    NONE = "none"
    TRIAL = "trial"
    """Until its first tokens are there."""
    ALONE = "alone"


@dataclass(slots=True)
class HeldShard:
    """A claimed shard. Threads: any; holds the lock where its state changes.

    ``remaining`` are the indices without a stored record; the writer alone takes from it. ``rank`` is what its lines
    go by: those of a lower one begin first. ``lease`` and ``attempt`` are the last that this worker took of it: it
    takes its own shard up again after an outage or a sleep. ``refused`` are lines that no live worker takes: they are
    not to be prepared. ``dropped`` are lines that were cancelled one by one. ``records`` are those that the writer has
    stored, for the shard's compaction: as many as fit into :data:`KEPT_BYTES`.
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
    remaining: set[int] = field(default_factory=set)
    jobs: dict[int, Job] = field(default_factory=dict)
    records: dict[int, bytes] = field(default_factory=dict)
    refused: dict[int, LineError] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    tries: dict[int, int] = field(default_factory=dict)
    """How often lines were asked whose texts were not as expected. The scribe alone writes it."""
    seeds: dict[int, int | None] = field(default_factory=dict)
    """The seeds that such lines had at first."""
    taken_under: int = field(init=False)
    state: State = field(default=State.RUNNING, init=False)
    _kept_bytes: int = field(default=0, init=False, repr=False)
    _renewing: bool = field(default=False, init=False, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)

    def __post_init__(self) -> None:
        self.taken_under = self.attempt.fence
        self.remaining = {line.index for line in self.lines} - self.attempt.finished

    @property
    def job_id(self) -> str:
        return self.lease.job_id

    # --- its state ---

    @property
    def running(self) -> bool:
        """Whether lines of it may begin here."""
        return self.state is State.RUNNING

    @property
    def ended(self) -> bool:
        """Whether it is finished, handed back or lost."""
        return self.state is State.ENDED

    def withdraw(self) -> bool:
        """Begin no more of its lines; whether they did begin until now."""
        return self._advance(State.RUNNING, State.WITHDRAWING)

    def settle(self) -> bool:
        """None of its lines is under way any more; whether this is news of a shard that is being withdrawn."""
        return self._advance(State.WITHDRAWING, State.IDLE)

    def _advance(self, before: State, after: State) -> bool:
        with self._changed:
            if self.state is not before:
                return False
            self.state = after
            return True

    def end(self, *, under: Attempt | None = None, wait_s: float | None = None) -> bool:
        """Come to the end. True for one caller only, who then does what belongs to it.

        With ``under`` that attempt is over, and where the shard was taken up again meanwhile it has not ended. While
        it is being taken up, that is waited for; where it takes longer than ``wait_s``, it has not ended either.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._renewing, wait_s):
                return False
            if self.ended or (under is not None and self.attempt is not under):
                return False
            self.state = State.ENDED
            return True

    def renew(self, lease: Lease, claim: Callable[[], Attempt | None]) -> bool:
        """Take the shard up again, as by ``claim``; what is under way goes on under the new attempt. False: it has
        ended, or ``claim`` gave none.

        The lock is not held while Redis is asked. Who meets the new fence before it is known here waits in
        :meth:`end`.
        """
        with self._changed:
            if self.ended:
                return False
            self._renewing, self.lease = True, lease
        attempt = None
        try:
            attempt = claim()
        finally:
            with self._changed:
                self.attempt = attempt or self.attempt
                self._renewing = False
                self._changed.notify_all()
        return attempt is not None

    # --- its lines ---

    def attempt_at(self, index: int) -> int:
        """The number of the attempt at a line, from 1: of the one under way, or of the last there was."""
        return self.attempt.tries.get(index, 0) + (0 if self.hopeless(index) else 1)

    def last(self, index: int) -> bool:
        """Whether the attempt under way is the last that a line gets, should it fail by itself."""
        return self.attempt.failures(index) + 1 >= self.max_attempts

    def hopeless(self, index: int) -> bool:
        """Whether all attempts that a line gets have failed, and the last of them for no reason beside it: nobody is
        given up for what ran beside a line that kills."""
        return self.attempt.failures(index) >= self.max_attempts and index in self.attempt.alone

    def quarantine(self, index: int) -> QuarantineLevel:
        """How far a line is from the others. Two deaths of its worker make it a suspect, and one where two are all it
        gets, so that the last is its own; a model that failed with the line among others does so at once. That costs a
        trial: only from the third death on does the line run alone to its end, whatever it gets."""
        attempt, enough = self.attempt, 2 if self.max_attempts > 2 else 1
        deaths, suspicions = attempt.deaths.get(index, 0), attempt.suspicions.get(index, 0)
        if deaths > 2 or suspicions > 1 or attempt.own_failures(index) > 0:
            return QuarantineLevel.ALONE
        return QuarantineLevel.TRIAL if deaths >= enough or suspicions else QuarantineLevel.NONE

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

    def ask_again(self, index: int, tries: int) -> None:
        """Give a line that was asked so often another seed, the same whenever it comes to that. Thread: scribe."""
        job = self.jobs[index]
        first = self.seeds.setdefault(index, job.sampling.seed)
        self.tries[index] = tries
        seed = derived_seed(f"{first}", tries)
        self.jobs[index] = replace(job, sampling=replace(job.sampling, seed=seed))

    def keep(self, lines: Iterable[FinishedLine]) -> None:
        """Note that records of lines are stored. Thread: writer."""
        for line in lines:
            self.remaining.discard(line.index)
            self._kept_bytes += len(line.record)
            # Of one that was cancelled by itself another record is stored.
            if self._kept_bytes <= KEPT_BYTES and line.index not in self.dropped:
                self.records[line.index] = line.record

    @property
    def own_records(self) -> dict[int, bytes]:
        """The records that need not be read again. None where the shard was taken up again: another worker may have
        stored some of them meanwhile. Thread: writer."""
        return self.records if self.attempt.fence == self.taken_under else {}

    def todo(self) -> list[ShardLine]:
        """Lines that no earlier attempt finished."""
        return [line for line in self.lines if line.index in self.remaining]


class HeldShards:
    """The shards that a worker holds, by the ids of their jobs. Threads: any; holds the lock.

    ``claiming`` is the lease of the shard that the main thread is claiming at the moment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[str, HeldShard] = {}
        self.claiming: Lease | None = None

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[HeldShard]:
        with self._lock:
            return iter(list(self._shards.values()))

    def get(self, job_id: str) -> HeldShard | None:
        return self._shards.get(job_id)

    def of_line(self, key: LineKey) -> HeldShard | None:
        """The shard of a line; None where it has ended here, or was given back and taken anew since."""
        job_id, fence, _index = key
        shard = self._shards.get(job_id)
        return shard if shard is not None and shard.taken_under == fence and not shard.ended else None

    def leases(self) -> list[Lease]:
        """The leases to be renewed."""
        leases = [shard.lease for shard in self]
        # Claiming may take long: which lines of a shard are lost has to be found out then.
        return leases if (claiming := self.claiming) is None else [*leases, claiming]

    def add(self, shard: HeldShard) -> None:
        with self._lock:
            self._shards[shard.job_id] = shard

    def remove(self, shard: HeldShard) -> None:
        """Forget a shard, unless it was taken anew meanwhile."""
        with self._lock:
            if self._shards.get(shard.job_id) is shard:
                del self._shards[shard.job_id]
