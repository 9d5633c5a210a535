"""The in-flight log: which lines are under way, kept in Redis, so that a death can be charged to them."""

from __future__ import annotations

import enum
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import redis.exceptions

from jobs.store.store import Store
from worker.shards.claimed import HeldShards, LineKey

if TYPE_CHECKING:
    from redis import Redis

    from worker.engine.engine import Engine

log = logging.getLogger("promptmill.worker")

CLAIM_S = 1.0
"""How long lines wait for the claim of a shard that this worker is taking up again: as for a Redis that is out."""
QUIET_S = 5.0
QUIET_RATIO = 20
"""A Redis that did not answer is left alone for so long, and for so many times what it took to find out: lines that are
to begin must not wait for it each time."""


class Note(enum.Enum):
    """What is noted of a line."""

    NEXT = "next"
    """It begins."""
    ALONE = "alone"
    """It begins with nothing beside it."""
    BACK = "back"
    """It does not begin after all, or begins anew."""


@dataclass(frozen=True, slots=True)
class NoteReply:
    """What became of notes: lines that may begin, lines that were taken back, lines that are not this worker's.
    ``out`` says that Redis did not take them, and will be asked again."""

    noted: frozenset[LineKey]
    back: frozenset[LineKey]
    refused: frozenset[LineKey]
    out: bool


class InFlightLog(threading.Thread):
    """Notes lines before they begin. Threads: compute, which says what is next and never waits for Redis; in-flight, as
    marked below, which asks Redis on a connection of its own, and calls ``answer``.

    Noted ahead is one wave of prompts of each model, while the one before it is computed (where lines of a higher
    priority come in between, another). Should the worker die, those are charged too although they had not begun:
    a first death costs a line nothing but its count. Before a suspect runs alone they are taken back.

    What begins while Redis is out is noted when it is back. Shards that turn out to be another's, as after a sleep, are
    given up by ``abandon(held, attempt, wait_s=)``, and their lines do not begin.
    """

    def __init__(
        self,
        store: Store,
        connection: Redis,
        instance: str,
        held: HeldShards,
        abandon: Callable[..., None],
        answer: Callable[[NoteReply], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="in-flight", daemon=True)
        self._store, self._connection, self._instance, self._held = store, connection, instance, held
        self._abandon, self._answer, self._clock = abandon, answer, clock
        self._queue: queue.Queue[dict[LineKey, Note] | None] = queue.Queue()
        # The compute thread's:
        self._asked: set[LineKey] = set()
        self._noted: set[LineKey] = set()
        self._leaving: set[LineKey] = set()
        self._seen: dict[int, tuple[int, int, object]] = {}
        self._out = False
        # This thread's:
        self._missed: dict[LineKey, Note] = {}
        self._quiet_until = 0.0

    # --- the compute thread ---

    @property
    def unsettled(self) -> int | None:
        """Lines that have not begun and that Redis has, or may have, for begun; None while it is out."""
        return None if self._out else len(self._asked) + len(self._leaving)

    def admitted(self, engines: Iterable[Engine], only: frozenset[Hashable] | None) -> frozenset[Hashable] | None:
        """Have those lines noted that begin next if only these may (None: all); those that may begin now."""
        wanted = self._next(engines, only)
        notes = dict.fromkeys(self._asked - wanted, Note.BACK)
        self._leaving |= notes.keys()
        self._asked &= wanted
        self._noted &= wanted
        fresh = wanted - self._asked - self._leaving
        if fresh:
            self._asked |= fresh
            notes |= dict.fromkeys(fresh, Note.NEXT if only is None else Note.ALONE)
        if notes:
            self._queue.put(notes)
        return frozenset(self._noted)

    def _next(self, engines: Iterable[Engine], only: frozenset[Hashable] | None) -> set[LineKey]:
        wanted: set[LineKey] = set()
        for engine in engines:
            if not engine.pending:
                continue
            kept = {key for key in self._asked if key in engine and (only is None or key in only)}
            wanted |= kept
            seen = (engine.pending, engine.begun, only)
            if not kept or self._seen.get(id(engine)) != seen:
                self._seen[id(engine)] = seen
                ahead = cast("list[LineKey]", engine.upcoming(only))
                if ahead and ahead[0] not in kept:  # else what is noted already goes first
                    wanted.update(ahead)
        return wanted

    def begun(self, keys: Iterable[LineKey]) -> frozenset[LineKey]:
        """These lines begin now; those whose shard has ended meanwhile, which shall not."""
        self._asked.difference_update(keys)
        self._noted.difference_update(keys)
        return frozenset(key for key in keys if self._held.of_line(key) is None)

    def begins_anew(self, key: LineKey) -> None:
        """A line that was under way waits among the others again."""
        self._leaving.add(key)
        self._queue.put({key: Note.BACK})

    def answered(self, answer: NoteReply) -> None:
        """Take note of an answer."""
        self._asked -= answer.refused
        self._noted |= answer.noted & self._asked
        self._leaving -= answer.back
        self._out = answer.out

    # --- this thread ---

    def stop(self) -> None:
        """End, whatever is left."""
        self._queue.put(None)

    def run(self) -> None:
        while (notes := self._gather()) is not None:
            self._take(notes)

    def _gather(self) -> dict[LineKey, Note] | None:
        """What was asked for by now; nothing when it is time to try again what Redis did not take. None: stop."""
        notes: dict[LineKey, Note] = {}
        try:
            wait = max(0.0, self._quiet_until - self._clock()) if self._missed else None
            found = self._queue.get(timeout=wait)
            while found is not None:
                notes |= found
                found = self._queue.get_nowait()
        except queue.Empty:
            return notes
        return None

    def _take(self, notes: dict[LineKey, Note]) -> None:
        wanted = self._missed | notes
        if not wanted:
            return
        refused: frozenset[LineKey] = frozenset()
        begun = self._clock()
        if begun >= self._quiet_until:
            try:
                refused = self._note(wanted)
            except redis.exceptions.RedisError as error:
                log.debug("lines under way cannot be noted: %s", error)
                now = self._clock()
                self._quiet_until = now + max(QUIET_S, QUIET_RATIO * (now - begun))
            else:
                wanted = {}
        back_again = bool(self._missed) and not wanted
        self._missed = wanted
        if notes or back_again:
            back = frozenset(key for key, note in notes.items() if note is Note.BACK)
            self._answer(NoteReply(frozenset(notes) - back - refused, back, refused - back, bool(wanted)))

    def _note(self, notes: dict[LineKey, Note]) -> frozenset[LineKey]:
        """Have Redis note lines, in one round trip per shard; those that are not this worker's."""
        by_shard: dict[str, dict[int, Note]] = defaultdict(dict)
        for key, note in notes.items():
            held = self._held.of_line(key)
            if held is not None and key[2] in held.remaining:
                by_shard[held.job_id][key[2]] = note
        for job_id, lines in by_shard.items():
            held = self._held.get(job_id)
            while held is not None and not held.ended:
                attempt = held.attempt
                chosen = {note: [index for index in lines if lines[index] is note] for note in Note}
                if self._store.begin(
                    attempt, chosen[Note.NEXT], self._instance, self._connection,
                    alone=chosen[Note.ALONE], back=chosen[Note.BACK],
                ):  # fmt: skip
                    break
                self._abandon(held, attempt, wait_s=CLAIM_S)
                if held.attempt is attempt and not held.ended:
                    raise redis.exceptions.TimeoutError(f"{job_id} is still being taken up again")
        return frozenset(key for key in notes if self._held.of_line(key) is None)
