"""``promptmill run``: one file of prompts into one file of results, on this machine, however often it is interrupted.

OUT is the run's identity: a hash in Redis says which batch it is made from. A run that finds one goes on with it;
everything that counts is in Redis, and OUT is written from there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from jobs.batch import Batch, new_batch_id
from jobs.embedded.server import data_folder, embedded_server
from jobs.errors import BatchNotFoundError, ModelLoadError, RedisError, RefusedError
from jobs.lines.line import Defaults
from jobs.store.keys import PREFIX, BatchKeys, run_key
from jobs.store.store import Store
from submit.commands.options import open_store
from submit.data.open import input_digest, open_input
from submit.data.order import TableOrder
from submit.input.feedback import read_display
from submit.input.problem_summary import listed
from submit.results.destination import Destination
from submit.results.follow import follow_results, write_results
from submit.results.output import writable
from submit.results.summary import exit_status, summary
from submit.run.lock import identity_of, interruptible, locked, readable_twice, runs_folder
from submit.run.worker_process import WorkerProcess
from submit.status.progress import Progress
from submit.status.text import plural
from submit.status.waiting import NO_WORKER, RUN_ENDED, STARTING
from submit.status.workers import served_by
from submit.upload.submit_notes import notes
from submit.upload.submitter import Order, submit

INTERRUPTED = 130
CALLED = {"keep": "keep_columns"}
"""What of a table is called otherwise by the user."""
DRAIN_S = 10
"""What the worker gets to finish lines it began, less than the time it gets to end."""
WORKER = (sys.executable, "-P", "-m", "worker")


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asks for. ``source`` is a path, or ``-`` for standard input; ``worker_flags`` go to the worker."""

    source: str
    destination: Destination
    defaults: Defaults = field(default_factory=lambda: Defaults({}))
    table: TableOrder = field(default_factory=TableOrder)
    dedupe: bool = False
    on_bad_line: str = "reject"
    name: str | None = None
    redis_url: str | None = None
    restart: bool = False
    worker_flags: tuple[str, ...] = ()
    worker: tuple[str, ...] = WORKER


def run(request: RunRequest, *, environ: Mapping[str, str] = os.environ, progress: Progress | None = None) -> int:
    """Run the request to its end; the exit status.

    Raises:
        RefusedError: OUT cannot be written, is in use, or was made from something else.
        PromptmillError: the prompts are bad, Redis is out, or the worker dies again and again.
    """
    destination, out = request.destination, request.destination.out
    if out is None:
        raise RefusedError("run needs a file for OUT: it is by OUT that an interrupted run is found again")
    for path in (out, destination.errors_file):
        if path is not None:
            writable(path)
    if request.source != "-" and os.path.realpath(request.source) == os.path.realpath(out):
        raise RefusedError(f"{out} is the file of prompts; give another -o")
    identity, progress = identity_of(out), progress or Progress()
    folder = runs_folder(data_folder(environ))
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder / f"{identity}.lock", out))
        stack.enter_context(interruptible())
        source = stack.enter_context(readable_twice(request.source, folder / f"{identity}.stdin"))
        url = request.redis_url or stack.enter_context(embedded_server(data_folder(environ), say=progress.note))
        store = stack.enter_context(open_store(url, patient=True))
        # In the environment: the URL may hold a password, and every user of the machine can read command lines.
        environ = {**environ, "PROMPTMILL_REDIS_URL": url}
        task = _Run(request, out, store, run_key(identity), source, folder / f"{identity}.log", environ, progress)
        return task.run()


