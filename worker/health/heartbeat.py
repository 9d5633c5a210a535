"""The pulse thread: renews leases, publishes what the worker is doing, and keeps the machine awake meanwhile. It waits
for no other thread."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import orjson
import redis.exceptions

from jobs.attempt import Standing
from jobs.store.keys import worker_key
from worker.health.rates import Recent
from worker.models.load_failures import published_failures
from worker.models.residency import share_out
from worker.rq.worker import RENEW_S

if TYPE_CHECKING:
    from redis import Redis

    from worker.service import Service

__all__ = ["Pulse"]

log = logging.getLogger("promptmill.worker")

PUBLISH_S = 1.0
PUBLISHED_FOR_S = 6
SHOWN_LINES = 256


class Pulse(threading.Thread):
    """Beats every second on a connection of its own, so that no long write of another thread can delay a lease.

    ``answered_at`` is when Redis took the last beat, in seconds since the epoch, ``outages`` how often it stopped to.
    """

    def __init__(self, connection: Redis, service: Service, *, now: Callable[[], float] = time.time) -> None:
        super().__init__(name="pulse", daemon=True)
        self._connection = connection
        self._service = service
        self._stopped = threading.Event()
        self._renewed_at = 0.0
        self._recent = Recent(time.monotonic(), service.compute.snapshot)
        self._now = now
        self._started_at = now()
        self._version = version("promptmill")
        self.answered_at = now()
        self.outages = 0
        self._answering = True

    def stop(self) -> None:
        """End and take the published state away."""
        self._stopped.set()
        self.join(timeout=5.0)

    def run(self) -> None:
        while not self._stopped.wait(PUBLISH_S):
            try:
                self._beat()
            except redis.exceptions.RedisError as error:
                self._missed(error)
            else:
                self._taken()
        self._service.assertion.keep(False)
        try:
            self._connection.delete(worker_key(self._service.name))
        except redis.exceptions.RedisError:
            log.debug("the published state expires by itself")

    def _taken(self) -> None:
        if not self._answering:
            message = "Redis takes this worker's pulse again, after %.0f s"
            log.warning(message, self._now() - self.answered_at, extra={"action": "pulse_taken"})
        self.answered_at, self._answering = self._now(), True

    def _missed(self, error: redis.exceptions.RedisError) -> None:
        if self._answering:
            message = (
                "Redis does not take this worker's pulse (%s): until it does nothing new is begun, and leases run out"
            )
            log.warning(message, error, extra={"action": "pulse_missed"})
        self.outages += self._answering
        self._answering = False

    def _beat(self) -> None:
        self._service.assertion.keep(bool(self._service.held))  # before what fails without Redis
        now = time.monotonic()
        due = now - self._renewed_at >= RENEW_S
        # What a server takes that is full goes first.
        if due:
            leases = [held.lease for held in list(self._service.held.values())]
            # To find out which lines are lost may take long.
            if (beginning := self._service.beginning) is not None:
                leases.append(beginning)
            self._service.rq.renew(leases, self._connection)
        self._let_go()
        if due:
            self._renewed_at = now
            self._service.rq.show_alive(self._connection)
        state = orjson.dumps(self._state(now))
        self._connection.set(worker_key(self._service.name), state, ex=PUBLISHED_FOR_S)

    def _let_go(self) -> None:
        """Drop shards that are no longer ours, or whose batch has ended, within a second or two, and withdraw those
        whose batch is paused."""
        held = [held for held in list(self._service.held.values()) if not held.ended]
        attempts = [shard.attempt for shard in held]
        standing = self._service.store.standing(attempts, self._connection) if held else []
        for shard, attempt, state in zip(held, attempts, standing, strict=True):
            # One that has all its records is the writer's to end, and ends its batch maybe.
            if state is Standing.LOST and shard.remaining:
                self._service.let_go(shard, attempt)
            elif state is Standing.PAUSED:
                shard.withdraw()

    def _state(self, now: float) -> dict[str, Any]:
        service = self._service
        compute, shot = service.compute, service.compute.snapshot
        loading = compute.loading
        word = "busy" if service.held else "idle" if service.pausing.looked else "starting"
        if service.draining:
            word = "draining"
        elif loading is not None:
            word = "loading"
        return {
            "name": service.name,
            "state": word,
            "paused": service.pausing.paused,
            "model": loading.key if loading is not None else None,
            "models": [group.key for group in service.settings.groups],
            "loaded": [{"model": group.key, "bytes": size} for group, size in share_out(compute.loaded).items()],
            "queues": service.rq.queue_names(),
            "failing": published_failures(compute.failed, now),
            "refused": [{"batch_id": batch_id, "reason": why} for batch_id, why in service.refusals.said.items()],
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "version": self._version,
            "started_at": round(self._started_at, 3),
            **self._recent.add(now, shot),
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

    def _line(self, line: Any) -> dict[str, Any]:
        job_id, _, index = line.key
        held = self._service.held.get(job_id)
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
