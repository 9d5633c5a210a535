"""Webhooks on a batch's end: signed as the scheme's own library checks it, retried, and never told by two at once."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator

import orjson
import pytest
from redis import Redis
from redis.exceptions import ConnectionError, NoPermissionError
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.batch import Batch
from jobs.delivery import webhook_id
from jobs.errors import RefusedError
from jobs.store.cancel import cancel, expire_due
from jobs.store.keys import EXPIRING, WEBHOOKS, BatchKeys
from jobs.store.retry import retry
from jobs.store.store import Store
from submit.status.batch_view import BatchView
from submit.status.waiting import BatchOutlook
from submit.webhooks.http import HttpAnswer
from submit.webhooks.sender import RETRY_AFTER_S, WebhookSender, deliver_due
from submit.webhooks.signature import Signer
from submit.webhooks.store import LEASE_S, claim_due, due, settle
from tests.pool import make_batch, prompts, work
from tests.receiver import Receiver, receiving
from tests.waiting import until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwc2VjcmV0IQ=="
OTHER = "whsec_b2xkLXNlY3JldC1vZi10aGUtd2ViaG9vay1yZWNlaXZlcg=="
SIGNER = Signer(SECRET)
HERE = ["127.0.0.1"]
"""Receivers of tests are on this machine, which is not called unless it is named."""


class Clock:
    """The server's clock, as far ahead as a test sets it."""

    def __init__(self) -> None:
        self.ahead = 1.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(server_url: str, clock: Clock) -> Iterator[Store]:
    """The storage layer, with a server's clock that a test may put forward."""
    with Redis.from_url(server_url) as connection:
        yield Store(connection, server_time=clock)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def done_batch(store: Store, url: str, **order: object) -> str:
    """A batch that is done, and whose webhook is due."""
    batch_id = make_batch(store, prompts(2), webhook=url, **order)
    work(store, batch_id)
    return batch_id


def shown(store: Store, batch_id: str) -> str:
    """What `status` says of the webhook."""
    lines = BatchView(store.server_time(), BatchOutlook(store.batch(batch_id), frozenset(), [])).text()
    [line] = [line for line in lines if line.startswith("webhook")]
    return line.removeprefix("webhook").strip()


def ids(receiver: Receiver) -> list[str]:
    return [request.headers["webhook-id"] for request in receiver.received]


def test_an_end_is_told_once_and_the_schemes_library_accepts_it(store: Store, receiver: Receiver) -> None:
    """The body is the batch as `status --json` gives it; a changed body is not accepted."""
    batch_id = done_batch(store, receiver.url, name="nightly", metadata={"project": "a"})
    assert deliver_due(store, SIGNER, hosts=HERE) == 1
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    [request] = receiver.received
    event = Webhook(SECRET).verify(request.body, request.headers)
    assert event["type"] == "batch.completed"
    batch = store.batch(batch_id).as_dict(0.0)
    del batch["webhook"]
    assert event["data"] == orjson.loads(orjson.dumps(batch))
    assert event["data"]["metadata"] == {"project": "a"}
    assert event["timestamp"] == event["data"]["completed_at"]
    assert request.path == "/hooks/token-in-path?key=in-query"
    assert request.headers["content-type"] == "application/json"
    assert shown(store, batch_id) == f"http://127.0.0.1:{receiver.port}: delivered after 1 try, HTTP 204"
    assert store.connection.zcard(WEBHOOKS) == 0
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body + b" ", request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(request.body, request.headers)


def test_receivers_may_know_the_old_or_the_new_secret(store: Store, receiver: Receiver) -> None:
    """Two secrets are two signatures, so that they can be changed without a gap."""
    done_batch(store, receiver.url)
    deliver_due(store, Signer(f"{SECRET} {OTHER}"), hosts=HERE)
    [request] = receiver.received
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(request.body, request.headers)["type"] == "batch.completed"


