"""Schedules: batches that are submitted again and again, by cron. What Redis keeps of them, and the steps of a run.

A run goes through its schedule's hash, each step by comparing and setting, so that it may be repeated by anyone and
is done once: it *begins* (``next`` moves on, ``run`` says which has begun), an upload of it is *claimed* (``run`` names
the one batch that may become live), and it is *recorded* (``run`` is gone, the list of runs has it).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import orjson

from jobs.connect import refusing, replies
from jobs.cron import Cron
from jobs.errors import RefusedError
from jobs.keys import SCHEDULER, SCHEDULES, ScheduleKeys
from jobs.schedule import (
    FIELDS,
    MAX_SCHEDULE_NAME,
    REMEDY,
    NewSchedule,
    Outcome,
    Run,
    Schedule,
    check_schedule_name,
    no_schedule,
    parse_schedule,
)

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["MAX_PROMPTS_BYTES", "Schedules"]

MAX_PROMPTS_BYTES = 64 * 2**20
"""Of a stored file, compressed."""
MAX_INFO_BYTES = 2**20
MAX_ORDER_BYTES = 3 * 2**20
MAX_OUTCOME_BYTES = 4096
KEPT_RUNS = 20
PIECE_BYTES = 4 * 2**20
UPLOAD_S = 900
MOST_CRONS = 1000

READ = """
-- A schedule, unless it is larger than any of ours.  KEYS: info, runs.
-- ARGV: most bytes of the fields, runs wanted, most bytes of one, then fields.  Returns {values, runs} or nothing.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local size = 0
for i = 4, #ARGV do size = size + redis.call('HSTRLEN', KEYS[1], ARGV[i]) end
if size > tonumber(ARGV[1]) then return redis.error_reply('FOREIGN it has ' .. size .. ' bytes') end
local runs = {}
if tonumber(ARGV[2]) > 0 then
  for _, run in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[2] - 1)) do
    if #run <= tonumber(ARGV[3]) then runs[#runs + 1] = run end
  end
end
return {redis.call('HMGET', KEYS[1], unpack(ARGV, 4)), runs}
"""

NAMES = """
-- The names of schedules; what can be none is removed.  KEYS: the set.  ARGV: most characters of a name.
if redis.replicate_commands then redis.replicate_commands() end
local names = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if #name <= tonumber(ARGV[1]) and name:find('^%w[%w_-]*$') then names[#names + 1] = name
  else redis.call('SREM', KEYS[1], name) end
end
return names
"""

ADD = """
-- Make a schedule of a name that is free, or take the place of the one that has it; the list of its runs stays.
-- KEYS: info, the set, prompts, the uploaded file.  ARGV: name, 1 to replace, 1 with a file, then fields and values.
if ARGV[2] == '0' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[4]) == 0 then return -1 end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if ARGV[3] == '1' then
  redis.call('RENAME', KEYS[4], KEYS[3])
  redis.call('PERSIST', KEYS[3])
end
return 1
"""

BEGIN = f"""
-- A run begins, or is passed over, unless somebody else has seen to it.  KEYS: info, runs.
-- ARGV: id of the schedule, 'next' or 'asked', when it was due, when the next is due, the run or nothing, what became
-- of it or nothing.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return 0 end
if ARGV[5] ~= '' and redis.call('HSETNX', KEYS[1], 'run', ARGV[5]) == 0 then return 0 end
if ARGV[2] == 'next' then redis.call('HSET', KEYS[1], 'next', ARGV[4]) else redis.call('HDEL', KEYS[1], 'asked') end
if ARGV[6] ~= '' then
  redis.call('LPUSH', KEYS[2], ARGV[6])
  redis.call('LTRIM', KEYS[2], 0, {KEPT_RUNS - 1})
end
return 1
"""

SWAP = f"""
-- The run that has begun goes on, or ends.  KEYS: info, runs.
-- ARGV: the run as it is, as it is to be or nothing, what became of it or nothing.
-- A client that lost the reply sends it again: what is as it is to be stays so.
local run = redis.call('HGET', KEYS[1], 'run')
if run and run == ARGV[2] then return 1 end
if run ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], 'run') else redis.call('HSET', KEYS[1], 'run', ARGV[2]) end
if ARGV[3] ~= '' then
  redis.call('LPUSH', KEYS[2], ARGV[3])
  redis.call('LTRIM', KEYS[2], 0, {KEPT_RUNS - 1})
