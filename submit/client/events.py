"""Events of a batch that is watched: prompts being read, first tokens, finished lines, the end.

Each finished line gives exactly one event, in the order of finishing, from its record in Redis. The other events come
from what workers publish once a second. A line that takes less than that may never be seen at work; its progress and
first token are then made from its record, just before its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.batch import Batch
from jobs.record_head import whole
from submit.client.session import Session
from submit.results.read import StoredRecord, finished_records
from submit.status.workers import Workers

if TYPE_CHECKING:
    from submit.status.worker_state import WorkerState

LOOK_S = 1.0
"""Workers publish this often."""


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """``prefilled`` of the ``prompt_tokens`` of a line's prompt are processed. ``index`` is the line's place in the
    input, from 0; ``worker`` may be unknown."""

    index: int
    id: str
    prefilled: int
    prompt_tokens: int
    worker: str | None


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A line's text has begun."""

    index: int
    id: str
    worker: str | None


@dataclass(frozen=True, slots=True)
class LineFinished:
    """A line has its record: a result where it is ``ok``, else an error."""

    index: int
    id: str
    ok: bool
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchFinished:
    """Every line has its record; nothing comes after this."""

    batch: Batch


Event = PromptProgress | FirstToken | LineFinished | BatchFinished


@dataclass(slots=True)
class _Seen:
    """The events so far of a line that is not finished."""

    prefilled: int = -1
    prompt_tokens: int = 0
    begun: bool = False


class BatchWatch:
    """Looks at a batch's workers and records and makes events of what is new."""

    def __init__(self, session: Session, batch_id: str) -> None:
        self._session = session
        self._batch_id = batch_id
        with session.store() as store:
            self._connection = store.connection
        self._workers = Workers(self._connection, clock=session.clock)
        self._looked_at: float | None = None
        self._position = 0
        self._seen: dict[int, _Seen] = {}
        self._finished = bytearray()

    def events(self, timeout: float | None) -> Iterator[Event]:
        """Events until the batch is done; those of lines that were finished before come first.

        Raises:
            WaitTimeoutError: it is not done after ``timeout`` seconds.
            BatchNotFoundError: it was purged.
        """
        for batch in self._session.until_done(self._batch_id, timeout):
            # In this order: a batch that is done has all its records, and a line has begun before it has one.
            with self._session.store():
                yield from self._of_workers(batch)
                yield from self._of_records()
        yield BatchFinished(batch)

    def _of_workers(self, batch: Batch) -> Iterator[Event]:
        now = self._session.clock()
        if batch.done or (self._looked_at is not None and now - self._looked_at < LOOK_S):
            return
        self._looked_at = now
        for state in self._workers.read():
            yield from self._of_worker(state, batch.total)

    def _of_worker(self, state: WorkerState, total: int) -> Iterator[Event]:
        for line in state.lines_of(self._batch_id):
            if self._is_finished(line.index) or line.index >= total:
                continue  # what is published is up to a second old
            seen = self._seen.setdefault(line.index, _Seen())
            if seen.begun:
                continue  # it begins again elsewhere: it has had its first token
            if (line.prefilled, line.prompt_tokens) != (seen.prefilled, seen.prompt_tokens):
                seen.prefilled, seen.prompt_tokens = line.prefilled, line.prompt_tokens
                yield PromptProgress(line.index, line.id, line.prefilled, line.prompt_tokens, state.name)
            if line.completion_tokens:
                seen.begun = True
                yield FirstToken(line.index, line.id, state.name)

    def _of_records(self) -> Iterator[Event]:
        for stored in finished_records(self._connection, self._batch_id, start=self._position):
            self._position = stored.after
            yield from self._of_record(stored)

    def _of_record(self, stored: StoredRecord) -> Iterator[Event]:
        index, ok, record = stored.index, stored.ok, whole(stored.raw)
        seen = self._seen.pop(index, None) or _Seen()
        self._note_finished(index)
        if ok and not seen.begun:
            size = record["usage"]["prompt_tokens"]
            if (seen.prefilled, seen.prompt_tokens) != (size, size):
                yield PromptProgress(index, record["id"], size, size, record["worker"])
            yield FirstToken(index, record["id"], record["worker"])
        yield LineFinished(index, record["id"], ok, record)

    def _is_finished(self, index: int) -> bool:
        return index < len(self._finished) and bool(self._finished[index])

    def _note_finished(self, index: int) -> None:
        if index >= len(self._finished):
            self._finished.extend(bytes(index + 1 - len(self._finished)))
        self._finished[index] = 1
