"""The compute thread: it alone touches MLX. Commands come in through a queue, ended lines go out by a callback."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jobs.app.worker_options import DECODE_CONCURRENCY, EngineSettings
from jobs.attempt import Verdict
from jobs.errors import ModelLoadError, SickModelError
from jobs.shard import Group
from worker.faults.in_flight_log import InFlightLog, NoteReply
from worker.faults.quarantine import Quarantine
from worker.health.snapshot import COUNTED, Snapshot, counted, snapshot_of
from worker.models.engine_factory import EngineFactory, ServedModel
from worker.models.load_failures import LoadFailure, failed_again
from worker.models.residency import WeightSize, left_for_caches, readable, refuse_too_large
from worker.shards.claimed import LineKey, QuarantineLevel

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.sequence import Finished

T = TypeVar("T")

log = logging.getLogger("promptmill.worker")

SNAPSHOT_S = 0.5
SHORT_ROW = 256
"""Tokens of a line that any worker should have room for; it warns where it has not."""
THREAD_NAME = "compute"


class Compute(threading.Thread):
    """Owns MLX: loads and unloads models on demand, and steps their engines. Threads: any for the public methods, which
    put commands into a queue, and for the attributes; compute for the rest.

    ``on_finished(group, finished)`` is called in this thread for each line that ends; it must not block.
    ``in_flight`` notes lines before they begin, and ``unstored()`` is how many ended lines have no stored record yet,
    None while Redis is out.
    ``failure`` holds the exception that ended the thread, if one did, and ``failed_group`` the model that was at work
    then, ``alone`` the line if it was the only one under way: the worker hands back and exits.
    ``loads``, ``unloads`` and ``load_failures`` count those of each model; ``failed`` has those that cannot be loaded,
    ``loaded`` the measured sizes of the loaded models: both are replaced whole. ``budget`` is the memory for all models
    and their caches (None: no limit), known once a size was asked for or a model loaded; ``memory_limit`` is that with
    the draft model.

    What the weights leave of the budget goes to the engines in equal parts, idle ones included. Parts change when
    models come and go, not with the work; prefixes that no longer fit into a part are dropped. A row larger than a
    part that fits into all of them together is not refused: it runs alone on its engine, and the budget may be passed
    by as much while others are at work.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_finished: Callable[[Group, Finished], None],
        wake: Callable[[], None],
        in_flight: InFlightLog,
        unstored: Callable[[], int | None] = lambda: 0,
    ) -> None:
        super().__init__(name=THREAD_NAME, daemon=True)
        self.settings = settings
        self.failure: BaseException | None = None
        self.failed_group: Group | None = None
        self.alone: LineKey | None = None
        self.snapshot = Snapshot()
        self.loading: Group | None = None
        self.loads: Counter[Group] = Counter()
        self.unloads: Counter[Group] = Counter()
        self.load_failures: Counter[Group] = Counter()
        self._on_finished = on_finished
        self._wake = wake
        self._in_flight, self._unstored = in_flight, unstored
        self._quarantine = Quarantine()
        self._factory = EngineFactory(settings)
        self.budget = self.memory_limit = settings.memory_limit
        self.loaded: Mapping[Group, WeightSize] = {}
        self._sizes: dict[Group, WeightSize] = {}
        self._engines: dict[Group, Engine] = {}
        self._served: dict[Group, ServedModel] = {}
        self._past = dict.fromkeys(COUNTED, 0)
        self.failed: Mapping[Group, LoadFailure] = {}
        self._commands: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._snapshot_at = 0.0
        self._pending: dict[Group, int] = {}
        self._used_mlx = False

    # --- called from other threads ---

    def load(self, group: Group) -> Future[ServedModel]:
        """Ask for a model; the future fails with ModelLoadError when it cannot be loaded."""
        return self._ask(group, self._load)

    def size(self, group: Group) -> Future[WeightSize]:
        """Ask for the size of a model's weights, going by its files; fails with ModelLoadError when it has none."""
        return self._ask(group, self._estimate)

    def _ask(self, group: Group, work: Callable[[Group], T]) -> Future[T]:
        future: Future[T] = Future()
        self._commands.put(lambda: self._attempt(group, future, work))
        return future

    def unload(self, group: Group) -> None:
        """Unload a model that no shard is held of any more. What an engine still has, of shards lost to other
        workers, is dropped."""
        self._commands.put(lambda: self._unload(group))

    def add(
        self,
        group: Group,
        line: Any,
        level: QuarantineLevel = QuarantineLevel.NONE,
        *,
        after_s: float = 0.0,
        tries: int = 0,
    ) -> None:
        """Queue a prepared line on its model's engine. In quarantine it runs with nothing beside it, ``after_s``
        seconds from now at the earliest, those that failed less often first."""
        if level is QuarantineLevel.NONE:
            self._commands.put(lambda: self._add(group, line))
        else:
            trial = level is QuarantineLevel.TRIAL
            self._commands.put(lambda: self._quarantine.add(group, line, after_s, tries, trial=trial))

    def look(self) -> None:
        """See whether lines may begin that waited for something other than this thread."""
        self._commands.put(lambda: None)

    def answered(self, answer: NoteReply) -> None:
        """What became of what the in-flight log was asked to note."""
        self._commands.put(lambda: self._answered(answer))

    def cancel(self, key: LineKey) -> None:
        """Drop a line at the next step, if it is there; what was generated of it is reported as cancelled."""
        self._commands.put(lambda: self._cancel(key))

    def withdraw(self, shard: tuple[str, int] | None = None) -> Future[int]:
        """Take back the lines that have not begun, of one shard (its job id and the fence it was taken under) or of
        all; the future gives how many of those lines are under way."""
        future: Future[int] = Future()
        self._commands.put(lambda: future.set_result(self._withdraw(shard)))
        return future

    def stop(self) -> None:
        """End after the current step."""
        self._commands.put(None)

    def waiting(self, group: Group) -> int:
        """Lines queued on a model's engine and not begun."""
        return self._pending.get(group, 0) + self._commands.qsize()

    def capacity(self, group: Group) -> int:
        """The most lines of a model that are decoded together; the usual number while it is not loaded."""
        engine = self._engines.get(group)
        return engine.capacity if engine is not None else min(self.settings.decode_concurrency, DECODE_CONCURRENCY)

    @property
    def idle(self) -> bool:
        """Nothing begun is left to finish, and no command waits."""
        return (
            self._commands.empty()
            and not self._quarantine
            and not any(engine.has_work for engine in list(self._engines.values()))
        )

    def served(self, group: Group) -> ServedModel:
        """A model that was loaded."""
        return self._served[group]

    def verdict(self, job_id: str) -> Verdict:
        """What the end of this thread says of the lines of a shard that were under way."""
        if self.failure is None:
            return Verdict.INNOCENT
        # One that was alone when its model failed, or whatever a failure that nobody foresaw was about.
        if not isinstance(self.failure, SickModelError) or (self.alone or ("",))[0] == job_id:
            return Verdict.GUILTY
        return Verdict.SUSPECT

    # --- the thread itself ---

    def run(self) -> None:
        try:
            while self._obey():
                self._step()
        except SickModelError as error:
            self.alone = cast("LineKey | None", self._quarantine.running)
            log.error("%s: %s", self.failed_group and self.failed_group.key, error, extra={"action": "model_sick"})
            self.failure = error
        except BaseException as error:
            log.exception("the engine cannot go on", extra={"action": "engine_failed"})
            self.failure = error
        finally:
            self._close()
            self._wake()

    def _close(self) -> None:
        if self._used_mlx:
            from worker.engine.loading.mlx_models import end_thread

            for engine in self._engines.values():
                engine.close()
            end_thread()

    def _obey(self) -> bool:
        """Carry out waiting commands; with nothing to do, wait for one. False: stop."""
        wait: float | None = 0.0
        if not self._runnable():  # what ended with the last step may let others begin
            wait = self._arrange()
            wait = 0.0 if self._runnable() else wait
        while True:
            if wait != 0.0:
                self._take_snapshot(force=True)
            try:
                command = self._commands.get(block=wait != 0.0, timeout=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            self._count_pending()
            wait = 0.0

    def _runnable(self) -> bool:
        return any(engine.runnable for engine in self._engines.values())

    def _step(self) -> None:
        self._arrange()
        for group, engine in self._engines.items():
            if engine.runnable:
                self.failed_group = group
                for finished in engine.step():
                    if (line := self._quarantine.passed(finished.key)) is not None:  # its trial, and not the line
                        self._in_flight.begins_anew(line.key)
                        self._add(group, line)
                    else:
                        self._on_finished(group, finished)
        self.failed_group = None
        self._count_pending()
        self._take_snapshot()

    def _arrange(self) -> float | None:
        """Let engines begin what they may. How long the next look has time if none has anything to do: None is until
        something happens."""
        unstored, unsettled = self._unstored(), self._in_flight.unsettled
        charged = None if unstored is None or unsettled is None else unstored + unsettled
        only = self._quarantine.arrange(self._engines, charged)
        admitted = self._in_flight.admitted(self._engines.values(), only)
        for engine in self._engines.values():
            engine.admit(admitted)
        return self._quarantine.due_in()

    def _begun(self, keys: list[Hashable]) -> frozenset[Hashable]:
        """Lines begin on an engine; those that shall not."""
        return self._in_flight.begun(cast("list[LineKey]", keys))

    def _answered(self, answer: NoteReply) -> None:
        self._in_flight.answered(answer)
        for key in answer.refused:  # of shards that are another's by now
            self._cancel(key)

    def _count_pending(self) -> None:
        self._pending = {group: engine.pending for group, engine in self._engines.items()}

    def _attempt(self, group: Group, future: Future[T], work: Callable[[Group], T]) -> None:
        """Do what may take long and may fail; a failure stands until it is time to try again."""
        failed = self.failed.get(group)
        if failed is not None and time.monotonic() < failed.again_at:
            future.set_exception(failed.error)
            return
        if group in self._engines:
            future.set_result(work(group))  # it is known already
            return
        from worker.engine.loading.mlx_models import free_memory

        self.loading = group
        self._used_mlx = True
        failure = None
        try:
            result = work(group)
        except Exception as error:
            # Whatever goes wrong with one model, the others are served on.
            if not isinstance(error, ModelLoadError):
                log.exception("%s cannot be loaded", group.key, extra={"action": "model_load_failed"})
                error = ModelLoadError(f"model '{group.model}' cannot be loaded: {error}")
            # A new one, without the traceback: its frames would keep what was loaded so far.
            failure = ModelLoadError(str(error), error.field)
        self.loading = None
        others = {other: known for other, known in self.failed.items() if other != group}
        if failure is None:
            self.failed = others
            future.set_result(result)
        else:
            again = failed_again(failed, failure, time.monotonic(), self.settings.load_patience_s)
            self.failed = {**others, group: again}
            self.load_failures[group] += 1
            free_memory()
            future.set_exception(failure)

    def _estimate(self, group: Group) -> WeightSize:
        from worker.engine.loading.mlx_models import memory_budget, weight_bytes

        if group in self.loaded:
            return self.loaded[group]
        settings = self.settings
        self.budget = self.memory_limit = memory_budget(settings.memory_limit)
        if self.budget is not None:
            self.budget -= self._factory.draft_bytes
        if group not in self._sizes:  # the hub is not asked again for every load
            found = weight_bytes(group.model, revision=settings.revision, adapter_path=group.adapter_path)
            self._sizes[group] = WeightSize(*found)
        refuse_too_large(group, self._sizes[group], self.budget, given=settings.memory_limit is not None)
        return self._sizes[group]

    def _load(self, group: Group) -> ServedModel:
        if group not in self._served:
            from worker.engine.loading.mlx_models import active_memory

            self._factory.load_draft()
            self._estimate(group)  # refuses what can never fit
            started, before = time.monotonic(), active_memory()
            others = [engine.model for other, engine in self._engines.items() if other.model == group.model]
            self._engines[group], self._served[group] = self._factory.make(group, self._caches_part(group), others)
            self._engines[group].warm_up()
            self._engines[group].on_begin = self._begun
            base = self._engines[group].model.weight_bytes
            shared = any(other.model == group.model for other in self.loaded)
            own = max(0, active_memory() - before - (0 if shared else base))
            self._sizes[group] = WeightSize(base, own)
            self.loaded = {**self.loaded, group: self._sizes[group]}
            self._share_memory()
            self.loads[group] += 1
            log.info("loaded %s in %.1f s", group.key, time.monotonic() - started, extra={"action": "model_loaded"})
        return self._served[group]

    def _unload(self, group: Group) -> None:
        from worker.engine.loading.mlx_models import active_memory, free_memory

        engine = self._engines.pop(group, None)
        if engine is None:
            return
        del self._served[group]
        self._past = counted([engine], self._past)
        before = active_memory()
        engine.close()
        del engine
        free_memory()
        after = active_memory()
        self.loaded = {other: size for other, size in self.loaded.items() if other != group}
        self._share_memory()
        self.unloads[group] += 1
        message = "unloaded %s: freed %s, %s still in use"
        log.info(message, group.key, readable(before - after), readable(after), extra={"action": "model_unloaded"})

    def _caches_part(self, group: Group) -> int | None:
        """What a group that is about to be loaded will have for its caches; None: no limit."""
        if self.budget is None:
            return None
        sizes = {**self.loaded, group: self._sizes[group]}
        return left_for_caches(self.budget, sizes) // len(sizes)

    def _share_memory(self) -> None:
        if self.budget is None:
            return
        caches = left_for_caches(self.budget, self.loaded)
        for group, engine in self._engines.items():
            engine.set_memory(caches // len(self._engines), caches)
            if caches < engine.model.cache_cost(SHORT_ROW):
                message = (
                    "%s: the weights leave %s for caches, too little for a line of %d tokens; raise --memory-limit"
                )
                log.warning(message, group.key, readable(caches), SHORT_ROW, extra={"action": "no_room_for_caches"})

    def _add(self, group: Group, line: Any) -> None:
        if group in self._engines:  # a shard can be lost to another worker while it is prepared
            try:
                self._engines[group].add(line)
            except ValueError as error:
                from worker.engine.sequence import Failure, Finished

                self._on_finished(group, Finished(line.key, [], Failure("internal_error", str(error))))

    def _cancel(self, key: LineKey) -> None:
        self._quarantine.cancel(key)
        for engine in self._engines.values():
            engine.cancel(key)

    def _withdraw(self, shard: tuple[str, int] | None) -> int:
        def chosen(key: Hashable) -> bool:
            return shard is None or cast("LineKey", key)[:2] == shard

        self._quarantine.drop(chosen)
        for engine in self._engines.values():
            engine.drop_pending(chosen)
        return sum(chosen(line.key) for engine in self._engines.values() for line in engine.snapshot())

    def _take_snapshot(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._snapshot_at < SNAPSHOT_S:
            return
        self._snapshot_at = now
        self.snapshot = snapshot_of(list(self._engines.values()), self._past)
