"""Lists of batches to which something happens at a time of Redis' clock; whoever uses Redis sees to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.store.store import Store

__all__ = ["due"]

log = logging.getLogger("promptmill.jobs")


def due(store: Store, listed: str, act: Callable[[str], bool]) -> list[str]:
    """Do what is due to the batches of the sorted set ``listed``; the ids of those to which it was done.

    ``act`` takes them off the list. What is listed and is no batch is taken off here: it must not stop the others.
    """
    try:
        with refusing(listed):
            found = cast("list[bytes]", store.connection.zrangebyscore(listed, "-inf", store.server_time()))
    except RefusedError as error:
        log.warning("nothing of %s happens: %s; delete that key", listed, error, extra={"action": "refuse_list"})
        return []
    done = []
    for item in found:
        try:
            batch_id = item.decode()
            if act(batch_id):
                done.append(batch_id)
        except (RefusedError, ValueError) as error:
            message = "%.80r of %s is refused: %s"
            log.warning(message, item, listed, error, extra={"action": "refuse_list"})
            store.connection.zrem(listed, item)
    return done
