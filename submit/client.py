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
from typing import Any

import orjson

from jobs.batch import Batch
from jobs.connect import connect, translated
from jobs.cron import Cron, local_zone
from jobs.embedded import data_folder, embedded_server
from jobs.ending import cancel, current
from jobs.errors import BatchNotFoundError, LineError, RefusedError, WaitTimeoutError
from jobs.keeping import KEEP_S
from jobs.line import Defaults
from jobs.results import StoredRecord, finished_records, ordered_records
from jobs.retrying import retry
from jobs.schedules import Schedules
from jobs.store import Store
from submit.reader import PromptFile, PromptObjects
from submit.schedulehandle import ScheduleHandle
from submit.scheduling import ScheduleOrder, add_schedule
from submit.submitter import Order, Submitted, submit
from submit.text import duration

__all__ = ["BatchHandle", "Client"]

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
        expires_in: float | None = None,
        **parameters: Any,
    ) -> BatchHandle:
        """Enqueue a file (a path; ``.gz`` and ``.zst`` by suffix, ``-`` is stdin) or an iterable of dicts.

        ``parameters`` are those of a line (``temperature=0.7``, ``system_prompt="..."``), for lines that do
        not say them. ``priority`` is ``high``, ``normal`` or ``low``. With ``on_bad_line="skip"`` bad lines
        become error records and the rest runs. ``expires_in`` seconds after it was enqueued the batch ends: lines
        not finished by then fail as ``expired``.

        Raises:
            LineError: a parameter that does not exist, or a value out of its range.
            InputError: bad lines; ``problems`` says which, and nothing was enqueued.
            RefusedError: the file cannot be read, or an argument makes no sense.
        """
        order = Order(
            defaults=_defaults(model, parameters),
            name=name,
            priority=priority,
            on_bad_line=on_bad_line,
            metadata=metadata or {},
            expires_in=expires_in,
        )
        with self._open():
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

    def add_schedule(
        self,
        name: str,
        prompts: FilePath | Iterable[Mapping[str, Any]],
        *,
        cron: str,
        time_zone: str | None = None,
        model: str | None = None,
        batch_name: str | None = None,
        priority: str = "normal",
        on_bad_line: str = "reject",
        metadata: Mapping[str, Any] | None = None,
        expires_in: float | None = None,
        keep: float | None = KEEP_S,
        webhook: str | None = None,
        read_at_fire: bool = False,
        catch_up: bool = False,
        allow_overlap: bool = False,
        replace: bool = False,
        **parameters: Any,
    ) -> ScheduleHandle:
        """Submit ``prompts`` by cron, as `promptmill scheduler` does it: they are checked now and stored.

        With ``read_at_fire`` they are the absolute path of a file on the scheduler's host, read at each run. Without
        ``catch_up`` runs that no scheduler was there for are skipped, with it one makes up for all of them; without
        ``allow_overlap`` a run is skipped while an earlier batch is not done. ``replace`` takes the place of a schedule
        of this name. ``keep`` seconds after its end a batch is removed (None: not), and ``webhook`` is the URL that is
        told of its end. What is not said here is as in :meth:`submit`.

        Raises:
            LineError, InputError, RefusedError: as from :meth:`submit`; and for a bad expression or time zone, a name
                that is taken, a file that is too large.
        """
        wanted = ScheduleOrder(
            name=name,
            cron=Cron(cron, time_zone or local_zone()),
            order=Order(
                defaults=_defaults(model, parameters),
                name=batch_name,
                priority=priority,
                on_bad_line=on_bad_line,
                metadata=metadata or {},
                expires_in=expires_in,
                keep_s=keep,
                webhook=webhook,
            ),
            read_at_fire=read_at_fire,
            catch_up=catch_up,
            allow_overlap=allow_overlap,
            take_place=replace,
        )
        with self._open():
            add_schedule(self._store, wanted, os.fspath(prompts) if isinstance(prompts, os.PathLike) else prompts)
        return ScheduleHandle(self, name)

    def schedule(self, name: str) -> ScheduleHandle:
        """The schedule of this name.

        Raises:
            ScheduleNotFoundError: there is none.
        """
        handle = ScheduleHandle(self, name)
        handle.status()
        return handle

    def schedules(self) -> list[ScheduleHandle]:
        """All schedules, by name."""
        with self._open():
            return [ScheduleHandle(self, name) for name in Schedules(self._store.connection).names()]

    def run_schedule(self, name: str, *, allow_overlap: bool = False) -> BatchHandle:
        """Submit a batch of a schedule now, as :meth:`ScheduleHandle.run` does."""
        return ScheduleHandle(self, name).run(allow_overlap=allow_overlap)

    def remove_schedule(self, name: str) -> bool:
        """Remove a schedule; its batches stay. False: there was none."""
        return ScheduleHandle(self, name).remove()

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

    def wait(self, timeout: float | None = None) -> Batch:
        """Wait until the batch is done, at most ``timeout`` seconds.

        Raises:
            WaitTimeoutError: it was not done by then; it goes on.
        """
        begun = self._client._clock()
        while not (batch := self.status()).done:
            if timeout is not None and self._client._clock() - begun >= timeout:
                raise WaitTimeoutError(f"batch {self.id} is not done after {duration(timeout)}; it goes on without you")
            self._client._sleep(POLL_S)
        return batch

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