end
return 1
"""

NOTE = f"""
-- A run that somebody made by hand.  KEYS: info, runs.  ARGV: id of the schedule, what became of it.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], 0, {KEPT_RUNS - 1})
return 1
"""

ASK = """
-- Ask the scheduler for a run now; asked twice before it begins, it is one.  KEYS: info.  ARGV: id, now.
-- Returns when it is due, in seconds that no other run that was asked for has.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return false end
local asked = redis.call('HGET', KEYS[1], 'asked')
if asked then return asked end
local due = math.max(tonumber(ARGV[2]), (redis.call('HGET', KEYS[1], 'last_asked') or 0) + 1)
redis.call('HSET', KEYS[1], 'asked', string.format('%.0f', due), 'last_asked', string.format('%.0f', due))
return string.format('%.0f', due)
"""


class Schedules:
    """The schedules in one Redis; ``connection`` replies with bytes."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._crons: dict[tuple[str, str], Cron] = {}
        self._read = connection.register_script(READ)
        self._names = connection.register_script(NAMES)
        self._add = connection.register_script(ADD)
        self._begin = connection.register_script(BEGIN)
        self._swap = connection.register_script(SWAP)
        self._note = connection.register_script(NOTE)
        self._ask = connection.register_script(ASK)

    # --- what there is ---

    def names(self) -> list[str]:
        """All names, sorted.

        Raises:
            RefusedError: somebody put something else where they are kept.
        """
        with refusing("the list of schedules"):
            return sorted(name.decode() for name in self._names(keys=[SCHEDULES], args=[MAX_SCHEDULE_NAME]))

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

    def begun(self) -> list[str]:
        """Names of the schedules that have begun a run."""
        names = self.names()
        with self._connection.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hexists(ScheduleKeys(name).info, "run")
            found = replies(pipe) if names else []
        return [name for name, begun in zip(names, found, strict=True) if begun is True]

    def _cron(self, expression: str, zone: str) -> Cron:
        """Checked once: a scheduler reads all schedules every second."""
        found = self._crons.get((expression, zone))
        if found is None:
            if len(self._crons) >= MOST_CRONS:
                self._crons.clear()
            found = self._crons[expression, zone] = Cron(expression, zone)
        return found

    def order(self, schedule: Schedule) -> dict[str, Any]:
        """What was said of each of a schedule's batches.

        Raises:
            ScheduleNotFoundError: it was replaced or removed meanwhile.
            RefusedError: it is not what :meth:`add` wrote.
        """
        keys = ScheduleKeys(schedule.name)
        with refusing(f"schedule '{schedule.name}'"):
            found = self._read(keys=[keys.info, keys.runs], args=[MAX_ORDER_BYTES, 0, 0, "id", "order"])
        if not found or found[0][0] != schedule.id.encode():
            raise no_schedule(schedule.name)
        try:
            order = orjson.loads(found[0][1] or b"")
        except orjson.JSONDecodeError:
            order = None
        if not isinstance(order, dict):
            raise RefusedError(f"what Redis keeps of schedule '{schedule.name}' is damaged: {REMEDY}")
        return order

    def prompts(self, schedule: Schedule) -> Iterator[bytes]:
        """The file that is stored with a schedule, compressed, piece by piece.

        Raises:
            RefusedError: there is none, or something larger than any.
        """
        key = ScheduleKeys(schedule.name).prompts
        with refusing(f"schedule '{schedule.name}'"):
            size = self._connection.strlen(key)
        if not 0 < size <= MAX_PROMPTS_BYTES:
            raise RefusedError(f"the prompts of schedule '{schedule.name}' are not in Redis any more: {REMEDY}")
        for start in range(0, size, PIECE_BYTES):
            yield cast("bytes", self._connection.getrange(key, start, start + PIECE_BYTES - 1))

    def active_scheduler(self) -> str | None:
        """The name of the scheduler that is active; None: there is none."""
        try:
            with refusing("the scheduler"):
                said = cast("bytes", self._connection.getrange(SCHEDULER, 0, 1024))
            return str(orjson.loads(said or b"null")["name"])
        except (RefusedError, orjson.JSONDecodeError, TypeError, LookupError):
            return None

    # --- what users do ---

    def add(self, new: NewSchedule, prompts: bytes | None, *, replace: bool, now: float) -> Schedule:
        """Make a schedule, with a stored file unless it has a path; ``now`` is by the server's clock.

        Raises:
            RefusedError: the name is taken and is not to be replaced; or the order is too large.
        """
        keys, incarnation = ScheduleKeys(check_schedule_name(new.name)), uuid.uuid4().hex
        order = orjson.dumps(dict(new.order))
        if len(order) > MAX_ORDER_BYTES:
            raise RefusedError(
                f"the batch's defaults and metadata have {len(order)} bytes: give in the lines what is so long"
            )
        fields: dict[str, Any] = {
            "id": incarnation,
            "cron": new.cron.expression,
            "zone": new.cron.zone,
            "order": order,
            "source": new.source[:1000],
            "path": new.path or "",
            "lines": new.lines,
            "bytes": len(prompts or b""),
            "models": orjson.dumps(list(new.models)),
            "catch_up": int(new.catch_up),
            "allow_overlap": int(new.allow_overlap),
            "created_at": repr(now),
            "next": new.cron.after(now),
        }
        if prompts is not None:
            self._connection.set(keys.upload(incarnation), prompts, ex=UPLOAD_S)
        flat = [item for pair in fields.items() for item in pair]
        arguments: list[Any] = [new.name, int(replace), int(prompts is not None), *flat]
        with refusing("the list of schedules"):
            added = self._add(keys=[keys.info, SCHEDULES, keys.prompts, keys.upload(incarnation)], args=arguments)
        if added != 1:
            self._connection.unlink(keys.upload(incarnation))
            raise RefusedError(
                f"there is a schedule '{new.name}' already: --replace takes its place, or choose another name"
                if added == 0
                else f"the upload of the file took longer than {UPLOAD_S} s: give its path, with --read-at-fire"
            )
        return self.get(new.name)

    def remove(self, name: str) -> bool:
        """Remove a schedule; its batches stay. False: there was none."""
        keys = ScheduleKeys(check_schedule_name(name))
        with self._connection.pipeline() as pipe:
            pipe.srem(SCHEDULES, name)
            pipe.unlink(keys.info, keys.runs, keys.prompts)
            listed, removed = replies(pipe)
        return bool(listed == 1 or removed)

    def ask(self, schedule: Schedule, now: float) -> int:
        """Ask the scheduler for a run now; when it is due, by which its outcome is known.

        Raises:
            ScheduleNotFoundError: it was replaced or removed meanwhile.
        """
        due = self._ask(keys=[ScheduleKeys(schedule.name).info], args=[schedule.id, int(now)])
        if due is None:
            raise no_schedule(schedule.name)
        return int(cast("bytes", due))

    def note(self, schedule: Schedule, outcome: Outcome) -> bool:
        """Record a run that did not come from the scheduler. False: the schedule is gone."""
        keys = ScheduleKeys(schedule.name)
        return bool(self._note(keys=[keys.info, keys.runs], args=[schedule.id, outcome.encoded()]))

    # --- the steps of a run ---

    def begin(self, schedule: Schedule, run: Run, following: int) -> bool:
        """A run begins, and the next is due at ``following``. False: it was seen to already, or another has begun."""
        due = schedule.asked if run.asked else schedule.next
        return self._seen_to(schedule, run.asked, due, following, run.encoded(), b"")

    def pass_over(self, schedule: Schedule, outcome: Outcome, following: int) -> bool:
        """The run that was due does not begin. False: it was seen to already."""
        due = schedule.asked if outcome.asked else schedule.next
        return self._seen_to(schedule, outcome.asked, due, following, b"", outcome.encoded())

    def _seen_to(
        self, schedule: Schedule, asked: bool, due: int | None, following: int, run: bytes, outcome: bytes
    ) -> bool:
        keys = ScheduleKeys(schedule.name)
        arguments = [schedule.id, "asked" if asked else "next", due or "", following, run, outcome]
        return bool(self._begin(keys=[keys.info, keys.runs], args=arguments))

    def go_on(self, name: str, run: Run, changed: Run) -> bool:
        """A run goes on as ``changed``. False: it is another's, or over."""
        return self._swapped(name, run, changed.encoded(), b"")

    def record(self, name: str, run: Run, outcome: Outcome) -> bool:
        """A run is over. False: it was recorded already."""
        return self._swapped(name, run, b"", outcome.encoded())

    def _swapped(self, name: str, run: Run, changed: bytes, outcome: bytes) -> bool:
        keys = ScheduleKeys(name)
        return bool(self._swap(keys=[keys.info, keys.runs], args=[run.encoded(), changed, outcome]))


def _parsed(name: str, reply: Any, cron: Callable[[str, str], Cron]) -> Schedule | RefusedError:
    """The schedule of READ's reply, or the error that says that it is none."""
    if reply is None:
        return no_schedule(name)
    if isinstance(reply, Exception):
        return RefusedError(f"what Redis keeps of schedule '{name}' is damaged ({reply!s:.200}): {REMEDY}")
    try:
        values, runs = reply
        return parse_schedule(name, values, runs, cron)
    except RefusedError as error:
        return error
