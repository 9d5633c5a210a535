"""What a worker is doing, read from its parts: for its published state, and for its metrics."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from worker.health.snapshot import Rates
from worker.models.load_failures import published_failures
from worker.models.residency import share_out

if TYPE_CHECKING:
    from jobs.shard import Group
    from worker.engine.sequence import InFlight
    from worker.faults.refused_shards import Refusals
    from worker.faults.spool import Spool
    from worker.models.compute import Compute
    from worker.shards.claimed import HeldShards, LineKey
    from worker.shards.pause import PauseWatch
    from worker.shards.preparer import ShardPreparer
    from worker.shards.queue_order import QueueOrder
    from worker.shards.writer import Writer

SHOWN_LINES = 256


@dataclass(slots=True)
class WorkerReadings:
    """The parts of a worker that tell what it is doing. Threads: any for the parts, which are only read; heartbeat for
    :meth:`published`. ``clock`` is a steady one."""

    name: str
    groups: tuple[Group, ...]
    draining: Callable[[], bool]
    held: HeldShards
    compute: Compute
    order: QueueOrder
    refusals: Refusals
    preparer: ShardPreparer
    writer: Writer
    spool: Spool | None
    pause: PauseWatch
    clock: Callable[[], float] = time.monotonic
    started_at: float = field(default_factory=time.time)
    version: str = field(default_factory=lambda: version("promptmill"))
    _rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        self._rates = Rates(self.clock(), self.compute.snapshot)

    def published(self) -> dict[str, Any]:
        """What ``promptmill status`` and other workers read of this one."""
        compute, shot, now = self.compute, self.compute.snapshot, self.clock()
        return {
            "name": self.name,
            "state": self._state(),
            "paused": self.pause.paused,
            "model": compute.loading.key if compute.loading is not None else None,
            "models": [group.key for group in self.groups],
            "loaded": [{"model": group.key, "bytes": size} for group, size in share_out(compute.loaded).items()],
            "queues": self.order.queues,
            "failing": published_failures(compute.failed, now),
            "refused": [{"batch_id": batch_id, "reason": why} for batch_id, why in self.refusals.reasons.items()],
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "version": self.version,
            "started_at": round(self.started_at, 3),
            **self._rates.add(now, shot),
            "memory_bytes": shot.memory_bytes,
            "memory_limit_bytes": compute.memory_limit,
            "totals": {
                "lines": shot.finished_lines,
                "prompt_tokens": shot.prompt_tokens,
                "cached_tokens": shot.cached_tokens,
                "completion_tokens": shot.completion_tokens,
                "scored_tokens": shot.scored_tokens,
            },
            "lines_in_flight": len(shot.in_flight),
            "in_flight": [self._line(line) for line in shot.in_flight[:SHOWN_LINES]],
        }

    def _state(self) -> str:
        if self.draining():
            return "draining"
        if self.compute.loading is not None:
            return "loading"
        if self.held:
            return "busy"
        return "idle" if self.pause.looked else "starting"

    def _line(self, line: InFlight) -> dict[str, Any]:
        job_id, _fence, index = cast("LineKey", line.key)
        held = self.held.get(job_id)
        job = held.jobs.get(index) if held is not None else None
        return {
            "batch_id": job_id.rpartition("-")[0],
            "index": index,
            "id": job.id if job is not None else None,
            "phase": line.phase,
            "prompt_tokens": line.prompt_tokens,
            "prefilled": line.prefilled,
            "completion_tokens": line.completion_tokens,
        }