def test_a_failing_receiver_is_tried_again_with_the_same_id(
    store: Store, receiver: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """After the pauses of the scheme, and then no more once it took it. Neither path nor query is in any log."""
    caplog.set_level(logging.DEBUG)
    receiver.answers = [(500, {}), (302, {"Location": receiver.url}), (404, {})]
    batch_id = done_batch(store, receiver.url)
    for tries, pause in enumerate(RETRY_AFTER_S[:3], start=1):
        assert deliver_due(store, SIGNER, hosts=HERE, jitter=lambda: 0.0) == 1
        assert len(receiver.received) == tries
        clock.ahead += pause - 1.0
        assert deliver_due(store, SIGNER, hosts=HERE) == 0
        clock.ahead += 2.0
    assert shown(store, batch_id).endswith(": waiting after 3 tries, HTTP 404; tried again in 0s")
    assert deliver_due(store, SIGNER, hosts=HERE) == 1
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    assert len(set(ids(receiver))) == 1
    assert len(receiver.received) == 4
    assert "delivered after 4 tries" in shown(store, batch_id)
    assert "HTTP 500; trying again in 5 s" in caplog.text
    assert "token" not in caplog.text
    assert "key=" not in caplog.text


def test_it_is_given_up_after_the_last_pause(store: Store, receiver: Receiver, clock: Clock) -> None:
    """Ten tries over three days, which the batch remembers."""
    receiver.answers = [(503, {})] * 20
    batch_id = done_batch(store, receiver.url)
    for pause in (*RETRY_AFTER_S, 86400.0, 86400.0):
        deliver_due(store, SIGNER, hosts=HERE)
        clock.ahead += pause * 1.1 + 1.0
    assert len(receiver.received) == len(RETRY_AFTER_S) + 1
    assert shown(store, batch_id).endswith(": given up after 10 tries, HTTP 503")
    assert store.connection.zcard(WEBHOOKS) == 0


@pytest.mark.parametrize("value", ["3600", "date"])
def test_a_receiver_may_ask_for_a_longer_pause(store: Store, receiver: Receiver, clock: Clock, value: str) -> None:
    """Retry-After is seconds or a date; a shorter pause than the scheme's is not taken."""
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))
    receiver.answers = [(429, {"Retry-After": value if value == "3600" else later})]
    done_batch(store, receiver.url)
    deliver_due(store, SIGNER, hosts=HERE)
    clock.ahead += 3500
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    clock.ahead += 110
    assert deliver_due(store, SIGNER, hosts=HERE) == 1


def test_410_is_the_end_of_it(store: Store, receiver: Receiver, clock: Clock) -> None:
    """A receiver that wants nothing more gets nothing more."""
    receiver.answers = [(410, {})]
    batch_id = done_batch(store, receiver.url)
    deliver_due(store, SIGNER, hosts=HERE)
    clock.ahead += 10 * 86400
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    assert shown(store, batch_id).endswith(": gone after 1 try, HTTP 410")


def test_cancelled_and_expired_are_ends_too(store: Store, receiver: Receiver) -> None:
    """Each with its type, and the batch as it then is."""
    cancelled = make_batch(store, prompts(2), webhook=receiver.url)
    cancel(store, cancelled)
    expired = make_batch(store, prompts(2), webhook=receiver.url, expires_in=1000)
    store.connection.hset(BatchKeys(expired).info, "expires_at", 1.0)
    store.connection.zadd(EXPIRING, {expired: 1.0})
    assert expire_due(store) == [expired]
    assert deliver_due(store, SIGNER, hosts=HERE) == 2
    told = [orjson.loads(request.body) for request in receiver.received]
    assert {event["type"]: event["data"]["id"] for event in told} == {
        "batch.cancelled": cancelled,
        "batch.expired": expired,
    }
    assert {event["data"]["request_counts"]["failed"] for event in told} == {2}


def test_a_batch_that_is_retried_is_told_of_again(store: Store, receiver: Receiver) -> None:
    """While it runs nothing is told; its next end has an id of its own, and its tries begin at one."""
    receiver.answers = [(204, {}), (500, {})]
    batch_id = make_batch(store, prompts(2), webhook=receiver.url)
    cancel(store, batch_id)
    deliver_due(store, SIGNER, hosts=HERE)
    retry(store, batch_id)
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    assert shown(store, batch_id) == f"http://127.0.0.1:{receiver.port}, when the batch is done"
    work(store, batch_id)
    assert shown(store, batch_id).endswith(": waiting for `promptmill scheduler` to send it")
    deliver_due(store, SIGNER, hosts=HERE)
    assert "waiting after 1 try, HTTP 500" in shown(store, batch_id)
    assert [orjson.loads(request.body)["type"] for request in receiver.received] == [
        "batch.cancelled",
        "batch.completed",
    ]
    assert len(set(ids(receiver))) == 2


