"""The worker: takes shards, keeps the engine fed, renews leases, drains, and hands back what it cannot finish.

| thread | does |
|---|---|
| main | takes and claims shards, recovery, signals; never MLX |
| preparer | checks, renders and tokenises lines |
| compute | MLX, alone; it waits for nothing but its commands |
| in-flight | notes lines in Redis before they begin |
| scribe | makes records of lines that ended, and spools them |
| writer | stores records in Redis, finishes shards |
| heartbeat | renews leases, publishes the state; it waits for none of the others |
| nudges | hears of new shards while there is nothing to take |

Each class, or method, says "Thread: main." for the one that may call it, "Threads: any; holds the lock." for more.
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
from typing import TYPE_CHECKING, Any, cast

import redis.exceptions

from jobs.app.process_name import process_name
from jobs.app.stop_signal import StopSignals
from jobs.app.worker_options import EngineSettings, ServiceOptions
from jobs.attempt import Attempt
from jobs.errors import ModelLoadError, RefusedError
from jobs.redis.connect import refusing
from jobs.shard import Group
from jobs.store.maintenance import upkeep
from jobs.store.store import Store
from worker.engine.sequence import Failure
from worker.faults.crash_loop import note_failure
from worker.faults.in_flight_log import InFlightLog, NoteReply
from worker.faults.refused_shards import Refusals
from worker.faults.spool import Spool
from worker.health.heartbeat import Heartbeat
from worker.health.keep_awake import SleepAssertion, Take, way_to_stay_awake
from worker.health.readings import WorkerReadings
from worker.health.recycle import HELD_BACK, RECYCLE
from worker.models.compute import Compute
from worker.models.load_failures import LoadFailures
from worker.models.loader import ModelLoader
from worker.models.residency import STARVATION_S
from worker.rq.nudges import Nudges
from worker.rq.worker import MAINTENANCE_S, ShardWorker, machine
from worker.shards.claimed import End, HeldShard, HeldShards, LineKey
from worker.shards.claiming import ShardClaimer
from worker.shards.pause import PauseWatch
from worker.shards.preparer import ShardPreparer
from worker.shards.queue_order import QueueOrder, queues_of
from worker.shards.records import EndedLine, Observer
from worker.shards.writer import Writer

if TYPE_CHECKING:
    from redis import Redis

    from worker.engine.sequence import Finished

log = logging.getLogger("promptmill.worker")

POLL_S = 0.1
REDIS_BACKOFF_S = 2.0
RETRY_BASE_S, RETRY_MOST_S = 1.0, 60.0
"""A line is tried again after this long, doubled for each attempt."""
LEAST_AHEAD = 8
"""Lines kept ahead of a smaller batch: short ones would run out between two looks."""


@dataclass(frozen=True, slots=True)
class ServiceSettings(ServiceOptions):
    """The options of a worker's command line, and what follows from them."""

    groups: tuple[Group, ...]
    starvation_s: float = STARVATION_S
    metrics: tuple[str, int] | None = None
    """Host and port for Prometheus."""
    engine: EngineSettings = field(default_factory=EngineSettings)


