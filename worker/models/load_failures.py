"""Models that cannot be loaded: when each is tried again, and from when on its lines fail.

A load may fail for a reason that passes: a disk that is not mounted yet, a hub that is away, memory that is another
program's. So the model is put off for a while and its shards go back, uncharged. Lines fail only when every live worker
of their queue has failed to load it several times, over a time that is the user's to choose.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import redis.exceptions

from jobs.app.worker_options import LOAD_PATIENCE_S
from jobs.errors import LineError, ModelLoadError
from jobs.redis.connect import replies
from jobs.shard import Group
from jobs.store.keys import worker_key

if TYPE_CHECKING:
    from worker.rq.worker import ShardWorker
    from worker.shards.claimed import HeldShard

log = logging.getLogger("promptmill.worker")

LEAST_TRIES = 3
PAUSES_S = (5.0, 15.0, 30.0, 60.0)
"""Before the next try, by how many have failed; shorter where the patience is."""
STREAK_S = 600.0
"""What failed longer ago than this, with no try since, says nothing about now."""
MOST_SEEN = 256
MAX_STATE_BYTES = 1 << 20
"""Far above what a worker publishes."""


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A model that could not be loaded here: the last reason, how often in a row, when first and last, and when it is
    tried again. Times are of a steady clock, in seconds."""

    error: ModelLoadError
    tries: int
    since: float
    at: float
    again_at: float
    patience_s: float

    def given_up(self, now: float) -> bool:
        """Whether it was tried often and long enough, and lately."""
        return self.tries >= LEAST_TRIES and self.at - self.since >= self.patience_s and now - self.at < STREAK_S


def failed_again(last: LoadFailure | None, error: ModelLoadError, now: float, patience_s: float) -> LoadFailure:
    """The failure at ``now`` of a model that failed before, or not."""
    if last is not None and now - last.at >= STREAK_S:
        last = None
    tries, since = (1, now) if last is None else (last.tries + 1, last.since)
    pause = PAUSES_S[min(tries, len(PAUSES_S)) - 1] * min(patience_s / LOAD_PATIENCE_S, 1.0)
    return LoadFailure(error, tries, since, now, now + pause, patience_s)


class LoadFailures:
    """Decides what becomes of a shard whose model could not be loaded. Thread: preparer.

    ``put_off(group, seconds)`` has nothing taken for a model for a while, and says whether that is news.
    """

    def __init__(
        self,
        rq: ShardWorker,
        put_off: Callable[[Group, float], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rq, self._put_off, self._clock = rq, put_off, clock
        self._seen: dict[tuple[str, float | None], float] = {}

    def verdict(self, held: HeldShard, failure: LoadFailure | None) -> LineError | None:
        """With what the lines of a shard are to fail whose model cannot be loaded, as far as is known by ``failure``;
        None where the shard should wait, and its model is put off."""
        now = self._clock()
        seen_at = self._first_seen(held, now)
        if failure is None:
            return None  # it was loaded meanwhile
        if failure.given_up(now) and failure.at >= seen_at and self._all_gave_up(held):
            tried = f"tried {LEAST_TRIES} times or more over {failure.at - failure.since:.0f} s on each live worker"
            remedy = f"when that is mended, `promptmill retry {held.batch.id}` runs the line"
            return LineError(failure.error.code, failure.error.field, f"{failure.error}; {tried}: {remedy}")
        pause = max(failure.again_at - now, 0.0)
        if self._put_off(held.group, pause):
            message = "%s cannot be used now: %s; it is tried again in %.0f s"
            log.warning(message, held.group.key, failure.error, pause, extra={"action": "model_put_off"})
        return None

    def _first_seen(self, held: HeldShard, now: float) -> float:
        """When this batch first wanted a model that cannot be loaded: one that comes, or is retried, while the model is
        given up has it tried once more before its lines fail."""
        if len(self._seen) >= MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return self._seen.setdefault((held.batch.id, held.batch.times.get("retried")), now)

    def _all_gave_up(self, held: HeldShard) -> bool:
        """Whether no other live worker may load it yet; where Redis cannot say, one may."""
        try:
            others = self._rq.served_by(held.queue).keys() - {self._rq.name}
            with self._rq.connection.pipeline(transaction=False) as pipe:
                for name in others:
                    pipe.getrange(worker_key(name), 0, MAX_STATE_BYTES)
                return all(_gives_up(state, held.group) for state in replies(pipe))
        except redis.exceptions.RedisError:
            return False


def published_failures(failed: Mapping[Group, LoadFailure], now: float) -> list[dict[str, Any]]:
    """What a worker publishes of the models that it cannot load, for people and for the other workers."""
    return [
        {
            "model": group.key,
            "reason": str(failure.error)[:300],
            "retry_s": round(max(failure.again_at - now, 0.0), 1),
            "given_up": failure.given_up(now),
        }
        for group, failure in failed.items()
    ]


def _gives_up(state: Any, group: Group) -> bool:
    """Whether a worker that published this state has given up a model."""
    try:
        failing = orjson.loads(state)["failing"]
        return any(entry["model"] == group.key and entry["given_up"] is True for entry in failing)
    except (LookupError, TypeError, ValueError):
        return False
