"""Schedules: batches that are submitted again and again, by cron. What Redis keeps of them, and the steps of a run.

A run *begins* in one step: ``next`` moves on, ``run`` says which run has begun. Its batch becomes live and the run is
*recorded* in one step too: ``run`` is gone, the list of runs has the batch, see :class:`RunStore`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import orjson

from jobs.errors import RefusedError
from jobs.redis.connect import refusing, replies
from jobs.store.keys import SCHEDULER, SCHEDULES, UPLOADING, BatchKeys, ScheduleKeys
from jobs.store.steps import step
from jobs.store.store import Store
from submit.schedule.cron import MOST_COUNTED, Cron
from submit.schedule.model import (
    FIELDS,
    REMEDY,
    Run,
    RunOutcome,
    Schedule,
    check_schedule_name,
    is_schedule_name,
    no_schedule,
    parse_schedule,
)

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

MAX_PROMPTS_BYTES = 64 * 2**20
"""Of a stored file, compressed."""
LUA = "submit.schedule.lua"
KEPT_RUNS = 20
"""Of a schedule's last runs so many are kept, see ``lua/shared/runs.lua``."""
MAX_INFO_BYTES = 2**20
MAX_ORDER_BYTES = 3 * 2**20
MAX_OUTCOME_BYTES = 4096
UPLOAD_S = 900
MOST_CRONS = 1000
ANY_TIME = "1e18"


