"""What a worker is doing, read from its parts: for its published state, and for its metrics."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from worker.health.rates import Rates
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

__all__ = ["PublishedState", "WorkerParts"]

SHOWN_LINES = 256


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """The parts of a worker that tell what it is doing. Threads: any; they are only read."""

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


class PublishedState:
    """What ``promptmill status`` and other workers read of a worker. Thread: heartbeat."""

    def __init__(
        self,
        parts: WorkerParts,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._parts = parts
        self._rates = Rates(clock(), parts.compute.snapshot)
        self._constant = {
            "name": parts.name,
            "models": [group.key for group in parts.groups],
            "queues": parts.order.queues,
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "version": version("promptmill"),
            "started_at": round(now(), 3),
        }

    def at(self, now: float) -> dict[str, Any]:
        """The state at ``now``, in seconds of a steady clock."""
        parts, compute, shot = self._parts, self._parts.compute, self._parts.compute.snapshot
        return {
            **self._constant,
            "state": self._state(),
            "paused": parts.pause.paused,
            "model": compute.loading.key if compute.loading is not None else None,
            "loaded": [{"model": group.key, "bytes": size} for group, size in share_out(compute.loaded).items()],
            "failing": published_failures(compute.failed, now),
            "refused": [{"batch_id": batch_id, "reason": why} for batch_id, why in parts.refusals.reasons.items()],
            **self._rates.add(now, shot),
            "memory_bytes": shot.memory_bytes,
            "memory_limit_bytes": compute.memory_limit,
            "totals": {
                "lines": shot.finished_lines,
                "prompt_tokens": shot.prompt_tokens,
                "cached_tokens": shot.cached_tokens,
                "completion_tokens": shot.completion_tokens,
            },
            "lines_in_flight": len(shot.in_flight),
            "in_flight": [self._line(line) for line in shot.in_flight[:SHOWN_LINES]],
        }

    def _state(self) -> str:
        parts = self._parts
        if parts.draining():
            return "draining"
        if parts.compute.loading is not None:
            return "loading"
        if parts.held:
            return "busy"
        return "idle" if parts.pause.looked else "starting"

    def _line(self, line: InFlight) -> dict[str, Any]:
        job_id, _fence, index = cast("LineKey", line.key)
        held = self._parts.held.get(job_id)
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
