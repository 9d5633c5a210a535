"""The paths under `/v1/batches`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jobs.batch import is_batch_id, new_batch_id
from jobs.store.keys import PREFIX
from jobs.store.store import Store
from serve.access.access import Access
from serve.batches.book import BatchBook
from serve.batches.creation import order_of
from serve.errors import ApiError
from serve.http.reading import Json, Page, access_of, json_object, page_of
from serve.intake.orders import Orders

REMEMBERED_S = 86400
LONGEST_KEY = 256


@dataclass(frozen=True, slots=True)
class BatchRoutes:
    """What may be done with batches."""

    store: Store
    orders: Orders
    book: BatchBook
    now: Callable[[], float] = time.time

    def routes(self) -> list[Route]:
        return [
            Route("/batches", self.create, methods=["POST"]),
            Route("/batches", self.list, methods=["GET"]),
            Route("/batches/{id}", self.retrieve, methods=["GET"]),
            Route("/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        body, access = await json_object(request), access_of(request)
        key = _key_of(request, body)
        digest = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return Json(await run_in_threadpool(self._create, body, access, key, digest))

    def _create(self, body: dict[str, Any], access: Access, key: str | None, digest: str) -> dict[str, Any]:
        order = order_of(body, new_batch_id(), access, self.now())
        batch_id = order.batch_id if key is None else self._first(key, access, order.batch_id, digest)
        if batch_id == order.batch_id:
            self.orders.put(order)
        found = self.book.find(batch_id, access)
        if found is None:
            # An earlier request with this key died before it placed its order: this one does.
            order = order_of(body, batch_id, access, self.now())
            self.orders.put(order)
            found = self.book.find(batch_id, access)
        return cast("dict[str, Any]", found)

    def _first(self, key: str, access: Access, batch_id: str, digest: str) -> str:
        """The batch that the first request with this key makes."""
        name = hashlib.sha256(f"{access.owner}\0{key}".encode()).hexdigest()
        place = f"{PREFIX}http:once:{name}"
        if self.store.connection.set(place, f"{batch_id} {digest}", nx=True, ex=REMEMBERED_S):
            return batch_id
        first = (cast("bytes | None", self.store.connection.get(place)) or b"").decode().split()
        if len(first) != 2:
            return batch_id
        if first[1] != digest:
            message = "Conflict: this idempotency key was used for another request; take a new one."
            raise ApiError(409, message, code="idempotency_conflict")
        return first[0]

    async def list(self, request: Request) -> Response:
        page, access = page_of(request, is_batch_id), access_of(request)
        return Json(await run_in_threadpool(self._page, page, access))

    def _page(self, page: Page, access: Access) -> dict[str, Any]:
        return page.of(self.book.objects(access, page.after, ascending=page.ascending))

    async def retrieve(self, request: Request) -> Response:
        return await self._answer(self.book.find, request)

    async def cancel(self, request: Request) -> Response:
        return await self._answer(self.book.cancel, request)

    async def _answer(self, what: Callable[[str, Access], dict[str, Any] | None], request: Request) -> Response:
        batch_id = request.path_params["id"]
        found = await run_in_threadpool(what, batch_id, access_of(request))
        if found is None:
            raise ApiError(404, f"No batch found with id '{batch_id[:80]}'.", param="id")
        return Json(found)


def _key_of(request: Request, body: dict[str, Any]) -> str | None:
    """The request's idempotency key: of its header, or of the field that some clients write in its place.

    Raises:
        ApiError: it is too long, or no text.
    """
    key = request.headers.get("idempotency-key", body.get("idempotency_key"))
    if key is not None and not (isinstance(key, str) and 1 <= len(key) <= LONGEST_KEY):
        message = f"An idempotency key has 1 to {LONGEST_KEY} characters."
        raise ApiError(400, message, code="invalid_value", param="idempotency_key")
    return key