class Schedules:
    """The schedules in one Redis; ``connection`` replies with bytes."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._cron = lru_cache(MOST_CRONS)(Cron)  # checked once: a scheduler reads all schedules every second
        self._read = step(connection, LUA, "read")
        self._add = step(connection, LUA, "add")
        self._begin = step(connection, LUA, "begin")
        self._end = step(connection, LUA, "end")
        self._remove = step(connection, LUA, "remove")
        self._pause = step(connection, LUA, "pause")

    # --- what there is ---

    def names(self) -> list[str]:
        """All names, sorted; what is listed and can be none is left out.

        Raises:
            RefusedError: somebody put something else where they are kept.
        """
        with refusing("the list of schedules"):
            found = cast("set[bytes]", self._connection.smembers(SCHEDULES))
        return sorted(filter(is_schedule_name, (name.decode(errors="replace") for name in found)))

    def get(self, name: str, *, runs: int = KEPT_RUNS) -> Schedule:
        """The schedule of this name, with at most so many of its last runs.

        Raises:
            ScheduleNotFoundError: there is none.
            RefusedError: what Redis keeps under its name is none.
        """
        (found,) = self.read([check_schedule_name(name)], runs=runs)
        if isinstance(found, RefusedError):
            raise found
        return found

    def read(self, names: list[str], *, runs: int = KEPT_RUNS) -> list[Schedule | RefusedError]:
        """The schedules of these names; for what is none, the error that says so."""
        with self._connection.pipeline(transaction=False) as pipe:
            for name in names:
                keys = ScheduleKeys(name)
                arguments: list[Any] = [MAX_INFO_BYTES, runs, MAX_OUTCOME_BYTES, *FIELDS]
                self._read(keys=[keys.info, keys.runs], args=arguments, client=pipe)
            found = replies(pipe) if names else []
        return [_parsed(name, reply, self._cron) for name, reply in zip(names, found, strict=True)]

    def order(self, schedule: Schedule) -> bytes:
        """What was said of each of a schedule's batches, as :meth:`add` was given it.

        Raises:
            ScheduleNotFoundError: it was replaced or removed meanwhile.
            RefusedError: it is too large to be what :meth:`add` wrote.
        """
        keys = ScheduleKeys(schedule.name)
        with refusing(f"schedule '{schedule.name}'"):
            found = self._read(keys=[keys.info, keys.runs], args=[MAX_ORDER_BYTES, 0, 0, "id", "order"])
        if not found or found[0][0] != schedule.id.encode():
            raise no_schedule(schedule.name)
        return found[0][1] or b""

    def prompts(self, schedule: Schedule) -> bytes:
        """The file that is stored with a schedule, compressed.

        Raises:
            RefusedError: there is none, as where the schedule was replaced meanwhile, or something larger than any.
        """
        key = ScheduleKeys(schedule.name).prompts(schedule.id)
        with refusing(f"schedule '{schedule.name}'"):
            if 0 < self._connection.strlen(key) <= MAX_PROMPTS_BYTES and (found := self._connection.get(key)):
                return cast("bytes", found)
        raise RefusedError(f"the prompts of schedule '{schedule.name}' are not in Redis any more: {REMEDY}")

    def active_scheduler(self) -> str | None:
        """The name of the scheduler that is active; None: there is none."""
        try:
            with refusing("the scheduler"):
                said = cast("bytes", self._connection.getrange(SCHEDULER, 0, 1024))
            return str(orjson.loads(said or b"null")["name"])
        except (RefusedError, orjson.JSONDecodeError, TypeError, LookupError):
            return None

    # --- what users do ---

    def add(
        self, name: str, cron: Cron, facts: Mapping[str, Any], prompts: bytes | None, *, replace: bool, now: float
    ) -> Schedule:
        """Make a schedule of ``facts``, as :func:`submit.schedule.add.add_schedule` has them. ``prompts`` is the file
        that is stored with it, compressed; ``now`` is by the server's clock.

        Raises:
            RefusedError: the name is taken and is not to be replaced; or the order is too large.
        """
        keys, incarnation = ScheduleKeys(check_schedule_name(name)), uuid.uuid4().hex
        if len(facts["order"]) > MAX_ORDER_BYTES:
            raise RefusedError(
                f"the batch's defaults and metadata have {len(facts['order'])} bytes: give in the lines what is so long"
            )
        fields = {
            "id": incarnation,  # the first: ADD looks at it
            **facts,
            "cron": cron.expression,
            "zone": cron.zone,
            "bytes": len(prompts or b""),
            "created_at": repr(now),
            "next": cron.after(now),
        }
        file = keys.prompts(incarnation)
        if prompts is not None:
            self._connection.set(file, prompts, ex=UPLOAD_S)
        flat = [item for pair in fields.items() for item in pair]
        arguments: list[Any] = [name, int(replace), int(prompts is not None), repr(now), *flat]
        with refusing("the list of schedules"):
            added = self._add(keys=[keys.info, SCHEDULES, keys.runs, file], args=arguments)
        if added != 1:
            self._connection.unlink(file)
            raise RefusedError(
                f"there is a schedule '{name}' already: --replace takes its place, or choose another name"
                if added == 0
                else f"the upload of the file took longer than {UPLOAD_S} s: give its path, with --read-at-fire"
            )
        return self.get(name)

    def remove(self, name: str) -> bool:
        """Remove a schedule; its batches stay, a run that is being submitted is given up. False: there was none."""
        keys = ScheduleKeys(check_schedule_name(name))
        return bool(self._remove(keys=[keys.info, SCHEDULES, keys.runs], args=[name]))

    def pause(self, name: str, now: float) -> bool:
        """Let no run of a schedule begin by cron; ``now`` is by the server's clock. False: it was paused already.

        Raises:
            ScheduleNotFoundError: there is none.
            RefusedError: what Redis keeps under its name is none.
        """
        return self._set_paused(self.get(name, runs=0), repr(now), "")

    def resume(self, name: str, now: float) -> bool:
        """Let a schedule go on. Runs that were due meanwhile are not made up for. False: it was not paused.

        Raises:
            ScheduleNotFoundError, RefusedError: as from :meth:`pause`.
        """
        schedule = self.get(name, runs=0)
        following = schedule.next if schedule.next > now else schedule.cron.after(now)
        return self._set_paused(schedule, "", following)

    def _set_paused(self, schedule: Schedule, at: str, following: int | str) -> bool:
        arguments: list[Any] = [schedule.id, at, following]
        done = cast("int", self._pause(keys=[ScheduleKeys(schedule.name).info], args=arguments))
        if done == -1:
            raise no_schedule(schedule.name)
        return done == 1

    # --- the steps of a run ---

    def begin(
        self, schedule: Schedule, run: Run, following: int | None = None, *, overlap: bool, gone: Run | None = None
    ) -> str:
        """A run begins, and the next by cron is due at ``following`` (None: by hand, and the next stays as it is).
        It takes the place of one that has begun and whose client is ``gone``.

        Returns ``begun``; ``over``: that was decided already, or the schedule is paused, or was replaced or removed;
        ``busy``: another run has begun; or the id of a batch that is not done, unless they may ``overlap``.
        """
        due = "" if following is None else schedule.next
        arguments: list[Any] = [schedule.id, due, following or "", run.encoded(), int(overlap)]
        arguments.append(b"" if gone is None else gone.encoded())
        return cast("bytes", self._step(self._begin, schedule, arguments)).decode()

    def skip(self, schedule: Schedule, outcome: RunOutcome, following: int) -> bool:
        """The run that is due by cron does not begin; the next is due at ``following``. False: it was decided already.

        Runs that are skipped one after the other for the same reason are one entry of the list.
        """
        before, both = b"", b""
        if schedule.runs and (merged := outcome.merged(schedule.runs[0], MOST_COUNTED)) is not None:
            before, both = schedule.runs[0].encoded(), merged.encoded()
        arguments = [schedule.id, "next", schedule.next, following, outcome.encoded(), before, both]
        return bool(self._step(self._end, schedule, arguments))

    def end(self, schedule: Schedule, run: Run, outcome: RunOutcome | None = None) -> bool:
        """A run that has begun ends without a batch. False: it is another's, or is over already."""
        result = b"" if outcome is None else outcome.encoded()
        return bool(self._step(self._end, schedule, [schedule.id, "run", run.encoded(), b"", result, b"", b""]))

    def _step(self, script: Script, schedule: Schedule, arguments: list[Any]) -> object:
        keys = ScheduleKeys(schedule.name)
        return script(keys=[keys.info, keys.runs], args=arguments)