def test_a_retry_while_it_is_told_leaves_the_next_end_alone(store: Store, clock: Clock) -> None:
    """What came of the old try is noted nowhere: the new end is told, however the old one went."""
    batch_id = make_batch(store, prompts(1), webhook="http://a.example/")
    cancel(store, batch_id)
    told: list[str] = []

    def send(_url: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        told.append(headers["webhook-id"])
        if len(told) == 1:  # meanwhile
            retry(store, batch_id)
            work(store, batch_id)
        return HttpAnswer(204, "HTTP 204")

    assert deliver_due(store, SIGNER, send=send) == 2
    assert len(set(told)) == 2
    assert store.batch(batch_id).delivery is not None
    assert "delivered after 1 try" in shown(store, batch_id)


def test_an_end_that_is_over_when_it_is_read_is_not_told(store: Store, receiver: Receiver, clock: Clock) -> None:
    """The batch was retried and ended anew between the claim and the look at it: that end is told, under its id."""
    batch_id = make_batch(store, prompts(1), webhook=receiver.url)
    cancel(store, batch_id)
    old = webhook_id(batch_id, repr(store.batch(batch_id).ended_at))

    class Racing(Store):
        raced = False

        def batch(self, wanted: str) -> Batch:
            if not self.raced:
                self.raced = True
                retry(self, wanted)
                work(self, wanted)
            return super().batch(wanted)

    assert deliver_due(Racing(store.connection, server_time=clock), SIGNER, hosts=HERE) == 1
    [request] = receiver.received
    assert orjson.loads(request.body)["type"] == "batch.completed"
    assert request.headers["webhook-id"] != old
    assert "delivered after 1 try" in shown(store, batch_id)


def test_two_deliverers_never_call_at_once(store: Store, receiver: Receiver) -> None:
    """While one waits for its answer the other finds nothing due."""
    receiver.release.clear()
    done_batch(store, receiver.url)
    first = threading.Thread(target=deliver_due, args=(store, SIGNER), kwargs={"hosts": HERE})
    first.start()
    until(lambda: receiver.received, "it was called")
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    receiver.release.set()
    first.join()
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    assert len(receiver.received) == 1


def test_what_a_dead_deliverer_sent_is_sent_again_under_its_id(store: Store, receiver: Receiver, clock: Clock) -> None:
    """It died after the answer and before the note of it: the receiver knows the id."""
    batch_id = done_batch(store, receiver.url)

    class DeathError(Exception):
        pass

    def send(url: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        raise DeathError(headers["webhook-id"])

    with pytest.raises(DeathError) as death:
        deliver_due(store, SIGNER, send=send)
    assert deliver_due(store, SIGNER, hosts=HERE) == 0
    clock.ahead += LEASE_S + 1
    assert deliver_due(store, SIGNER, hosts=HERE) == 1
    assert ids(receiver) == [str(death.value)]
    assert "delivered after 2 tries" in shown(store, batch_id)


def test_one_that_kills_its_deliverers_is_given_up(store: Store, clock: Clock) -> None:
    """Tries are counted when they begin."""
    batch_id = done_batch(store, "http://a.example/")
    for _ in range(len(RETRY_AFTER_S) + 1):
        assert claim_due(store) is not None
        clock.ahead += LEASE_S + 1
    assert deliver_due(store, SIGNER, send=lambda *_: pytest.fail("it was called")) == 0
    assert "given up" in shown(store, batch_id)


def test_a_claim_that_ran_out_notes_nothing(store: Store, clock: Clock) -> None:
    """Another has made the next try by then."""
    done_batch(store, "http://a.example/")
    old = claim_due(store)
    clock.ahead += LEASE_S + 1
    new = claim_due(store)
    assert old is not None
    assert new is not None
    assert (old.webhook_id, old.tries + 1) == (new.webhook_id, new.tries)
    assert not settle(store, old, "given up", "no")
    assert settle(store, new, "delivered", "HTTP 200")


def test_what_is_no_webhook_is_taken_off_and_stops_nobody(store: Store, receiver: Receiver) -> None:
    """Ids that are none, batches that are gone or run, hashes with other things in them, URLs that are none."""
    batch_id = done_batch(store, receiver.url)
    running = make_batch(store, prompts(1), webhook=receiver.url)
    purged = done_batch(store, receiver.url)
    store.connection.delete(BatchKeys(purged).info)
    listed = done_batch(store, receiver.url)
    store.connection.delete(BatchKeys(listed).info)
    store.connection.rpush(BatchKeys(listed).info, "no")
    local = done_batch(store, receiver.url)
    store.connection.hset(BatchKeys(local).info, "webhook", "file:///etc/passwd")
    long = done_batch(store, receiver.url)
    store.connection.hset(BatchKeys(long).info, "webhook", "http://" + "a" * 5000)
    damaged = done_batch(store, receiver.url)
    store.connection.hset(BatchKeys(damaged).info, mapping={"webhook_tries": "many", "total": "x"})
    strange = b"b_\xff\xfe" + b"x" * 10_000
    store.connection.zadd(WEBHOOKS, {strange: 1, "b_x": 1, running: 1, "b_" + "A" * 26: 1})
    assert deliver_due(store, SIGNER, hosts=HERE) == 1
    assert [orjson.loads(request.body)["data"]["id"] for request in receiver.received] == [batch_id]
    assert store.connection.zcard(WEBHOOKS) == 0
    assert shown(store, local).startswith("file://: refused, not called: the webhook does not begin with http")


def test_a_foreign_list_is_said(store: Store) -> None:
    """Whoever put something else there."""
    store.connection.set(WEBHOOKS, "no")
    with pytest.raises(RefusedError, match="webhooks"):
        deliver_due(store, SIGNER, hosts=HERE)
    with pytest.raises(RefusedError, match="webhooks"):
        due(store)


def test_only_hosts_that_are_allowed_are_called(store: Store, receiver: Receiver) -> None:
    """Where the deliverer has a list of them."""
    batch_id = done_batch(store, receiver.url)
    assert deliver_due(store, SIGNER, hosts=["*.example.com"]) == 0
    assert receiver.received == []
    assert "refused, not called: 127.0.0.1 is none of the hosts of --webhook-hosts" in shown(store, batch_id)
    done_batch(store, receiver.url)
    assert deliver_due(store, SIGNER, hosts=["*.example.com", "127.*"]) == 1


def test_this_machine_is_called_only_if_it_is_named(store: Store, receiver: Receiver) -> None:
    """Without a list of hosts: what listens here only is not for whoever may submit."""
    batch_id = done_batch(store, receiver.url)
    assert deliver_due(store, SIGNER) == 1
    assert receiver.received == []
    told = shown(store, batch_id)
    assert "refused, not called: 127.0.0.1 is local: name the host in --webhook-hosts" in told
    assert store.connection.zcard(WEBHOOKS) == 0


def test_a_claim_whose_reply_is_lost_is_given_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent again it is the same claim, and the same try; another claim is another."""
    for _ in range(2):
        done_batch(store, "http://a.example/")
    same = uuid.uuid4()
    with monkeypatch.context() as patch:
        patch.setattr("submit.webhooks.store.uuid.uuid4", lambda: same)
        first, again = claim_due(store), claim_due(store)
    other = claim_due(store)
    assert first == again
    assert first is not None
    assert other is not None
    assert (first.tries, other.tries) == (1, 1)
    assert first.batch_id != other.batch_id
    assert claim_due(store) is None
    assert settle(store, first, "delivered", "HTTP 200")


def test_what_redis_forbids_is_said_once(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage is not, for it passes."""
    monkeypatch.setattr("submit.webhooks.sender.OUTAGE_POLL_S", 0.01)
    troubles: list[Exception] = [NoPermissionError("this user has no permissions")] * 3 + [ConnectionError("out")] * 3
    done = threading.Event()

    class Troubled(WebhookSender):
        def _round(self) -> None:
            if troubles:
                raise troubles.pop()
            done.set()

    sender = Troubled(store, SECRET, deliverers=1, poll_s=0.01)
    sender.start()
    assert done.wait(20)
    sender.stop()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["webhooks wait, for Redis refuses a command: this user has no permissions"]


def test_a_sender_delivers_until_it_is_stopped(store: Store, receiver: Receiver) -> None:
    """Several at a time, each end once."""
    wanted = {done_batch(store, receiver.url) for _ in range(6)}
    senders = [WebhookSender(store, SECRET, hosts=HERE, poll_s=0.01) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        until(lambda: len(receiver.received) >= len(wanted) and not store.connection.zcard(WEBHOOKS), "all are told")
    finally:
        for sender in senders:
            sender.stop()
    assert sorted(orjson.loads(request.body)["data"]["id"] for request in receiver.received) == sorted(wanted)


def test_without_a_secret_nothing_is_sent_and_that_is_said_once(
    store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """And the webhook waits for a deliverer that has one."""
    done_batch(store, receiver.url)
    sender = WebhookSender(store, None, poll_s=0.01)
    rounds = threading.Semaphore(0)
    before = sender._round

    def counted() -> None:
        before()
        rounds.release()

    sender._round = counted  # type: ignore[method-assign]
    sender.start()
    for _ in range(3):
        assert rounds.acquire(timeout=20)
    sender.stop()
    assert receiver.received == []
    assert caplog.text.count("PROMPTMILL_WEBHOOK_SECRET") == 1
    assert deliver_due(store, SIGNER, hosts=HERE) == 1


def test_a_sender_outlives_trouble(store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is out, a list that is none of ours, and what nobody foresaw: it goes on afterwards."""
    monkeypatch.setattr("submit.webhooks.sender.OUTAGE_POLL_S", 0.01)
    done_batch(store, receiver.url)
    troubles: list[Exception] = [ConnectionError("out"), RefusedError("foreign"), KeyError("bug")]

    class Troubled(WebhookSender):
        def _round(self) -> None:
            if troubles:
                raise troubles.pop()
            super()._round()

    sender = Troubled(store, SECRET, hosts=HERE, deliverers=1, poll_s=0.01)
    sender.start()
    until(lambda: receiver.received, "it was told all the same")
    sender.stop()
    assert troubles == []


def test_a_url_that_cannot_be_called_is_refused_at_submission(store: Store) -> None:
    """Nothing is enqueued."""
    with pytest.raises(RefusedError, match="user or password"):
        make_batch(store, prompts(1), webhook="https://user:secret@example.com/")
    assert store.batches() == []