class Service:
    """One worker process; :meth:`run` returns its exit status. Thread: main, where a method says nothing else.

    Its parts are made one after the other, each given those before it that it calls. What calls the other way, up to a
    part that is made later, goes by a method of this class: see "callbacks" below.
    """

    def __init__(
        self,
        connection: Redis,
        heartbeat_connection: Redis,
        settings: ServiceSettings,
        *,
        in_flight_connection: Redis | None = None,
        nudge_connection: Redis | None = None,
        observer: Observer | None = None,
        stay_awake: Take | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.name = process_name(settings.name)
        self.instance = f"{self.name}/{uuid.uuid4().hex}"
        groups, queues = settings.groups, queues_of(settings.groups, settings.pool)
        self._now = now
        self._observer = observer or Observer()
        self._stops = StopSignals()
        self._recycling = False
        self._tokens = 0
        self._idle_since = time.monotonic()
        self._maintained_at = -MAINTENANCE_S

        self.store = Store(connection, now=now)
        self.rq = ShardWorker(self.store, list(queues), self.name, self.instance)
        self.held = HeldShards()
        self.spool = None if settings.spool is None else Spool(settings.spool, self.name, settings.spool_keep_s)
        in_flight, wake = in_flight_connection or heartbeat_connection, self._stops.wakeup.ring
        self.in_flight = InFlightLog(self.store, in_flight, self.instance, self.held, self.abandon, self._noted)
        self.compute = Compute(settings.engine, self._line_finished, wake, self.in_flight, self._unstored)
        self.models = ModelLoader(self.compute, groups, bound=settings.starvation_s)
        self.order = QueueOrder(queues, models=self.models, waiting_in=self.rq.waiting, wanted=self._wanted)
        self.refusals = Refusals(self.store, self.rq, self.order.put_off_queue)
        self.load_failures = LoadFailures(self.rq, self.order.put_off)
        self.writer = Writer(
            self.store,
            self.name,
            self._shard_ended,
            self._retry,
            self.spool,
            observer=self._observer,
            on_again=self._ask_again,
            on_settled=self.compute.look,
            now=now,
        )
        self.preparer = ShardPreparer(self.compute, self.writer, self._load_failed)
        self.pause = PauseWatch(self.name, self.compute, self.writer)
        self.claimer = ShardClaimer(
            self.rq,
            self.refusals,
            self.held,
            max_attempts=settings.max_attempts,
            keep_trying=self._wait_for_redis,
            now=now,
        )
        self.readings = WorkerReadings(
            name=self.name,
            groups=groups,
            draining=lambda: self.draining,
            held=self.held,
            compute=self.compute,
            order=self.order,
            refusals=self.refusals,
            preparer=self.preparer,
            writer=self.writer,
            spool=self.spool,
            pause=self.pause,
        )
        self.heartbeat = Heartbeat(
            heartbeat_connection,
            self.store,
            self.rq,
            self.held,
            SleepAssertion(None if settings.allow_sleep else stay_awake or way_to_stay_awake()),
            state=self.readings.published,
            abandon=self.abandon,
            drop=self.drop,
        )
        self._threads: tuple[threading.Thread, ...] = (
            self.compute,
            self.in_flight,
            self.writer,
            self.preparer,
            self.heartbeat,
        )
        self.nudges = None if nudge_connection is None else Nudges(nudge_connection, wake)
        if self.nudges is not None:
            self._threads += (self.nudges,)

    @property
    def draining(self) -> bool:
        """Whether the worker was asked to stop, or stops by itself to start afresh."""
        return self._stops.count > 0 or self._recycling

    # --- the main thread ---

    def run(self) -> int:
        """Serve until asked to stop. 0: clean end; 1: the engine failed; 5: no model can be loaded; RECYCLE: all is
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
                if self._recycling:  # one that comes from now on is for the program started afresh
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
            try:
                paused = self.pause.look(self.store.connection)
                self.pause.withdraw(self.held)
                self._maintain()
                if self._worn_out():  # only now that Redis has answered: without it nothing can be handed back
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
            log.info("the parent process is gone", extra={"action": "parent_gone"})
            return True
        return self._stops.count > 0 or self._broken()

    def _worn_out(self) -> bool:
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
        if self.held or self.order.waiting or self.pause.paused:
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
            self.order.look()
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
        ahead = self.compute.waiting(group) + self.preparer.unprepared(group)
        needed = max(self.compute.capacity(group), LEAST_AHEAD)
        if ahead < needed:
            return True
        held = [shard for shard in self.held if shard.group == group]
        behind = any(shard.rank > rank for shard in held)
        return behind and sum(len(shard.remaining) for shard in held if shard.rank <= rank) < needed

    def _take_one(self) -> bool:
        """Take the next shard; False: there is none, or none is wanted."""
        if self.held:  # what is handed back meanwhile may be missed by this look at the queues
            self._idle_since = time.monotonic()
        queues = self.order.choose({held.group for held in self.held})
        shard = self.rq.take(queues) if queues else None
        if shard is None:
            if self.nudges is not None:
                self.nudges.listen(queues)
            return False
        group, rank = self.order.group_of(shard.queue), self.order.taken(shard.queue)
        held = self.claimer.claim(shard, group, rank)
        if held is not None:
            self._begin(held)
        return True

    def _begin(self, held: HeldShard) -> None:
        self.held.add(held)
        self._observer.shard_taken(held.group)
        if len(held.refused) < len(held.remaining) or not held.remaining:
            self.preparer.put(held, self.models.load(held.group))
        for line in held.todo():
            if line.index in held.refused:
                self.writer.fail(held, line, held.refused[line.index])
        self.rq.show_state(busy=True)

    def _wait_for_redis(self) -> bool:
        """Wait before Redis is asked again; False where the worker is stopping instead."""
        if self._stopping():
            return False
        self._stops.wakeup.wait(REDIS_BACKOFF_S)
        return True

    def _pause(self) -> None:
        self._stops.wakeup.wait(POLL_S)

    # --- callbacks: the ends of lines and shards ---

    def _noted(self, answer: NoteReply) -> None:
        """What became of notes. Thread: in-flight."""
        self.compute.answered(answer)

    def _unstored(self) -> int | None:
        """Lines without a stored record. Thread: compute."""
        return self.writer.unstored

    def _line_finished(self, group: Group, finished: Finished) -> None:
        """A line has ended. Thread: compute."""
        self._tokens += sum(len(sequence.tokens) for sequence in finished.sequences)
        key = cast("LineKey", finished.key)
        held = self.held.of_line(key)
        if held is not None:
            served = self.compute.served(group)
            self.writer.put(EndedLine(held, key[2], self._now(), finished.error, finished.sequences, served))

    def _retry(self, held: HeldShard, index: int) -> None:
        """An attempt at a line failed, and it gets another one. Thread: writer."""
        after_s = min(RETRY_BASE_S * 2 ** (held.attempt.failures(index) - 1), RETRY_MOST_S)
        self.preparer.put(held, self.compute.load(held.group), again=index, after_s=after_s)

    def _ask_again(self, held: HeldShard, index: int) -> None:
        """A line's text is not as expected, and it is asked again. Thread: scribe."""
        self.preparer.put(held, self.compute.load(held.group), again=index)

    def _load_failed(self, held: HeldShard) -> None:
        """Leave the shard to the other workers of its queue; its lines fail when none of them could load its model for
        long. Thread: preparer."""
        error = self.load_failures.verdict(held, self.compute.failed.get(held.group))
        if error is None:
            self._return(held, front=False)
            return
        for line in held.todo():
            self.writer.fail(held, line, error)

    def abandon(self, held: HeldShard, attempt: Attempt, *, wait_s: float = 0.0) -> None:
        """Drop a shard that was taken over, or whose batch has ended, unless it was taken up again here. Threads:
        heartbeat, in-flight."""
        if held.end(under=attempt, wait_s=wait_s):
            log.info("%s is no longer this worker's; its lines are dropped", held.job_id, extra={"action": "abandoned"})
            self._shard_ended(held, End.LOST)

    def drop(self, held: HeldShard, indices: set[int]) -> None:
        """End lines of a shard that were cancelled one by one: their records are stored already. Thread: heartbeat."""
        held.dropped |= indices
        for index in indices:
            self.compute.cancel(held.key(index))
            failure = Failure("cancelled", "nobody waits for this line any more")
            self.writer.put(EndedLine(held, index, self._now(), failure))

    def _return(self, held: HeldShard, *, front: bool = True) -> bool:
        """Hand a shard back, unless it has ended. False: Redis is out, and the lease expires by itself. Threads: main,
        preparer."""
        return not held.end() or self._close(held, End.RETURNED, front=front)

    def _shard_ended(self, held: HeldShard, end: End) -> None:
        """What belongs to the end of a shard. Threads: the one that ended it, for the most part the writer."""
        if end is End.REFUSED:
            self.refusals.not_stored(held)
        self._close(held, end, front=end is not End.REFUSED)
        if end is End.FINISHED:
            self._acknowledge(held)
        else:
            # The lease of a lost one stays: when it runs out, recovery sees whether anybody else has the shard.
            for index in tuple(held.remaining):  # other threads may change it
                self.compute.cancel(held.key(index))
        self._stops.wakeup.ring()

    def _close(self, held: HeldShard, end: End, *, front: bool = True) -> bool:
        """Count the end of a shard and forget it. One that goes back does so: its finished lines keep their records,
        the others go to the next worker. False: Redis is out, and the lease expires by itself. Threads: any."""
        self._observer.shard_ended(held.group, end)
        try:
            if end in (End.RETURNED, End.REFUSED):
                self.store.release(held.attempt, self.compute.verdict(held.job_id))
                # Whether or not it was stale: RQ's books say whether the job is still this worker's.
                self.rq.hand_back(held.lease, held.queue, front=front)
        except redis.exceptions.RedisError as error:
            log.warning("cannot hand back %s: %s; its lease expires by itself", held.job_id, error)
            return False
        finally:
            self.held.remove(held)  # only now: a worker that has nothing and sees no work ends, if it is to
        return True

    def _acknowledge(self, held: HeldShard) -> None:
        """Nothing of the shard is left to do, here or elsewhere. Thread: writer."""

        def step() -> None:
            with refusing(f"job {held.job_id}"):
                self.rq.acknowledge(held.lease, self._now() - held.taken_at)

        try:
            self.writer.persistently(step)
        except RefusedError as error:
            log.warning("%s", error, extra={"action": "refuse_job"})
        if not self.held:
            self.rq.show_state(busy=False)

    # --- the end ---

    def _end(self) -> None:
        """Let begun lines finish within the drain limit, hand back the rest, and leave RQ's books in order."""
        if self._stops.count:
            log.info("stopping: lines that were begun are finished first", extra={"action": "drain"})
        self.preparer.stop()
        if self.nudges is not None:
            self.nudges.stop()
        self._drain()
        self.compute.stop()
        # MLX must not be in use while the interpreter goes down: the process would abort. A load is not waited for:
        # the process is ended under it (worker.__main__).
        self.compute.join(timeout=30.0 if self.compute.loading is None else 0.0)
        self.in_flight.stop()
        left = list(self.held)
        if self.writer.end():
            while left and self._return(left[0]):  # once Redis is out, each further try takes its time in vain
                del left[0]
        if self.spool is not None and self.compute.failure is None:
            self.spool.leave([held.attempt for held in left])
        self.heartbeat.stop()
        try:
            note_failure(self.store.connection, machine(), self.compute, self.instance)
            self.rq.end()
        except (redis.exceptions.RedisError, RefusedError) as error:
            log.warning("cannot deregister: %s; the registration expires by itself", error)

    def _drain(self) -> None:
        if self.compute.failure is not None or not self.compute.is_alive():
            return
        deadline = time.monotonic() + (self.settings.drain_s if self._stops.count < 2 else 0.0)
        dropping = self.compute.withdraw()
        while time.monotonic() < deadline and self._stops.count < 2 and self.compute.is_alive():
            if dropping.done() and self.compute.idle:
                return
            if self.compute.loading is not None and not self.compute.snapshot.in_flight:
                return  # a model can take minutes to load, and nothing else is under way
            self._pause()