def _parsed(name: str, reply: Any, cron: Callable[[str, str], Cron]) -> Schedule | RefusedError:
    """The schedule of READ's reply, or the error that says that it is none."""
    if reply is None:
        return no_schedule(name)
    try:
        if isinstance(reply, Exception):
            raise RefusedError(str(reply))
        values, runs = reply
        return parse_schedule(name, values, runs, cron)
    except (RefusedError, ValueError) as error:
        return RefusedError(f"what Redis keeps of schedule '{name}' is damaged ({error!s:.200}): {REMEDY}")


class OvertakenError(Exception):
    """A run is another's, or over, or its schedule was replaced or removed: an upload for it is not wanted."""


class RunStore(Store):
    """A store whose :meth:`commit` also records ``run`` of ``schedule``, which is over then.

    ``begun``: the batch becomes live only if this is the run that has begun; else it may be one besides.
    :meth:`commit` raises OvertakenError where the run is another's; the batch is not live then.
    """

    def __init__(self, store: Store, schedule: Schedule, run: Run, *, begun: bool = True) -> None:
        super().__init__(store.connection, now=store.now, server_time=store.server_time)
        self._schedule, self._run, self._begun = schedule, run, begun
        self._script = step(store.connection, LUA, "commit_run")
        self._commit = cast("Script", self._commit_run)

    def _commit_run(self, *, keys: list[str], args: list[Any]) -> int:
        of_schedule, run = ScheduleKeys(self._schedule.name), self._run
        outcome = RunOutcome(run.due, self.server_time(), "submitted", args[0], asked=run.asked, missed=run.missed)
        arguments = [self._schedule.id, run.encoded() if self._begun else b"", outcome.encoded(), *args]
        done = cast("int", self._script(keys=[of_schedule.info, of_schedule.runs, *keys], args=arguments))
        if done == -1:
            raise OvertakenError
        return done

    def discard(self, batch_id: str, shards: int = 0) -> None:
        """Remove an upload, unless it is live: a commit of which no reply came may have been made, and was recorded."""
        info = BatchKeys(batch_id).info
        self._sweep(keys=[info, UPLOADING], args=[batch_id, ANY_TIME])
        if self.connection.hget(info, "status") in (None, b"failed"):
            super().discard(batch_id, shards)
