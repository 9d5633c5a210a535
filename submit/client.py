"""The Python client: submit prompts and read their results without the command line.

::

    from submit import Client

    with Client("redis://mini.local") as client:
        batch = client.submit("prompts.jsonl", model="mlx-community/Qwen3-4B-4bit", temperature=0.7)
        for record in batch.results(follow=True):
            print(record["id"], record["text"])
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from jobs.batch import Batch
from jobs.connect import connect, translated
from jobs.embedded import data_folder, embedded_server
from jobs.ending import cancel, current
from jobs.errors import BatchNotFoundError, LineError, RefusedError, WaitTimeoutError
from jobs.holding import pause, prioritise, resume_batch
from jobs.keeping import KEEP_S, memory, purge
from jobs.line import Defaults
from jobs.pool import pause_pool, pause_workers, resume_pool, resume_workers
from jobs.results import StoredRecord, finished_records, ordered_records
from jobs.retrying import retry
from jobs.store import Store
from submit.events import BatchFinished, BatchWatch, Event, FirstToken, LineFinished, PromptProgress
from submit.reader import PromptFile, PromptObjects
from submit.submitter import Order, Submitted, submit
from submit.text import duration
from submit.worker_state import WorkerState
from submit.workers import Workers

__all__ = [
    "BatchFinished",
    "BatchHandle",
    "Client",
    "Event",
    "FirstToken",
    "LineFinished",
    "PromptProgress",
    "WorkerState",
]

POLL_S = 0.2

FilePath = str | os.PathLike[str]
Sleep = Callable[[float], None]


class Client:
    """Batches in one Redis. A context manager; :meth:`close` ends its connections.

    Args:
        url: of Redis: ``redis://``, ``rediss://`` or ``unix://``. Without one: PROMPTMILL_REDIS_URL, then
            RQ_REDIS_URL, else this user's embedded server, which runs as long as the client is open.

    Raises:
        RedisError: unreachable or refused, here and from every method.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        with contextlib.ExitStack() as stack:
            given = url or environ.get("PROMPTMILL_REDIS_URL") or environ.get("RQ_REDIS_URL")
            self._url = given or stack.enter_context(embedded_server(data_folder(environ)))
            connection = connect(self._url)
            stack.callback(connection.close)
            self._store = Store(connection)
            self._stack = stack.pop_all()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections, and the embedded server when nobody else uses it."""
        self._stack.close()

    def submit(
        self,
        prompts: FilePath | Iterable[Mapping[str, Any]],
        *,
        model: str | None = None,
        name: str | None = None,
        priority: str = "normal",
        on_bad_line: str = "reject",
        metadata: Mapping[str, Any] | None = None,
        at: datetime | None = None,
        start_in: float | None = None,
        expires_in: float | None = None,
        keep: float | None = KEEP_S,
        webhook: str | None = None,
        **parameters: Any,
    ) -> BatchHandle:
        """Enqueue a file (a path; ``.gz`` and ``.zst`` by suffix, ``-`` is stdin) or an iterable of dicts.

        ``parameters`` are those of a line (``temperature=0.7``, ``system_prompt="..."``), for lines that do
        not say them. ``priority`` is ``high``, ``normal`` or ``low``. With ``on_bad_line="skip"`` bad lines
        become error records and the rest runs. The batch begins ``at`` a moment (a datetime without a zone is a local
        one) or ``start_in`` seconds from now; ``expires_in`` seconds after its beginning it ends: lines not finished
        by then fail as ``expired``. ``keep`` seconds after its end it is removed; None keeps it until it is purged.
        ``webhook`` is a URL that is told of its end.

        Raises:
            LineError: a parameter that does not exist, or a value out of its range.
            InputError: bad lines; ``problems`` says which, and nothing was enqueued.
            RefusedError: the file cannot be read, or an argument makes no sense.
        """
        if at is not None and start_in is not None:
            raise RefusedError("at and start_in say the same thing: give one of them")
        order = Order(
            defaults=_defaults(model, parameters),
            name=name,
            priority=priority,
            on_bad_line=on_bad_line,
            metadata=metadata or {},
            start_in=start_in,
            expires_in=expires_in,
            keep_s=keep,
            webhook=webhook,
        )
        with self._open():
            if at is not None:
                order = replace(order, start_in=at.timestamp() - self._store.server_time())
            submitted = _submit(self._store, prompts, order)
        return BatchHandle(self, submitted.batch_id, submitted)

    def batch(self, id_or_name: str) -> BatchHandle:
        """The batch of this id, else the newest of this name.

        Raises:
            BatchNotFoundError: there is none.
        """
        with self._open():
            return BatchHandle(self, self._store.find(id_or_name).id)

    def batches(self) -> list[BatchHandle]:
        """All batches, oldest first."""
        with self._open():
            return [BatchHandle(self, batch.id) for batch in self._store.batches()]

    def pause(self, *workers: str) -> None:
        """Have these workers take nothing new (``mini.4711`` is one process, ``mini`` all of this name), or without any
        the whole pool. Lines that were begun are finished."""
        with self._open():
            if workers:
                pause_workers(self._store, workers)
            else:
                pause_pool(self._store)

    def resume(self, *workers: str) -> None:
        """Let these workers go on, by the names they were paused by, or without any the whole pool."""
        with self._open():
            if workers:
                resume_workers(self._store, workers)
            else:
                resume_pool(self._store)

    def workers(self) -> list[WorkerState]:
        """What the live workers of the pool said last, within the last seconds, by name."""
        with self._open():
            return Workers(self._store.connection).read()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Around each use of Redis: its errors become ours."""
        with translated(self._url):
            yield


