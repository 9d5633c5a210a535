"""Delivers the ends of batches to webhooks, signed by the scheme of Standard Webhooks (https://www.standardwebhooks.com).

Each end is delivered until the receiver answers 2xx, which may be more than once: a sender that dies after the answer
and before it has noted it is followed by another, which sends the same ``webhook-id`` again. Receivers remember those.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson

from jobs.batch import Batch, timestamp
from jobs.delivery import check_webhook, origin
from jobs.errors import RefusedError
from submit.webhooks.http import TIMEOUT_S, HttpAnswer, post
from submit.webhooks.signature import REMEDY, Signer
from submit.webhooks.store import Claim, claim_due, due, settle

if TYPE_CHECKING:
    from jobs.store.store import Store

log = logging.getLogger("promptmill.webhooks")

Post = Callable[[str, bytes, dict[str, str]], HttpAnswer]

RETRY_AFTER_S = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Pauses after the first, second... try, those that the scheme proposes: it is given up after three days."""
JITTER = 0.1
"""Each pause is longer by up to this part: what failed together is not tried again together."""
LONGEST_PAUSE_S = 86400.0
"""What a receiver may ask for by ``Retry-After``."""
POLL_S = 2.0
OUTAGE_POLL_S = 10.0
DELIVERERS = 4
"""Tries at a time: one slow receiver holds up no other."""


def deliver_due(
    store: Store,
    signer: Signer,
    *,
    hosts: Sequence[str] = (),
    send: Post | None = None,
    jitter: Callable[[], float] = random.random,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Make a try at each webhook that is due; how many were made.

    ``hosts`` are patterns such as ``*.example.com``: others are not called; without any all are but this machine.

    Raises:
        RefusedError: somebody put something else where they are listed.
    """
    tried, call = 0, send or partial(post, local=bool(hosts))
    while not stop() and (claim := claim_due(store)) is not None:
        batch = _batch_of(store, claim, hosts)
        if batch is not None:
            _note(store, claim, call(claim.url, *_message(batch, claim, signer, int(store.now()))), jitter)
            tried += 1
    return tried


def _batch_of(store: Store, claim: Claim, hosts: Sequence[str]) -> Batch | None:
    """The batch whose end is to be delivered; None where the webhook is not to be called, which is noted."""
    try:
        host = urlsplit(check_webhook(claim.url)).hostname or ""
        if hosts and not any(fnmatchcase(host, pattern.lower()) for pattern in hosts):
            raise RefusedError(f"{host} is none of the hosts of --webhook-hosts")
        batch = store.batch(claim.batch_id)
    except RefusedError as error:
        _end(store, claim, "refused", f"not called: {error}")
        return None
    if claim.tries > len(RETRY_AFTER_S) + 1:
        _end(store, claim, "given up", "its deliverers died")
        return None
    # One that was retried since it was claimed has not ended, or has ended anew: that end has a delivery of its own.
    return batch if batch.delivery is not None and batch.delivery.tries == claim.tries else None


def _message(batch: Batch, claim: Claim, signer: Signer, now: int) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a try."""
    ended_at = batch.ended_at or 0.0
    shown = {name: value for name, value in batch.as_dict(ended_at).items() if name != "webhook"}
    event = {"type": f"batch.{batch.status}", "timestamp": timestamp(ended_at), "data": shown}
    body = orjson.dumps(event, option=orjson.OPT_NON_STR_KEYS)
    return body, {
        "Content-Type": "application/json",
        "User-Agent": f"promptmill/{version('promptmill')}",
        "webhook-id": claim.webhook_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signer.sign(claim.webhook_id, now, body),
    }


def _note(store: Store, claim: Claim, answer: HttpAnswer, jitter: Callable[[], float]) -> None:
    if answer.status is not None and 200 <= answer.status < 300:
        settle(store, claim, "delivered", answer.text)
        message = "told %s of the end of %s"
        log.info(message, origin(claim.url), claim.batch_id, extra={"action": "webhook_delivered"})
    elif answer.refused:
        _end(store, claim, "refused", f"not called: {answer.text}")
    elif answer.status == HTTPStatus.GONE:
        _end(store, claim, "gone", answer.text)
    elif claim.tries > len(RETRY_AFTER_S):
        _end(store, claim, "given up", answer.text)
    else:
        pause = RETRY_AFTER_S[claim.tries - 1] * (1 + JITTER * jitter())
        if answer.retry_after_s is not None:
            pause = max(pause, min(answer.retry_after_s, LONGEST_PAUSE_S))
        settle(store, claim, "waiting", answer.text, next_at=store.server_time() + pause)
        message = "%s was not told of the end of %s: %s; trying again in %.0f s"
        arguments = (origin(claim.url), claim.batch_id, answer.text, pause)
        log.warning(message, *arguments, extra={"action": "webhook_failed"})


def _end(store: Store, claim: Claim, state: str, why: str) -> None:
    settle(store, claim, state, why)
    message = "%s is not told of the end of %s (%s): %s"
    log.warning(message, origin(claim.url), claim.batch_id, state, why, extra={"action": "webhook_ended"})


class WebhookSender:
    """Delivers as long as it runs, in threads of its own. Several processes may have one on the same Redis.

    ``secret`` are the signing secrets (see :class:`Signer`). Without any nothing is sent, which is logged once there is
    something to send: unsigned webhooks would teach receivers to believe anybody.

    Raises:
        RefusedError: a secret is none.
    """

    def __init__(
        self,
        store: Store,
        secret: str | None,
        *,
        hosts: Sequence[str] = (),
        deliverers: int = DELIVERERS,
        poll_s: float = POLL_S,
    ) -> None:
        self._store, self._hosts, self._poll_s = store, hosts, poll_s
        self._signer = Signer(secret) if secret else None
        self._stopped = threading.Event()
        self._said: set[str] = set()
        count = deliverers if self._signer is not None else 1
        self._threads = [
            threading.Thread(target=self._run, name=f"webhooks-{number}", daemon=True) for number in range(count)
        ]

    def start(self) -> None:
        """Begin to deliver."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float = TIMEOUT_S) -> None:
        """End after the tries under way, waiting so many seconds for them; another repeats what was cut off."""
        self._stopped.set()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self) -> None:
        from redis.exceptions import ConnectionError, RedisError, TimeoutError

        pause = self._poll_s
        while not self._stopped.wait(pause):
            pause = self._poll_s
            try:
                self._round()
            except (ConnectionError, TimeoutError) as error:
                pause = OUTAGE_POLL_S
                log.debug("webhooks wait for Redis: %s", error, extra={"action": "redis_out"})
            except RedisError as error:
                pause = OUTAGE_POLL_S
                self._say_once(f"webhooks wait, for Redis refuses a command: {error}")
            except RefusedError as error:
                self._say_once(f"{error}; delete that key")
            except Exception:
                # Whatever goes wrong with one, the others are called; its lease ends, and its tries are counted.
                log.exception("a webhook cannot be called", extra={"action": "webhook_failed"})

    def _round(self) -> None:
        if self._signer is not None:
            deliver_due(self._store, self._signer, hosts=self._hosts, stop=self._stopped.is_set)
        elif waiting := due(self._store):
            are = "webhook waits" if waiting == 1 else "webhooks wait"
            self._say_once(f"{waiting} {are}, and there is no secret to sign with: {REMEDY}")

    def _say_once(self, text: str) -> None:
        kind = text.lstrip("0123456789 ")[:40]
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s", text, extra={"action": "webhooks_wait"})
