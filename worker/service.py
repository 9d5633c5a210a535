"""The worker: takes shards, keeps the engine fed, renews leases, drains, and hands back what it cannot finish.

Threads, and who may touch what:

- main: takes and claims shards, recovery, signals. Never MLX.
- intake: checks, renders and tokenises lines.
- compute: MLX, alone; it waits for nothing but its commands.
- in-flight log: notes lines in Redis before they begin (worker/faults/in_flight_log.py).
- writer: Redis writes; beside it the scribe: text, records, the spool.
- pulse: leases and the published state; it must never wait for any of the others.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import redis.exceptions

from jobs.app.process_name import process_name
from jobs.app.stop_signal import StopSignals
from jobs.app.worker_options import EngineSettings, ServiceOptions
from jobs.attempt import Attempt
from jobs.errors import BatchNotFoundError, BatchPausedError, LineError, ModelLoadError, RefusedError
from jobs.redis.connect import refusing
from jobs.shard import Group
from jobs.store.lost_lines import end_lost_lines
from jobs.store.maintenance import upkeep
from jobs.store.store import Store
from worker.faults.crash_loop import note_failure
from worker.faults.in_flight_log import InFlightLog
from worker.faults.refused_shards import Refusals
from worker.faults.spool import Spool
from worker.health.heartbeat import Pulse
from worker.health.keep_awake import SleepAssertion, Take, way_to_stay_awake
from worker.health.prometheus import Metrics
from worker.health.recycle import HELD_BACK, RECYCLE
from worker.models.compute import Compute
from worker.models.load_failures import LoadFailures
from worker.models.loader import Models
from worker.models.residency import STARVATION_S
from worker.rq.worker import MAINTENANCE_S, Lease, ShardJob, ShardWorker, machine
from worker.shards.claimed import End, HeldShard, LineKey
from worker.shards.pause import Pausing
from worker.shards.preparer import Intake
from worker.shards.queue_order import Turns
from worker.shards.records import EndedLine, failed_line
from worker.shards.writer import Writer

if TYPE_CHECKING:
    from redis import Redis

    from worker.engine.sequence import Finished

__all__ = ["Service", "ServiceSettings"]

log = logging.getLogger("promptmill.worker")

POLL_S = 0.1
REDIS_BACKOFF_S = 2.0
RETRY_BASE_S, RETRY_MOST_S = 1.0, 60.0
"""A line is tried again after this long, doubled for each attempt."""
LEAST_AHEAD = 8
"""Lines kept ahead of a smaller batch: short ones would run out between two looks."""


@dataclass(frozen=True, slots=True)
class ServiceSettings(ServiceOptions):
    """What a worker serves and how."""

    groups: tuple[Group, ...]
    starvation_s: float = STARVATION_S
    metrics: tuple[str, int] | None = None
    """Host and port for Prometheus."""
    engine: EngineSettings = field(default_factory=EngineSettings)


class Service:
    """One worker process. ``run`` returns its exit status."""

    def __init__(
        self,
        connection: Redis,
        pulse_connection: Redis,
        settings: ServiceSettings,
        *,
        marks_connection: Redis | None = None,
        metrics: Metrics | None = None,
        stay_awake: Take | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.name = process_name(settings.name)
        self.store = Store(connection, now=now)
        self.held: dict[str, HeldShard] = {}
        self.beginning: Lease | None = None
        self._held_lock = threading.Lock()
        self._metrics = metrics or Metrics()
        self.assertion = SleepAssertion(None if settings.allow_sleep else stay_awake or way_to_stay_awake())
        self._life = f"{self.name}/{uuid.uuid4().hex}"
        self.in_flight = InFlightLog(
            self.store,
            marks_connection or pulse_connection,
            self._life,
            self.held,
            self.let_go,
            lambda answer: self.compute.answered(answer),
        )
        self.compute = Compute(settings.engine, self._line_finished, self._wake, self.in_flight, self._unstored)
        self.models = Models(self.compute, settings.groups, bound=settings.starvation_s)
        self.turns = Turns(
            settings.groups,
            settings.pool,
            models=self.models,
            lengths=lambda queues: self.rq.waiting(queues),
            wanted=self._wanted,
        )
        self.rq = ShardWorker(self.store, self.turns.queues, self.name, self._life)
        self.refusals = Refusals(self.store, self.rq, self.turns.put_off_queue)
        self.load_failures = LoadFailures(self.rq, lambda: self.compute.failed, self.turns.put_off)
        self.spool = None if settings.spool is None else Spool(settings.spool, self.name, settings.spool_keep_s)
        ended, settled = self._shard_ended, self.compute.look
        self.writer = Writer(self.store, self.name, ended, self._retry, self.spool, metrics=metrics, on_settled=settled)
        self.intake = Intake(self.compute, self.writer, self._load_failed, now=now)
        self.pulse = Pulse(pulse_connection, self)
        self.pausing = Pausing(self.name, self.compute, self.writer)
        self._threads = (self.compute, self.in_flight, self.writer, self.intake, self.pulse)
        self._now = now
        self._stops = StopSignals()
        self._recycling = False
        self._tokens = 0
        self._idle_since = time.monotonic()
        self._maintained_at = -MAINTENANCE_S

    @property
    def draining(self) -> bool:
        """Whether the worker was asked to stop, or stops by itself to start afresh."""
        return self._stops.count > 0 or self._recycling

    # --- the main thread ---

    def run(self) -> int:
        """Serve until told to stop. 0: clean end; 1: the engine failed; 5: no model can be loaded; RECYCLE: all is
        handed back and closed, and the process should start afresh."""
        self.rq.start()
        with self._stops.heard():
            # The threads, and those they start, never take a SIGTERM: only this one is asked to stop.
            signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
            for thread in self._threads:
                thread.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
            try:
                if self.spool is not None:
                    self.spool.open()
                self._offer_left()
                failed = self._preload() if self.settings.preload else []
                if len(failed) == len(self.settings.groups):
                    return ModelLoadError.exit_status
                served = [group.key for group in self.settings.groups if group not in failed]
                log.info("%s serves %s", self.name, ", ".join(served), extra={"action": "ready"})
                self._serve()
                status = 1 if self._broken() else 0
            finally:
                self._end()
                if self._recycling:  # one that comes from now on is for the next life
                    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        return RECYCLE if self._recycling and not self._stops.count else status

    def _preload(self) -> list[Group]:
        """Load the models that fit together, in the order they were given; those that cannot be loaded."""
        failed = []
        for group in self.settings.groups:
            if not self.models.all_fit and not self._done(self.models.ask(group)):
                break
            if not self.models.fits(group):
                message = "%s does not fit beside the others: it is loaded when it has work and it is its turn"
                log.info(message, group.key, extra={"action": "model_left_cold"})
                continue
            loading = self.models.load(group)
            if not self._done(loading):
                break
            if (error := loading.exception()) is not None:
                log.error("%s", error, extra={"action": "model_load_failed"})
                failed.append(group)
        return failed

    def _done(self, future: Future[Any]) -> bool:
        """Wait for the compute thread; False when the worker is stopping."""
        while not future.done() and not self._stopping():
            self._pause()
        return future.done()

    def _serve(self) -> None:
        self._idle_since = time.monotonic()
        while not self._stopping():
            self.beginning = None
            try:
                paused = self.pausing.look(self.store.connection)
                self.pausing.withdraw(list(self.held.values()))
                self._maintain()
                if self._worn():  # only now that Redis has answered: without it nothing can be handed back
                    return
                if not paused and self._take_one():
                    continue
            except redis.exceptions.RedisError as error:
                log.debug("no shards can be taken: %s", error, extra={"action": "redis_out"})
                self._stops.wakeup.wait(REDIS_BACKOFF_S)
                continue
            if self._idle_for_good():
                return
            self._pause()

    def _stopping(self) -> bool:
        if self.settings.parent not in (None, os.getppid()):
            log.info("the parent process is gone", extra={"action": "orphaned"})
            return True
        return self._stops.count > 0 or self._broken()

    def _worn(self) -> bool:
        """Whether so many tokens were generated that the worker shall start afresh."""
        limit = self.settings.recycle_after_tokens
        if limit is not None and self._tokens >= limit:
            log.info("recycling after %d tokens", self._tokens, extra={"action": "recycle"})
            self._recycling = True
        return self._recycling

    def _broken(self) -> bool:
        """Whether a thread this worker cannot do without has ended by itself."""
        return not all(thread.is_alive() for thread in self._threads)

    def _idle_for_good(self) -> bool:
        # Or a model has work whose turn it is not yet, or nobody knows whether there is any.
        if self.held or self.turns.waiting or self.pausing.paused:
            self._idle_since = time.monotonic()
            return False
        idle = time.monotonic() - self._idle_since
        limit = self.settings.max_idle_s
        return (self.settings.burst and idle > POLL_S) or (limit is not None and idle > limit)

    def _maintain(self) -> None:
        if time.monotonic() - self._maintained_at >= MAINTENANCE_S:
            self._maintained_at = time.monotonic()
            self._offer_left()
            self.rq.recover()
            self.turns.look()
            try:
                upkeep(self.store)
            except RefusedError as error:
                log.warning("%s", error, extra={"action": "refuse_upkeep"})
            if self.spool is not None:
                self.spool.sweep()

    def _offer_left(self) -> None:
        """Deliver what dead workers left in the spool, before anybody claims their shards and those records are
        stale."""
        if self.spool is not None:
            self.spool.offer(self.store, self._stopping)

    def _wanted(self, group: Group, rank: int) -> bool:
        """Whether another shard of a model is needed: always one batch of lines ahead, so that no shard's end drains
        the batch. Lines that go first need not wait until those that are ahead have begun."""
        ahead = self.compute.waiting(group) + self.intake.unprepared(group)
        needed = max(self.compute.capacity(group), LEAST_AHEAD)
        if ahead < needed:
            return True
        held = [shard for shard in list(self.held.values()) if shard.group == group]
        behind = any(shard.rank > rank for shard in held)
        return behind and sum(len(shard.remaining) for shard in held if shard.rank <= rank) < needed

    def _take_one(self) -> bool:
        if self.held:  # what is handed back meanwhile may be missed by this look at the queues
            self._idle_since = time.monotonic()
        queues = self.turns.choose({held.group for held in list(self.held.values())})
        shard = self.rq.take(queues) if queues else None
        if shard is None:
            return False
        self._begin(shard, self.turns.taken(shard.queue))
        return True

    def _begin(self, shard: ShardJob, rank: int) -> None:
        lease = self.beginning = self.rq.begin(shard)
        if lease is None or self.refusals.waits(shard, lease):
            return
        attempt, group = None, self.turns.group_of(shard.queue)

        def claim() -> Attempt | None:
            return self.store.claim(shard.batch_id, shard.number, self._life)

        try:
            batch = self.store.batch(shard.batch_id)
            held = self.held.get(lease.job_id)
            if held is not None and held.renew(lease, partial(self._insist, claim)):
                return  # our own lease had run out, as when the machine slept
            attempt = claim()
            if attempt is None:
                self.rq.acknowledge(lease, 0.0)
                return
            contents = self.refusals.contents(shard, batch, group)
            if contents is None:
                log.warning("%s has lost its prompts; its lines fail", lease.job_id, extra={"action": "prompts_lost"})
                end_lost_lines(self.store, batch, attempt, self.name)
                self.rq.acknowledge(lease, 0.0)
                return
        except BatchPausedError:
            self.rq.hand_back(lease, shard.queue)
            return
        except BatchNotFoundError as error:
            log.warning("removed shard %s: %s", lease.job_id, error, extra={"action": "refuse_shard"})
            self.rq.acknowledge(lease, 0.0)
            return
        except (RefusedError, LineError, ValueError, KeyError, TypeError) as error:
            self.refusals.leave(shard, lease, attempt, error)
            return
        held = HeldShard(
            lease=lease,
            attempt=attempt,
            batch=batch,
            group=group,
            queue=shard.queue,
            defaults=contents.defaults,
            committed_at=batch.times.get("in_progress", self._now()),
            lines=contents.lines,
            taken_at=self._now(),
            max_attempts=self.settings.max_attempts,
            rank=rank,
        )
        if not self.refusals.takes(held, contents.refusal):
            return
        with self._held_lock:
            self.held[held.job_id] = held
        self._metrics.shard_taken(held.group)
        if len(held.refused) < len(held.remaining) or not held.remaining:
            self.intake.put(held, self.models.load(held.group))
        for line in held.todo():
            if line.index in held.refused:
                self.writer.put(failed_line(held, line, held.refused[line.index], self._now()))
        self.rq.show_state(busy=True)

    def _insist(self, claim: Callable[[], Attempt | None]) -> Attempt | None:
        """Claim a shard whose lines are under way here: an answer that was lost may have made their attempt stale."""
        while True:
            try:
                return claim()
            except redis.exceptions.RedisError:
                if self._stopping():
                    raise
                self._stops.wakeup.wait(REDIS_BACKOFF_S)

    def _pause(self) -> None:
        self._stops.wakeup.wait(POLL_S)

    # --- called from other threads ---

    def _wake(self) -> None:
        self._stops.wakeup.ring()

    def _unstored(self) -> int | None:
        return self.writer.unstored

    def _line_finished(self, group: Group, finished: Finished) -> None:
        """Compute thread: a line has ended."""
        self._tokens += sum(len(sequence.tokens) for sequence in finished.sequences)
        job_id, fence, index = cast("LineKey", finished.key)
        held = self.held.get(job_id)
        if held is None or held.ended or held.taken_under != fence:
            return
        self.writer.put(EndedLine(held, index, self.compute.served(group), finished, self._now()))

    def _shard_ended(self, held: HeldShard, end: End) -> None:
        """The one thread that ended a shard, for the most part the writer: what belongs to an end."""
        if end is End.INCOMPLETE:
            log.warning("Redis lost records of %s; its lines go back", held.job_id, extra={"action": "records_lost"})
        if end is End.REFUSED:
            self.refusals.not_stored(held)
        self._close(held, end, front=end is not End.REFUSED)
        if end is End.FINISHED:
            self._acknowledge(held)
        if end is not End.FINISHED:
            # The lease of a lost one stays: when it runs out, recovery sees whether anybody else has the shard.
            for index in tuple(held.remaining):  # other threads may change it
                self.compute.cancel(held.group, held.key(index))
        self._wake()

    def _close(self, held: HeldShard, end: End, *, front: bool = True) -> bool:
        """Count the end of a shard and forget it. One that goes back does so: its finished lines keep their records,
        the others go to the next worker. False: Redis is out, and the lease expires by itself."""
        self._metrics.shard_ended(held.group, end)
        try:
            if end.goes_back:
                self.store.release(held.attempt, self.compute.verdict(held.job_id))
                # Whether or not it was stale: RQ's books say whether the job is still this worker's.
                self.rq.hand_back(held.lease, held.queue, front=front)
        except redis.exceptions.RedisError as error:
            log.warning("cannot hand back %s: %s; its lease expires by itself", held.job_id, error)
            return False
        finally:
            with self._held_lock:  # only now: a worker that has nothing and sees no work ends, if it is to
                if self.held.get(held.job_id) is held:
                    del self.held[held.job_id]
        return True

    def _acknowledge(self, held: HeldShard) -> None:
        """Writer thread: nothing of the shard is left to do, here or elsewhere."""

        def step() -> None:
            with refusing(f"job {held.job_id}"):
                self.rq.acknowledge(held.lease, self._now() - held.taken_at)

        try:
            self.writer.persistently(step)
        except RefusedError as error:
            log.warning("%s", error, extra={"action": "refuse_job"})
        if not self.held:
            self.rq.show_state(busy=False)

    def let_go(self, held: HeldShard, attempt: Attempt, *, wait_s: float = 0.0) -> None:
        """Pulse or in-flight log: the shard was taken over, or its batch has ended, unless it was taken up again."""
        if held.end(under=attempt, wait_s=wait_s):
            log.info("%s is no longer this worker's; its lines are dropped", held.job_id, extra={"action": "let_go"})
            self._shard_ended(held, End.LOST)

    def _retry(self, held: HeldShard, index: int) -> None:
        """Writer thread: an attempt at a line failed, and it gets another one."""
        after_s = min(RETRY_BASE_S * 2 ** (held.attempt.failures(index) - 1), RETRY_MOST_S)
        self.intake.put_again(held, self.compute.load(held.group), index, after_s)

    def _load_failed(self, held: HeldShard) -> None:
        """Intake thread: leave the shard to the other workers of its queue; its lines fail when none of them could load
        its model for long."""
        error = self.load_failures.verdict(held)
        if error is None:
            self._return(held, front=False)
            return
        for line in held.todo():
            self.writer.put(failed_line(held, line, error, self._now()))

    # --- the end ---

    def _end(self) -> None:
        """Let begun lines finish within the drain limit, hand back the rest, and leave RQ's books in order."""
        if self._stops.count:
            log.info("stopping: lines that were begun are finished first", extra={"action": "drain"})
        self.intake.stop()
        self._drain()
        self.compute.stop()
        # MLX must not be in use while the interpreter goes down: the process would abort. A load is not waited for:
        # the process is ended under it (worker.__main__).
        self.compute.join(timeout=30.0 if self.compute.loading is None else 0.0)
        self.in_flight.stop()
        left = list(self.held.values())
        if self.writer.end():
            while left and self._return(left[0]):  # once Redis is out, each further try takes its time in vain
                del left[0]
        if self.spool is not None and self.compute.failure is None:
            self.spool.leave([held.attempt for held in left])
        self.pulse.stop()
        try:
            note_failure(self.store.connection, machine(), self.compute, self._life)
            self.rq.end()
        except (redis.exceptions.RedisError, RefusedError) as error:
            log.warning("cannot deregister: %s; the registration expires by itself", error)

    def _drain(self) -> None:
        if self.compute.failure is not None or not self.compute.is_alive():
            return
        deadline = time.monotonic() + (self.settings.drain_s if self._stops.count < 2 else 0.0)
        dropping = self.compute.drop_pending()
        while time.monotonic() < deadline and self._stops.count < 2 and self.compute.is_alive():
            if dropping.done() and self.compute.idle:
                return
            if self.compute.loading is not None and not self.compute.snapshot.in_flight:
                return  # a model can take minutes to load, and nothing else is under way
            self._pause()

    def _return(self, held: HeldShard, *, front: bool = True) -> bool:
        """Hand a shard back, unless it has ended. False: Redis is out, and the lease expires by itself."""
        return not held.end() or self._close(held, End.RETURNED, front=front)