class BatchHandle:
    """One batch. Made by a :class:`Client`, and usable as long as that is open."""

    def __init__(self, client: Client, batch_id: str, submitted: Submitted | None = None) -> None:
        self._client = client
        self.id = batch_id
        self.submitted = submitted
        """What the submission found, on handles that :meth:`Client.submit` returned."""

    def __repr__(self) -> str:
        return f"BatchHandle({self.id!r})"

    def status(self) -> Batch:
        """The batch as it is now: status, counts, token usage, times.

        Raises:
            BatchNotFoundError: it was purged.
        """
        with self._client._open():
            return current(self._client._store, self.id)

    def cancel(self) -> Batch:
        """End the batch now; every finished line is kept, the others fail as ``cancelled``.

        Raises:
            RefusedError: it is over already. One that was cancelled before stays so.
        """
        with self._client._open():
            cancel(self._client._store, self.id)
        return self.status()

    def retry(self) -> int:
        """Run the lines that failed again, in this batch; how many they are. Those refused at submission are not run.

        Raises:
            RefusedError: the batch is not done.
        """
        with self._client._open():
            return retry(self._client._store, self.id)

    def prioritise(self, priority: str) -> None:
        """Give the batch another priority, ``high``, ``normal`` or ``low``, also while it runs.

        Raises:
            RefusedError: there is no such priority, or the batch is over.
        """
        with self._client._open():
            prioritise(self._client._store, self.id, priority)

    def pause(self) -> None:
        """Hold the batch back: lines that were begun are finished, the others wait until :meth:`resume`.

        Raises:
            RefusedError: it is over.
        """
        with self._client._open():
            pause(self._client._store, self.id)

    def resume(self) -> None:
        """Let the batch go on.

        Raises:
            RefusedError: it is over.
        """
        with self._client._open():
            resume_batch(self._client._store, self.id)

    def purge(self) -> None:
        """Remove the batch, with its prompts and records.

        Raises:
            RefusedError: it is not done.
        """
        with self._client._open():
            purge(self._client._store, self.id)

    def memory(self) -> int:
        """Bytes that the batch takes in Redis."""
        with self._client._open():
            return memory(self._client._store.connection, self.id)

    def wait(
        self,
        timeout: float | None = None,
        *,
        on_prompt_progress: Callable[[PromptProgress], Any] | None = None,
        on_first_token: Callable[[FirstToken], Any] | None = None,
        on_line: Callable[[LineFinished], Any] | None = None,
        on_batch: Callable[[Batch], Any] | None = None,
    ) -> Batch:
        """Wait until the batch is done, at most ``timeout`` seconds, and be called meanwhile with what :meth:`watch`
        tells; ``on_batch`` is called with the batch once it is done.

        What a callback raises comes out of here, and the batch goes on; the next callback waits until one is done.
        In asyncio: ``await asyncio.to_thread(batch.wait, on_line=...)``, which calls them in that thread.

        Raises:
            WaitTimeoutError: it was not done by then; it goes on.
        """
        told = on_prompt_progress or on_first_token or on_line
        batch = self._told(timeout, on_prompt_progress, on_first_token, on_line) if told else self._wait(timeout)
        if on_batch is not None:
            on_batch(batch)
        return batch

    def _told(
        self,
        timeout: float | None,
        on_prompt_progress: Callable[[PromptProgress], Any] | None,
        on_first_token: Callable[[FirstToken], Any] | None,
        on_line: Callable[[LineFinished], Any] | None,
    ) -> Batch:
        batch = self.status()
        for event in self.watch(timeout):
            match event:
                case PromptProgress() if on_prompt_progress is not None:
                    on_prompt_progress(event)
                case FirstToken() if on_first_token is not None:
                    on_first_token(event)
                case LineFinished() if on_line is not None:
                    on_line(event)
                case BatchFinished():
                    batch = event.batch
        return batch

    def _wait(self, timeout: float | None) -> Batch:
        begun = self._client._clock()
        while not (batch := self.status()).done:
            if timeout is not None and self._client._clock() - begun >= timeout:
                raise WaitTimeoutError(f"batch {self.id} is not done after {duration(timeout)}; it goes on without you")
            self._client._sleep(POLL_S)
        return batch

    def watch(self, timeout: float | None = None) -> Iterator[Event]:
        """What happens to the batch until it is done, at most ``timeout`` seconds, as it happens::

            for event in batch.watch():
                match event:
                    case PromptProgress(): print(f"{event.id}: {event.prefilled} of {event.prompt_tokens}")
                    case FirstToken(): print(f"{event.id} has begun")
                    case LineFinished(): print(event.record)
                    case BatchFinished(): print(event.batch.usage)

        Every line has one :class:`LineFinished`, in the order of finishing; lines finished before the call come first.
        One that finished well has exactly one :class:`FirstToken` before it, and before that at least the end of its
        prompt (:class:`PromptProgress` with ``prefilled`` equal to ``prompt_tokens``). These two come from what workers
        publish once a second: they are up to a second or two late, steps in between are left out, and those of a line
        that takes less than that come together, just before its end. Of a line that begins again on another worker
        the prompt's progress may go back. A worker names 256 lines at most; of others only the end is told.

        Raises:
            WaitTimeoutError: it was not done by then; it goes on.
        """
        watch = BatchWatch(self._client._store, self.id, clock=self._client._clock)
        with self._client._open():
            yield from watch.events(timeout, self._client._sleep)

    def results(self, follow: bool = False, ordered: bool | None = None) -> Iterator[dict[str, Any]]:
        """Records of the lines that succeeded; those that failed are in :meth:`errors`.

        Without ``follow``: those there are now, in the order of the input. With ``follow``: in the order of
        finishing, live, until the batch is done. ``ordered`` says otherwise: ``ordered=False`` for the order
        of finishing; ``follow=True, ordered=True`` waits for the end, then goes in the order of the input.
        """
        return (orjson.loads(record.raw) for record in self._records(follow, ordered) if record.ok)

    def errors(self, follow: bool = False, ordered: bool | None = None) -> Iterator[dict[str, Any]]:
        """Records of the lines that failed; the arguments are those of :meth:`results`."""
        return (orjson.loads(record.raw) for record in self._records(follow, ordered) if not record.ok)

    def _records(self, follow: bool, ordered: bool | None) -> Iterator[StoredRecord]:
        if ordered is None:
            ordered = not follow
        if ordered and follow:
            self.wait()
        self.status()  # of a batch that is gone, no records would look like none yet
        connection = self._client._store.connection
        position = 0
        while True:
            batch = self.status() if follow and not ordered else None
            with self._client._open(), self._while_it_is_there():
                if ordered:
                    yield from ordered_records(connection, self.id)
                    return
                for record in finished_records(connection, self.id, start=position):
                    position = record.after
                    yield record
            if batch is None or batch.done:
                return
            self._client._sleep(POLL_S)

    @contextlib.contextmanager
    def _while_it_is_there(self) -> Iterator[None]:
        try:
            yield
        except KeyError:
            # Records can be gone while their places are still listed: when the batch is being purged.
            raise BatchNotFoundError(f"batch {self.id} was purged while it was read") from None


def _defaults(model: str | None, parameters: Mapping[str, Any]) -> Defaults:
    try:
        return Defaults({"model": model, **parameters})
    except LineError as error:
        raise LineError(error.code, error.field, f"'{error.field}' {error.message}") from None


def _submit(store: Store, prompts: FilePath | Iterable[Mapping[str, Any]], order: Order) -> Submitted:
    if isinstance(prompts, str | os.PathLike):
        with PromptFile(prompts) as file:
            return submit(store, file, order)
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise RefusedError(f"prompts are a path or an iterable of dicts, not one {type(prompts).__name__}")
    return submit(store, PromptObjects(prompts), order)
