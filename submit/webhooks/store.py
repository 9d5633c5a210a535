"""Batches whose end is to be told to a webhook, in Redis: claimed by one deliverer at a time, tried again, given up.

A claim is a lease: the batch's place in the list is put off until its end. Whoever notes what came of a try shows the
place that the claim gave it; a batch that was retried, purged or claimed by another meanwhile has none or another.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import Any, cast

from jobs.delivery import MAX_URL_LENGTH
from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.store.keys import PREFIX, WEBHOOKS, BatchKeys
from jobs.store.store import Store

__all__ = ["LEASE_S", "Claim", "claim_due", "due", "settle"]

log = logging.getLogger("promptmill.jobs")

LEASE_S = 120.0
"""A try that has not been noted for so long was its deliverer's last: another makes the next."""
MOST_LOOKED_AT = 100
RESENT_S = 60
"""A client that lost a reply has sent its command again by then."""

CLAIM = """
-- Claim the first due webhook; what is listed and is none is taken off.
-- A client that lost the reply sends it again: it gets the claim that it has.
-- KEYS: webhooks, this claim's.  ARGV: now, the lease's end, prefix of the batches' hashes, most to look at, most bytes
-- of a URL, seconds in which a client sends again.
-- Returns {entries taken off}, and where one was claimed its batch, place, webhook id, tries and URL.
local removed = {}
local function claimed(id)
  local found = redis.call('HMGET', ARGV[3] .. id, 'webhook_id', 'webhook_tries', 'webhook')
  return {removed, id, redis.call('ZSCORE', KEYS[1], id), unpack(found)}
end
local before = redis.call('GET', KEYS[2])
if before and redis.call('ZSCORE', KEYS[1], before) then return claimed(before) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[4])) do
  local info, wanted = ARGV[3] .. id, false
  if #id == 28 and id:find('^b_[0-9A-Z]+$') and redis.call('TYPE', info).ok == 'hash' then
    local status = redis.call('HGET', info, 'status')
    wanted = status == 'completed' or status == 'cancelled' or status == 'expired'
    local size = redis.call('HSTRLEN', info, 'webhook')
    wanted = wanted and size > 0 and size <= tonumber(ARGV[5]) and redis.call('HSTRLEN', info, status .. '_at') < 40
    if wanted then
      redis.call('ZADD', KEYS[1], ARGV[2], id)
      local name = 'msg_' .. id:sub(3) .. '_' .. (redis.call('HGET', info, status .. '_at') or ''):gsub('[^0-9]', '')
      local tries = 0
      if redis.call('HGET', info, 'webhook_id') == name then
        tries = tonumber(redis.call('HGET', info, 'webhook_tries') or '') or 0
      end
      tries = string.format('%d', math.max(0, math.min(tries, 1000)) + 1)
      redis.call('HSET', info, 'webhook_id', name, 'webhook_tries', tries, 'webhook_state', 'waiting')
      redis.call('SET', KEYS[2], id, 'EX', ARGV[6])
      return claimed(id)
    end
  end
  redis.call('ZREM', KEYS[1], id)
  removed[#removed + 1] = id:sub(1, 80)
end
return {removed}
"""

SETTLE = """
-- Note what came of a try, unless the webhook is no longer this claim's.
-- KEYS: webhooks, info.  ARGV: batch id, the claim's place, state, answer, time of the next try or nothing.
local place = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not place or tonumber(place) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[5] == '' or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[5], ARGV[1])
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[2], 'webhook_state', ARGV[3], 'webhook_answer', ARGV[4], 'webhook_next', ARGV[5])
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A webhook that this process alone may call until its lease is over. ``tries`` counts the one that it is for."""

    batch_id: str
    place: bytes
    webhook_id: str
    tries: int
    url: str


def due(store: Store) -> int:
    """How many webhooks are to be called now.

    Raises:
        RefusedError: somebody put something else where they are listed.
    """
    with refusing(WEBHOOKS):
        return store.connection.zcount(WEBHOOKS, "-inf", store.server_time())


def claim_due(store: Store) -> Claim | None:
    """Claim the first webhook that is due; None: there is none. What is listed and is none is no longer.

    Raises:
        RefusedError: somebody put something else where they are listed.
    """
    now, script = store.server_time(), store.connection.register_script(CLAIM)
    keys = [WEBHOOKS, f"{WEBHOOKS}:claim:{uuid.uuid4().hex}"]
    limits = [MOST_LOOKED_AT, MAX_URL_LENGTH, RESENT_S]
    with refusing(WEBHOOKS):
        reply = script(keys=keys, args=[repr(now), f"{now + LEASE_S:.6f}", f"{PREFIX}b:", *limits])
    removed, *found = cast("list[Any]", reply)
    for entry in removed:
        log.warning("%.80r has no webhook to call", entry, extra={"action": "refuse_webhook"})
    if not found:
        return None
    batch_id, place, name, tries, url = found
    return Claim(batch_id.decode(), place, name.decode(), int(tries), url.decode(errors="replace"))


def settle(store: Store, claim: Claim, state: str, answer: str, *, next_at: float | None = None) -> bool:
    """Note what came of a try, and when the next is (None: there is none). False: it is no longer this claim's, as when
    the batch was retried meanwhile, and nothing was changed."""
    following = "" if next_at is None else f"{next_at:.6f}"
    arguments: list[Any] = [claim.batch_id, claim.place, state, answer, following]
    try:
        with refusing(f"the webhook of {claim.batch_id}"):
            script = store.connection.register_script(SETTLE)
            return bool(script(keys=[WEBHOOKS, BatchKeys(claim.batch_id).info], args=arguments))
    except RefusedError as error:
        log.warning("%s", error, extra={"action": "refuse_webhook"})
        return False