@dataclass(slots=True)
class _Run:
    """One run with its Redis at hand."""

    request: RunRequest
    out: Path
    store: Store
    key: str
    """Of the hash that says which batch OUT is made from."""
    source: str
    log: Path
    environ: Mapping[str, str]
    progress: Progress
    begun: float = field(default_factory=time.monotonic)

    # Progress goes through here, so that the wait for the worker of this run is shown as its start:

    def update(self, batch: Batch, waiting: str | None = None) -> None:
        none = waiting is not None and waiting.startswith((NO_WORKER, RUN_ENDED, STARTING))
        self.progress.update(batch, "starting the worker" if none else waiting)

    def note(self, text: str) -> None:
        self.progress.note(text)

    def run(self) -> int:
        try:
            batch = self._known() or self._submitted()
        except KeyboardInterrupt:
            self.note("interrupted before the work began; run the same command again")
            return INTERRUPTED
        try:
            if not batch.done:
                self._work(batch, self._worker(batch))
            return self._finish(batch)
        except KeyboardInterrupt:
            return self._interrupted(batch.id)
        finally:
            self.progress.close()

    # --- which batch ---

    def _known(self) -> Batch | None:
        """The batch that OUT is being made from, if there is one and it fits."""
        stored = cast("bytes | None", self.store.connection.hget(self.key, "batch_id"))
        batch = self._stored_batch(stored.decode()) if stored is not None else None
        if self.request.restart:
            if batch is not None:
                self._discard(batch)
            return None
        if batch is None:
            self._refuse_foreign_out(purged=stored is not None)
            return None
        if batch.status == "validating":
            # Its submitter died: this run has the lock, so no other run is submitting it.
            self._discard(batch)
            return None
        if changes := self._changes(batch):
            if batch.finished > batch.rejected:
                raise RefusedError(
                    f"{self.out} is being made by batch {batch.id}, but since then these have changed: "
                    f"{'; '.join(changes)}. Give another -o, or --restart to run all lines again"
                )
            # Most likely a mistake is being mended, such as the name of a model.
            self.note(f"no line is done yet: starting over with the changes ({'; '.join(changes)})")
            self._discard(batch)
            return None
        self._say_known(batch)
        return batch

    def _stored_batch(self, batch_id: str) -> Batch | None:
        try:
            return self.store.batch(batch_id)
        except BatchNotFoundError:
            return None

    def _refuse_foreign_out(self, *, purged: bool) -> None:
        out = self.out
        if not out.is_file() or out.stat().st_size == 0:
            return
        why = "the batch it was made from is no longer in Redis" if purged else "no run of this Redis made it"
        raise RefusedError(f"{out} exists already, and {why}; give another -o, or --restart to replace it")

    def _changes(self, batch: Batch) -> list[str]:
        """What the user gave otherwise when the batch was made."""
        changes = _changed_defaults(batch.defaults, self.request.defaults.fields)
        if self.request.dedupe != batch.dataset.get("dedupe", False):
            changes.append("dedupe")
        changes += _changed_order(batch.dataset.get("order", {}), self.request.table.as_dict())
        digest = cast("bytes | None", self.store.connection.hget(BatchKeys(batch.id).info, "digest"))
        if input_digest(self.source, self.request.table) != (digest or b"").decode():
            changes.insert(0, f"the prompts in {self._shown_source()}")
        return changes

    def _say_known(self, batch: Batch) -> None:
        if not batch.done:
            self.note(f"going on with batch {batch.id}: {batch.finished:,} of {plural(batch.total, 'line')}")
        elif batch.status == "completed":
            self.note(f"batch {batch.id} is complete already: writing its results again")
        else:
            self.note(
                f"batch {batch.id} {batch.fate}: `promptmill retry {batch.id}` lets this command go on with it; "
                "--restart runs all lines again"
            )

    def _shown_source(self) -> str:
        return "standard input" if self.request.source == "-" else self.request.source

    def _submitted(self) -> Batch:
        request = self.request
        batch_id = new_batch_id()
        # A queue of its own keeps leftovers of other runs out of this one; a pool's queues are for everybody.
        pool = batch_id if request.redis_url is None else None
        order = Order(
            defaults=request.defaults,
            name=request.name,
            on_bad_line=request.on_bad_line,
            pool=pool,
            batch_id=batch_id,
            dedupe=request.dedupe,
        )
        # Before the batch is live: whatever happens from here on, the next run finds it.
        self.store.connection.hset(self.key, mapping={"batch_id": batch_id, "out": str(self.out.absolute())})
        try:
            name = "standard input" if request.source == "-" else None
            with (
                open_input(self.source, request.table, name=name, model=request.defaults.model) as prompts,
                read_display(prompts.size) as show,
            ):
                submitted = submit(self.store, prompts, order, progress=show)
                if submitted.twins:
                    self.note(f"{plural(submitted.twins, 'line')} equal to earlier ones: not run again")
                for note in prompts.notes():
                    self.note(note)
        except BaseException:
            if self._stored_batch(batch_id) is None:
                self.store.connection.delete(self.key)
            raise
        if submitted.rejected:
            self.note(f"{plural(submitted.rejected, 'bad line')} not run: each gets an error record")
            for line in listed(submitted.problems):
                self.note(line)
        for note in notes(submitted, request.defaults):
            self.note(note)
        return self.store.batch(batch_id)

    def _discard(self, batch: Batch) -> None:
        self._remove_private_queues(batch)
        self.store.discard(batch.id)
        self.store.connection.delete(self.key)

    def _remove_private_queues(self, batch: Batch) -> None:
        """Take away what RQ keeps for queues that nobody but this run uses."""
        if batch.pool is None:
            return
        for queue in self._queues(batch):
            self.store.connection.srem("rq:queues", f"rq:queue:{queue}")
            self.store.connection.delete(f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate", f"rq:wip:{queue}")
            self.store.connection.delete(f"{PREFIX}watch:{queue}", f"{PREFIX}dequeued:{queue}")

    # --- the work ---

    def _adapters(self, batch: Batch) -> list[str]:
        """The adapters that the batch's queues are for: a group's key is its model, or ``MODEL+ADAPTER``."""
        keys = {served_by(queue, batch.pool) for queue in self._queues(batch)} - set(batch.models)
        starts = [f"{model}+" for model in batch.models]
        return sorted({key.removeprefix(start) for key in keys for start in starts if key.startswith(start)})

    def _queues(self, batch: Batch) -> list[str]:
        queues = cast("set[bytes]", self.store.connection.smembers(BatchKeys(batch.id).queues))
        return [queue.decode() for queue in queues]

    def _worker(self, batch: Batch) -> WorkerProcess:
        """The worker's process for the batch's models."""
        # The package this code is part of, whatever lies in the current folder.
        folders = [str(Path(__file__).resolve().parents[2]), self.environ.get("PYTHONPATH")]
        environ = {**self.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
        adapters = self._adapters(batch)
        flags = [f"--model={model}" for model in batch.models] + [f"--adapter-path={path}" for path in adapters]
        # With adapters there are pairs that no line asks for: each is loaded when a line needs it.
        flags += ["--no-preload"] if adapters else []
        flags += [f"--pool={batch.pool}"] if batch.pool is not None else []
        flags += [f"--exit-with-parent={os.getpid()}", f"--drain={DRAIN_S}", *self.request.worker_flags]
        self.log.unlink(missing_ok=True)
        return WorkerProcess([*self.request.worker, *flags], self.log, environ, self.note)

    def _work(self, batch: Batch, worker: WorkerProcess) -> None:
        worker.start()
        try:
            # What is whole or nothing is written once, in _finish().
            destination = self.request.destination
            done, _ = follow_results(
                self.store, batch.id, destination, progress=self, on_poll=worker.check, at_end=False
            )
            self.progress.close(done)
        except KeyboardInterrupt:
            self.note("stopping: lines that were begun are finished first; Ctrl-C again ends at once")
            raise
        except (ModelLoadError, RefusedError, RedisError) as error:
            # The next run has other flags, another model or another user, and nothing may ever finish this batch.
            latest = self.store.batch(batch.id)
            if latest.finished == latest.rejected:
                self._discard(latest)
            elif latest.pool is None:
                self.note(
                    f"batch {latest.id} stays in Redis, where the pool's workers may go on with it: "
                    f"`promptmill results {latest.id}` writes what is finished, `promptmill cancel {latest.id}` ends it"
                )
            if isinstance(error, RedisError) and latest.pool is None:
                raise RedisError(f"{error}; to leave the work to the pool, use `promptmill submit --wait`") from None
            raise
        finally:
            worker.stop()

    def _interrupted(self, batch_id: str) -> int:
        # The signal may have come in the middle of a reply: such a connection is of no use any more.
        self.store.connection.connection_pool.disconnect()
        with contextlib.suppress(KeyboardInterrupt):
            write_results(self.store, batch_id, self.request.destination)
        batch = self.store.batch(batch_id)
        if batch.done:
            self.note("interrupted, but all lines are done; run the same command again for the summary")
        else:
            self.note(
                f"interrupted: {batch.finished:,} of {plural(batch.total, 'line')} done; "
                "run the same command again to finish"
            )
        return INTERRUPTED

    def _finish(self, before: Batch) -> int:
        batch, tally = write_results(self.store, before.id, self.request.destination)
        self._remove_private_queues(batch)
        for line in summary(batch, tally, seconds=time.monotonic() - self.begun, now=time.time()):
            self.note(line)
        return exit_status(batch, tally)


def _changed_defaults(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which defaults differ, for a person."""
    plain = orjson.loads(orjson.dumps(dict(now), option=orjson.OPT_NON_STR_KEYS))
    names = [name for name in sorted({*before, *plain}) if before.get(name) != plain.get(name)]
    return [f"{name} ({_was_and_is(before, plain, name)})" for name in names]


def _changed_order(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is said otherwise of the table, for a person."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return [
        "the template" if name == "template" else f"{CALLED.get(name, name)} ({_was_and_is(before, now, name)})"
        for name in names
    ]


def _was_and_is(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> str:
    return f"was {_shown(before, name)}, is {_shown(now, name)}"


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return orjson.dumps(fields[name]).decode() if name in fields else "not given"
