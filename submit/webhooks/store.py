"""Batches whose end is to be delivered to a webhook, in Redis: claimed by one sender at a time, tried again, given up.

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
from jobs.store.steps import step
from jobs.store.store import Store

log = logging.getLogger("promptmill.jobs")

LEASE_S = 120.0
"""A try that has not been noted for so long was its deliverer's last: another makes the next."""
MOST_LOOKED_AT = 100
RESENT_S = 60
"""A client that lost a reply has sent its command again by then."""

LUA = "submit.webhooks.lua"


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
    now, script = store.server_time(), step(store.connection, LUA, "claim")
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
            script = step(store.connection, LUA, "settle")
            return bool(script(keys=[WEBHOOKS, BatchKeys(claim.batch_id).info], args=arguments))
    except RefusedError as error:
        log.warning("%s", error, extra={"action": "refuse_webhook"})
        return False
