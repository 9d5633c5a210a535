"""The Python client: submit prompts and read their results without the command line.

::

    from promptmill import Client

    with Client("redis://mini.local") as client:
        batch = client.submit("prompts.jsonl", model="mlx-community/Qwen3-4B-4bit", temperature=0.7)
        for record in batch.results(follow=True):
            print(record["id"], record["text"])
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from inspect import signature
from typing import Any

from jobs.errors import LineError, RefusedError
from jobs.lines.line import Defaults
from jobs.lines.messages import CHAT_FIELDS
from jobs.params import ALIASES, PARAMETERS, did_you_mean
from jobs.store.retention import KEEP_S
from submit.client.batch import BatchHandle
from submit.client.events import BatchFinished, Event, FirstToken, LineFinished, PromptProgress
from submit.client.schedule import ScheduleHandle
from submit.client.session import Session
from submit.data.open import NAMES, open_any, order_of
from submit.input.problem_summary import in_full
from submit.schedule.add import ScheduleOrder, add_schedule
from submit.schedule.cron import Cron, local_zone
from submit.schedule.store import Schedules
from submit.status.pool_pause import pause_pool, pause_workers, resume_pool, resume_workers
from submit.status.worker_state import WorkerState
from submit.status.workers import Workers
from submit.upload.submit_notes import notes
from submit.upload.submitter import Order, submit

__all__ = [
    "BatchFinished",
    "BatchHandle",
    "Client",
    "Event",
    "FirstToken",
    "LineFinished",
    "PromptProgress",
    "ScheduleHandle",
    "WorkerState",
]

log = logging.getLogger("promptmill.client")

FilePath = str | os.PathLike[str]


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
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._session = Session(url, environ=environ, clock=clock, sleep=sleep)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections, and the embedded server when nobody else uses it."""
        self._session.close()

    def submit(
        self,
        prompts: FilePath | Iterable[Mapping[str, Any]] | Any,
        *,
        template: FilePath | Mapping[str, Any] | None = None,
        model: str | None = None,
        override_model: bool = False,
        name: str | None = None,
        priority: str = "normal",
        on_bad_line: str = "reject",
        metadata: Mapping[str, Any] | None = None,
        at: datetime | None = None,
        start_in: float | None = None,
        expires_in: float | None = None,
        keep: float | None = KEEP_S,
        webhook: str | None = None,
        dedupe: bool = False,
        **parameters: Any,
    ) -> BatchHandle:
        """Enqueue a file (a path; ``.gz`` and ``.zst`` by suffix, ``-`` is stdin), an iterable of dicts, or a table: a
        path of any format that `promptmill submit` takes, a data frame, a table of Arrow, a data set of ``datasets``.

        Rows of a table become lines by ``template``: the path of a file, or a dict of a line's fields, whose texts are
        Jinja2; or, short, by ``user="{{ question }}"`` (and ``system=``) or ``prompt="..."``. ``where``, ``offset``,
        ``limit``, ``sample``, ``sample_seed``, ``repeat``, ``id_column``, ``keep_columns``, ``input_format``,
        ``delimiter`` and ``encoding`` are the flags of that name.

        ``parameters`` are those of a line (``temperature=0.7``, ``system_prompt="..."``), for lines that do not say
        them; so is ``model``, which with ``override_model`` is for all lines. ``priority`` is ``high``, ``normal`` or
        ``low``. With ``on_bad_line="skip"`` bad lines become error records and the rest runs. The batch begins ``at`` a
        moment (a datetime without a zone is a local one) or ``start_in`` seconds from now; ``expires_in`` seconds after
        its beginning it ends: lines not finished by then fail as ``expired``. ``keep`` seconds after its end it is
        removed; None keeps it until it is purged. ``webhook`` is a URL that its end is posted to.

        With ``dedupe`` lines run once that are equal in all but id and metadata and whose text is determined.

        What `promptmill submit` says of the lines is logged: that some name another model than ``model``, or end with
        an assistant's message. The handle's ``submitted`` counts them (``own_models``, ``after_answer``).

        Raises:
            LineError: a parameter that does not exist, or a value out of its range.
            InputError: bad lines; ``problems`` says which, and nothing was enqueued.
            RefusedError: the file cannot be read, or an argument makes no sense.
        """
        if at is not None and start_in is not None:
            raise RefusedError("at and start_in say the same thing: give one of them")
        _check_seconds(start_in=start_in, expires_in=expires_in, keep=keep)
        table = order_of({"template": template, **parameters})
        parameters = {name: value for name, value in parameters.items() if name not in NAMES}
        order = Order(
            defaults=_defaults("submit", model, parameters, override=override_model),
            name=name,
            priority=priority,
            on_bad_line=on_bad_line,
            metadata=metadata or {},
            start_in=start_in,
            expires_in=expires_in,
            keep_s=keep,
            webhook=webhook,
            dedupe=dedupe,
        )
        with self._session.store() as store:
            if at is not None:
                order = replace(order, start_in=_seconds_until(at, store.server_time()))
            with in_full(), open_any(prompts, table, model=order.defaults.model) as lines:
                submitted = submit(store, lines, order)
        for note in notes(submitted, order.defaults):
            log.warning("batch %s: %s", submitted.batch_id, note, extra={"action": "submitted"})
        return BatchHandle(self._session, submitted.batch_id, submitted)

    def batch(self, id_or_name: str) -> BatchHandle:
        """The batch of this id, else the newest of this name.

        Raises:
            BatchNotFoundError: there is none.
        """
        with self._session.store() as store:
            return BatchHandle(self._session, store.find(id_or_name).id)

    def batches(self) -> list[BatchHandle]:
        """All batches, oldest first."""
        with self._session.store() as store:
            return [BatchHandle(self._session, batch.id) for batch in store.batches()]

    def pause(self, *workers: str) -> None:
        """Have these workers take nothing new (``mini.4711`` is one process, ``mini`` all of this name), or without any
        the whole pool. Lines that were begun are finished."""
        with self._session.store() as store:
            if workers:
                pause_workers(store, workers)
            else:
                pause_pool(store)

    def resume(self, *workers: str) -> None:
        """Let these workers go on, by the names they were paused by, or without any the whole pool."""
        with self._session.store() as store:
            if workers:
                resume_workers(store, workers)
            else:
                resume_pool(store)

    def workers(self) -> list[WorkerState]:
        """What the live workers of the pool said last, within the last seconds, by name."""
        with self._session.store() as store:
            return Workers(store.connection).read()

    def add_schedule(
        self,
        name: str,
        prompts: FilePath | Iterable[Mapping[str, Any]] | Any,
        *,
        cron: str,
        template: FilePath | Mapping[str, Any] | None = None,
        time_zone: str | None = None,
        model: str | None = None,
        override_model: bool = False,
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

        Tables become lines as in :meth:`submit`. With ``read_at_fire`` they are the absolute path of a file on the
        scheduler's host, in a folder of its ``--read-from``, read at each run. Without ``catch_up`` runs that no
        scheduler was there for are skipped, with it one makes up for all of them; without ``allow_overlap`` a run is
        skipped while an earlier batch is not done.
        ``replace`` takes the place of a schedule of this name. ``keep`` seconds after its end a batch is removed (None:
        not), and ``webhook`` is the URL that its end is posted to. What is not said here is as in :meth:`submit`.

        Raises:
            LineError, InputError, RefusedError: as from :meth:`submit`; and for a bad expression or time zone, a name
                that is taken, a file that is too large.
        """
        _check_seconds(expires_in=expires_in, keep=keep)
        table = order_of({"template": template, **parameters})
        parameters = {name: value for name, value in parameters.items() if name not in NAMES}
        wanted = ScheduleOrder(
            name=name,
            table=table,
            cron=Cron(cron, time_zone or local_zone()),
            order=Order(
                defaults=_defaults("add_schedule", model, parameters, override=override_model),
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
        with self._session.store() as store, in_full():
            add_schedule(store, wanted, prompts)
        return ScheduleHandle(self._session, name)

    def schedule(self, name: str) -> ScheduleHandle:
        """The schedule of this name.

        Raises:
            ScheduleNotFoundError: there is none.
        """
        handle = ScheduleHandle(self._session, name)
        handle.status()
        return handle

    def schedules(self) -> list[ScheduleHandle]:
        """All schedules, by name."""
        with self._session.store() as store:
            return [ScheduleHandle(self._session, name) for name in Schedules(store.connection).names()]

    def run_schedule(self, name: str, *, allow_overlap: bool = False) -> BatchHandle:
        """Submit a batch of a schedule now, as :meth:`ScheduleHandle.run` does."""
        return ScheduleHandle(self._session, name).run(allow_overlap=allow_overlap)

    def remove_schedule(self, name: str) -> bool:
        """Remove a schedule; its batches stay. False: there was none."""
        return ScheduleHandle(self._session, name).remove()


def _check_seconds(**given: object) -> None:
    for name, value in given.items():
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            continue
        raise RefusedError(f"{name} is a number of seconds, such as 14 * 86400, not {value!r:.40}")


def _seconds_until(at: object, now: float) -> float:
    if not isinstance(at, datetime):
        raise RefusedError(f"at is a datetime, such as datetime(2026, 11, 22, 2, 0), not {at!r:.40}")
    seconds = at.timestamp() - now
    if seconds <= 0:
        raise RefusedError(f"at {at:%Y-%m-%d %H:%M:%S} has passed already: give a moment to come")
    return seconds


def _arguments(function: Callable[..., Any]) -> list[str]:
    """The names that may be given to a method that takes parameters of a line besides its own."""
    own = [name for name, what in signature(function).parameters.items() if what.kind is what.KEYWORD_ONLY]
    return [*own, *NAMES, *PARAMETERS, *ALIASES, *CHAT_FIELDS, "adapter_path"]


def _defaults(method: str, model: str | None, parameters: Mapping[str, Any], *, override: bool) -> Defaults:
    try:
        return Defaults({"model": model, "override_model": override, **parameters})
    except LineError as error:
        if error.field in parameters and error.message.startswith("is not a field of a line"):
            meant = did_you_mean(str(error.field), _arguments(getattr(Client, method)))
            message = f"'{error.field}' is not a parameter of {method}{meant}"
        else:
            message = f"'{error.field}' {error.message}"
        raise LineError(error.code, error.field, message) from None
