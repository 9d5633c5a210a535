"""Requests that wait for their lines, without sockets: the desk, and what becomes of clients that go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest

from jobs.record_head import whole
from jobs.shard import Group
from jobs.store.keys import EXPIRING, REQUESTS, BatchKeys
from jobs.store.store import Store
from serve.access.access import Access
from serve.errors import ApiError
from serve.pool.models import Models
from serve.requests.answers import GONE, Janitor
from serve.requests.desk import Desk
from serve.requests.line import RequestLine
from serve.requests.routes import Completions, SentLine
from serve.requests.sender import Sender
from serve.requests.waiting import SentBatch, Waiter, Waiting
from serve.server import Every, ServerParts
from serve.settings import Limits, ServeSettings
from tests.pool import make_batch, prompts, work

T = TypeVar("T")
URL = "/v1/completions"
BODY = orjson.dumps({"model": "a/b", "prompt": "x"})


class Connection:
    """A client of one request: it stays until it is told to go."""

    def __init__(self, desk: Desk, *headers: tuple[bytes, bytes], body: bytes = BODY) -> None:
        self._body = body
        self._scope = {"method": "POST", "headers": headers, "access": Access(), "request_id": "req_1"}
        self._app = Completions(URL, desk)
        self._sent = False
        self.gone = asyncio.Event()
        self.said: list[dict[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    async def ask(self) -> dict[str, Any] | None:
        """The answer; None where the client went."""
        await self._app(self._scope, self._receive, self._send)
        return orjson.loads(self.said[-1]["body"]) if self.said else None


def at_a_desk(store: Store, scenario: Callable[[Desk], Awaitable[T]], **limits: Any) -> T:
    """Run a scenario with an open desk."""

    async def run() -> T:
        desk = Desk(store, Models(store.connection), Limits(**limits))
        desk.open()
        try:
            return await scenario(desk)
        finally:
            await asyncio.to_thread(desk.close)

    return asyncio.run(run())


async def sent(store: Store) -> str:
    """The id of the batch of requests, once it is live."""
    while not (found := await asyncio.to_thread(store.connection.zrange, REQUESTS, 0, -1)):
        await asyncio.sleep(0.01)
    return str(found[0].decode())  # type: ignore[index]


def test_a_client_that_goes_has_its_line_cancelled(store: Store) -> None:
    """Nobody computes for it; a record says why."""

    async def scenario(desk: Desk) -> dict[str, Any]:
        client = Connection(desk)
        asking = asyncio.create_task(client.ask())
        batch_id = await sent(store)
        client.gone.set()
        assert await asking is None
        assert desk.count == 0
        records = BatchKeys(batch_id).records(0)
        while (raw := await asyncio.to_thread(store.connection.hget, records, "0")) is None:
            await asyncio.sleep(0.01)
        return whole(raw)  # type: ignore[arg-type]

    assert at_a_desk(store, scenario)["error"]["code"] == "cancelled"


def test_a_request_that_names_itself_may_be_sent_again(store: Store) -> None:
    """It gets the answer of the first, whose client or server has gone."""
    key = (b"idempotency-key", b"k-1")

    async def first(desk: Desk) -> str:
        client = Connection(desk, key)
        asking = asyncio.create_task(client.ask())
        batch_id = await sent(store)
        client.gone.set()
        await asking
        return batch_id

    async def second(desk: Desk) -> dict[str, Any] | None:
        asking = asyncio.create_task(Connection(desk, key).ask())
        await asyncio.to_thread(work, store, batch_id)
        return await asking

    batch_id = at_a_desk(store, first)
    answer = at_a_desk(store, second)
    assert answer is not None
    assert answer["id"] == f"cmpl-{batch_id}_0"


def test_a_request_of_the_same_name_asks_the_same(store: Store) -> None:
    """Another one is refused, whether the first was answered or not."""
    key = (b"idempotency-key", b"k-1")

    async def scenario(desk: Desk) -> ApiError | None:
        first = Connection(desk, key)
        asking = asyncio.create_task(first.ask())
        await sent(store)
        try:
            await Connection(desk, key, body=orjson.dumps({"model": "a/b", "prompt": "y"})).ask()
        except ApiError as error:
            return error
        finally:
            first.gone.set()
            await asking
        return None

    error = at_a_desk(store, scenario)
    assert error is not None
    assert (error.status, error.code) == (409, "idempotency_conflict")


def test_who_asks_again_waits_among_the_others(store: Store) -> None:
    """It takes a place of those there are, and leaves it when its client goes."""
    key = (b"idempotency-key", b"k-1")

    async def scenario(desk: Desk) -> tuple[int, int]:
        clients = [Connection(desk, key), Connection(desk, key)]
        asking = [asyncio.create_task(clients[0].ask())]
        await sent(store)
        asking.append(asyncio.create_task(clients[1].ask()))
        while desk.count < 2:
            await asyncio.sleep(0.01)
        refused = await asyncio.gather(Connection(desk, key).ask(), return_exceptions=True)
        assert isinstance(refused[0], ApiError)
        for client in clients:
            client.gone.set()
        await asyncio.gather(*asking)
        return refused[0].status, desk.count

    assert at_a_desk(store, scenario, waiting=2) == (429, 0)


def test_what_was_lost_since_is_not_waited_for(store: Store) -> None:
    """A request that is sent again while its line goes, as with the last second of a Redis, is told to come again."""
    key = (b"idempotency-key", b"k-2")

    async def scenario(desk: Desk) -> bytes | None:
        first = asyncio.create_task(Connection(desk, key).ask())
        batch_id = await sent(store)
        again = asyncio.create_task(Completions(URL, desk)._again(SentLine(batch_id, 0, 0), Connection(desk)._receive))
        await asyncio.to_thread(store.discard, batch_id)
        found = await again
        desk.refuse_rest()
        with contextlib.suppress(ApiError):
            await first
        return found

    assert at_a_desk(store, scenario) == GONE


def test_what_a_server_left_that_died_ends_without_workers(store: Store, tmp_path: Path) -> None:
    """Another server ends and removes the batches whose clients are gone."""

    async def asked(desk: Desk) -> str:
        client = Connection(desk, (b"idempotency-key", b"k-3"))  # such lines are not cancelled with their client
        asking = asyncio.create_task(client.ask())
        batch_id = await sent(store)
        client.gone.set()
        await asking
        return batch_id

    batch_id = at_a_desk(store, asked)
    store.connection.zadd(EXPIRING, {batch_id: 1})
    store.connection.hset(BatchKeys(batch_id).info, mapping={"expires_at": 1, "keep_s": 0})
    parts = ServerParts(store, ServeSettings(tmp_path / "files"))
    for chore in (*parts.desk._also, *parts.desk._also):
        if isinstance(chore, Every):
            chore._next = 0.0
        chore()
    assert not store.connection.exists(BatchKeys(batch_id).info)
    assert store.connection.zcard(REQUESTS) == 0


def refusal(store: Store, **limits: Any) -> ApiError:
    """What a request is told under these limits."""

    async def scenario(desk: Desk) -> ApiError:
        try:
            await Connection(desk).ask()
        except ApiError as error:
            return error
        raise AssertionError

    return at_a_desk(store, scenario, **limits)


def test_too_many_are_told_to_come_again(store: Store) -> None:
    """With a status and a header that clients know."""
    error = refusal(store, waiting=0)
    assert (error.status, error.headers["Retry-After"]) == (429, "1")


def test_a_request_is_given_up_in_time(store: Store) -> None:
    """Where no worker answers."""
    assert refusal(store, request_s=0.05).status == 504


def test_a_server_that_ends_sends_its_clients_away(store: Store) -> None:
    """With what makes them come again."""

    async def scenario(desk: Desk) -> tuple[int, int]:
        asking = [asyncio.create_task(Connection(desk).ask()) for _ in range(3)]
        await sent(store)
        desk.refuse_rest()
        told = await asyncio.gather(*asking, return_exceptions=True)
        return len(told), sum(isinstance(error, ApiError) and error.status == 503 for error in told)

    assert at_a_desk(store, scenario) == (3, 3)


@pytest.mark.parametrize("status", ["expired", "validating"])
def test_answers_that_were_missed_are_found(store: Store, status: str) -> None:
    """As where Redis lost its last second, the commit too; of lines that will have no record it is said."""
    batch_id = make_batch(store, prompts(3))

    async def scenario() -> list[bytes]:
        loop, waiting = asyncio.get_running_loop(), Waiting()
        line = RequestLine(Group("pocket"), "high", b"")
        waiters = [Waiter(line, loop.create_future(), None, batch_id, 0, index) for index in range(3)]
        waiting.add(SentBatch(batch_id, dict(enumerate(waiters)), 1, frozenset(), live=True))
        times = iter(range(0, 1000, 100))
        janitor = Janitor(store, waiting, loop, clock=lambda: next(times))
        await asyncio.to_thread(work, store, batch_id, only=[1])
        await asyncio.to_thread(janitor.tidy)
        first = await waiters[1].answer
        store.connection.hset(BatchKeys(batch_id).info, "status", status)
        await asyncio.to_thread(janitor.tidy)
        return [first, await waiters[0].answer, await waiters[2].answer]

    found, *others = asyncio.run(scenario())
    assert whole(found)["id"] == "row-1"
    assert others == [GONE, GONE]


def test_requests_are_shared_among_workers(store: Store) -> None:
    """As many shards as there are workers, where there are enough lines; none has more than its share of bytes."""

    async def scenario() -> list[list[int]]:
        loop = asyncio.get_running_loop()
        sender = Sender(store, Waiting(), loop, instance="i", request_s=1, gather_s=0, serving=lambda: {"a/b": 3})
        waiters = [
            Waiter(RequestLine(Group(model), "high", b"x" * size), loop.create_future())
            for model, size in [("a/b", 10)] * 7 + [("c/d", 800_000)] * 2
        ]
        return [[line.index for line in shard.lines] for shard in sender._packed("b_1", waiters)]

    assert asyncio.run(scenario()) == [[0, 1, 2], [3, 4, 5], [6], [7], [8]]
