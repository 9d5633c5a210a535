"""A handle on one batch: status, results, events, and what can be done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.record_head import whole
from jobs.store.cancel import cancel
from jobs.store.pause import pause, prioritise, resume_batch
from jobs.store.retention import memory, purge
from jobs.store.retry import retry
from submit.client.events import BatchWatch, Event, FirstToken, LineFinished, PromptProgress
from submit.client.session import Session
from submit.results.read import StoredRecord, finished_records, ordered_records
from submit.upload.submitter import Submitted

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow


class BatchHandle:
    """One batch. Made by a :class:`submit.Client`, and usable as long as that is open."""

    def __init__(self, session: Session, batch_id: str, submitted: Submitted | None = None) -> None:
        self._session = session
        self.id = batch_id
        self.submitted = submitted
        """What the submission found, on handles that :meth:`submit.Client.submit` returned."""

    def __repr__(self) -> str:
        return f"BatchHandle({self.id!r})"

    def status(self) -> Batch:
        """The batch as it is now: status, counts, token usage, times.

        Raises:
            BatchNotFoundError: it was purged.
        """
        return self._session.batch(self.id)

    def cancel(self) -> Batch:
        """End the batch now; every finished line is kept, the others fail as ``cancelled``.

        Raises:
            RefusedError: it is over already. One that was cancelled before stays so.
        """
        with self._session.store() as store:
            cancel(store, self.id)
        return self.status()

    def retry(self) -> int:
        """Run the lines that failed again, in this batch; how many they are. Those refused at submission are not run.

        Raises:
            RefusedError: the batch is not done.
        """
        with self._session.store() as store:
            return retry(store, self.id)

    def prioritise(self, priority: str) -> None:
        """Give the batch another priority, ``high``, ``normal`` or ``low``, also while it runs.

        Raises:
            RefusedError: there is no such priority, or the batch is over.
        """
        with self._session.store() as store:
            prioritise(store, self.id, priority)

    def pause(self) -> None:
        """Hold the batch back: lines that were begun are finished, the others wait until :meth:`resume`.

        Raises:
            RefusedError: it is over.
        """
        with self._session.store() as store:
            pause(store, self.id)

    def resume(self) -> None:
        """Let the batch go on.

        Raises:
            RefusedError: it is over.
        """
        with self._session.store() as store:
            resume_batch(store, self.id)

    def purge(self) -> None:
        """Remove the batch, with its prompts and records.

        Raises:
            RefusedError: it is not done.
        """
        with self._session.store() as store:
            purge(store, self.id)

    def memory(self) -> int:
        """Bytes that the batch takes in Redis."""
        with self._session.store() as store:
            return memory(store.connection, self.id)

    def wait(
        self,
        timeout: float | None = None,
        *,
        on_prompt_progress: Callable[[PromptProgress], Any] | None = None,
        on_first_token: Callable[[FirstToken], Any] | None = None,
        on_line: Callable[[LineFinished], Any] | None = None,
        on_batch: Callable[[Batch], Any] | None = None,
    ) -> Batch:
        """Wait until the batch is done, at most ``timeout`` seconds. Callbacks get the events of :meth:`watch`, and
        ``on_batch`` the batch once it is done.

        What a callback raises comes out of here, and the batch goes on; the next callback waits until one is done.
        In asyncio: ``await asyncio.to_thread(batch.wait, on_line=...)``, which calls them in that thread.

        Raises:
            WaitTimeoutError: it was not done by then; it goes on.
        """
        if on_prompt_progress or on_first_token or on_line:
            self._call_back(timeout, on_prompt_progress, on_first_token, on_line)
        for batch in self._session.until_done(self.id, timeout):  # noqa: B007 (the last one counts)
            pass
        if on_batch is not None:
            on_batch(batch)
        return batch

    def _call_back(
        self,
        timeout: float | None,
        on_prompt_progress: Callable[[PromptProgress], Any] | None,
        on_first_token: Callable[[FirstToken], Any] | None,
        on_line: Callable[[LineFinished], Any] | None,
    ) -> None:
        for event in self.watch(timeout):
            match event:
                case PromptProgress() if on_prompt_progress is not None:
                    on_prompt_progress(event)
                case FirstToken() if on_first_token is not None:
                    on_first_token(event)
                case LineFinished() if on_line is not None:
                    on_line(event)

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
        the prompt's progress may go back. A worker names 256 lines at most; others have only the event of their end.

        Raises:
            WaitTimeoutError: it was not done by then; it goes on.
        """
        yield from BatchWatch(self._session, self.id).events(timeout)

    def results(self, follow: bool = False, ordered: bool | None = None) -> Iterator[dict[str, Any]]:
        """Records of the lines that succeeded; those that failed are in :meth:`errors`.

        Without ``follow``: those there are now, in the order of the input. With ``follow``: in the order of
        finishing, live, until the batch is done. ``ordered`` says otherwise: ``ordered=False`` for the order
        of finishing; ``follow=True, ordered=True`` waits for the end, then goes in the order of the input.
        """
        return (whole(record.raw) for record in self._records(follow, ordered) if record.ok)

    def errors(self, follow: bool = False, ordered: bool | None = None) -> Iterator[dict[str, Any]]:
        """Records of the lines that failed; the arguments are those of :meth:`results`."""
        return (whole(record.raw) for record in self._records(follow, ordered) if not record.ok)

    def to_arrow(self) -> pyarrow.Table:
        """All records there are now, in the order of the input, as a table: the columns of the rows that lines were
        made of, with their types, and beside them ``completion``, ``stop_reason``, ``error`` and so on.

        Raises:
            RefusedError: pyarrow is not installed.
        """
        from submit.results.tables.cells import read_record
        from submit.results.tables.open import arrow_rows

        with self._session.store() as store:
            rows = arrow_rows(store, store.batch(self.id))
            import pyarrow

            records = ordered_records(store.connection, self.id)
            full = (rows.put(read_record(record.raw), len(record.raw)) for record in records)
            batches = [batch for batch in full if batch is not None]
        if (rest := rows.rest()) is not None:
            batches.append(rest)
        return pyarrow.Table.from_batches(batches, rows.schema)

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a data frame of pandas, which must be installed. Integers with gaps, as the seeds where a line
        failed, have a type of pandas that holds each of them, such as ``Int64``: floats do not."""
        _see_installed("pandas")
        import pyarrow.types as kinds

        table = self.to_arrow()
        gaps = [name for name in table.column_names if kinds.is_integer(table[name].type) and table[name].null_count]
        frame: pandas.DataFrame = table.to_pandas()
        for name in gaps:
            kind = table[name].type
            frame[name] = table[name].to_pandas(types_mapper=lambda _, kind=kind: _with_gaps(kind))
        return frame

    def to_polars(self) -> polars.DataFrame:
        """The same as a data frame of polars, which must be installed."""
        _see_installed("polars")
        import polars

        return polars.DataFrame(self.to_arrow())

    def _records(self, follow: bool, ordered: bool | None) -> Iterator[StoredRecord]:
        if ordered is None:
            ordered = not follow
        if ordered:
            # Of a batch that is gone, no records would look like none yet.
            if follow:
                self.wait()
            else:
                self.status()
            with self._session.store() as store:
                yield from ordered_records(store.connection, self.id)
            return
        position = 0
        for _ in self._session.until_done(self.id):
            with self._session.store() as store:
                for record in finished_records(store.connection, self.id, start=position):
                    position = record.after
                    yield record
            if not follow:
                return


def _see_installed(package: str) -> None:
    if find_spec(package) is None:
        raise RefusedError(f"{package} is not installed: pip install {package}, or take to_arrow()")


def _with_gaps(kind: pyarrow.DataType) -> Any:
    """The type of pandas for integers of this type of Arrow, some of which are missing."""
    import pandas

    return pandas.api.types.pandas_dtype(str(kind).replace("int", "Int").replace("uI", "UI"))
