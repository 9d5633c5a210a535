"""The paths under `/api`, which the page reads and acts by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from jobs.batch import Batch
from jobs.store.pause import pause, prioritise, resume_batch
from jobs.store.retention import purge
from jobs.store.retry import retry
from jobs.store.store import Store
from serve.access.access import Access
from serve.batches.book import BatchBook
from serve.errors import ApiError, not_found
from serve.files.routes import FileRoutes
from serve.files.store import Files
from serve.http.reading import access_of, json_object
from serve.intake.orders import Orders
from serve.page import schedules
from serve.page.assets import AssetRoutes, read_assets
from serve.page.batches import BatchList, BatchLook, Wanted
from serve.page.downloads import Wish, check_download, choices, download
from serve.page.drafts import Checks, draft_of
from serve.page.pool import PoolLook, shown_pool
from serve.page.records import Filter, find_records, whole_record
from serve.page.session import SessionRoutes, answer, check_page
from serve.page.spread import Spreads
from serve.pool.models import Models
from serve.settings import ServeSettings
from submit.status.pool_pause import pause_pool, pause_workers, resume_pool, resume_workers

LONGEST_TEXT = 200
STATES = ("all", "live", "ended")
SCHEDULES_ARE = "Schedules are for admin keys."


class PageRoutes:
    """The page, and the JSON that it lives on."""

    def __init__(
        self,
        store: Store,
        settings: ServeSettings,
        files: Files,
        uploads: FileRoutes,
        book: BatchBook,
        orders: Orders,
        models: Models,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._files, self._uploads = store, files, uploads
        self._book, self._orders, self._models, self._now = book, orders, models, now
        self.pool = PoolLook(store)
        self._list = BatchList(store, orders, self.pool)
        self._look = BatchLook(store, book, orders)
        self._spreads = Spreads(store)
        self._checks = Checks(files, models, settings.limits)
        self._assets = AssetRoutes(read_assets())
        self._session = SessionRoutes(keys=settings.keys is not None, secure=settings.certificate is not None)

    def routes(self) -> list[Route]:
        batch = "/api/batches/{id}"
        return [
            *self._assets.routes(),
            *self._session.routes(),
            Route("/api/pool", self.show_pool, methods=["GET"]),
            Route("/api/pool/{act}", self.act_on_pool, methods=["POST"]),
            Route("/api/workers/{act}", self.act_on_worker, methods=["POST"]),
            Route("/api/models", self.list_models, methods=["GET"]),
            Route("/api/files", self.upload, methods=["POST"]),
            Route("/api/files/{id}/check", self.check, methods=["POST"]),
            Route("/api/files/{id}/submit", self.submit, methods=["POST"]),
            Route("/api/batches", self.list_batches, methods=["GET"]),
            Route(batch, self.show_batch, methods=["GET"]),
            Route(f"{batch}/records", self.list_records, methods=["GET"]),
            Route(f"{batch}/records/{{place:int}}", self.show_record, methods=["GET"]),
            Route(f"{batch}/spread", self.show_spread, methods=["GET"]),
            Route(f"{batch}/download", self.download, methods=["GET"]),
            Route(f"{batch}/{{act}}", self.act_on_batch, methods=["POST"]),
            Route("/api/schedules", self.list_schedules, methods=["GET"]),
            Route("/api/schedules", self.add_schedule, methods=["POST"]),
            Route("/api/schedules/next", self.show_times, methods=["GET"]),
            Route("/api/schedules/{name}/{act}", self.act_on_schedule, methods=["POST"]),
        ]

    # --- the pool ---

    async def show_pool(self, request: Request) -> Response:
        return answer(await run_in_threadpool(shown_pool, self.pool, access_of(request)))

    async def act_on_pool(self, request: Request) -> Response:
        _check_admin(check_page(request), "The pool is paused and resumed by admin keys.")
        act = _act(request, {"pause": pause_pool, "resume": resume_pool})
        done = await run_in_threadpool(act, self._store)
        self.pool.forget()
        return answer({"done": done})

    async def act_on_worker(self, request: Request) -> Response:
        _check_admin(check_page(request), "Workers are paused and resumed by admin keys.")
        act = _act(request, {"pause": pause_workers, "resume": resume_workers})
        name = (await json_object(request)).get("name")
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_TEXT:
            raise ApiError(400, "Invalid 'name': expected the name of a worker.", code="invalid_value", param="name")
        done = await run_in_threadpool(act, self._store, [name])
        self.pool.forget()
        return answer({"done": bool(done)})

    async def list_models(self, request: Request) -> Response:
        await run_in_threadpool(self._models.look)
        access = access_of(request)
        names = sorted(name for name in self._models.live if access.may_use(name))
        return answer({"models": names, **choices()})

    # --- batches ---

    async def list_batches(self, request: Request) -> Response:
        query = request.query_params
        state = query.get("state") or "all"
        if state not in STATES:
            raise ApiError(400, f"Invalid 'state': expected one of {', '.join(STATES)}.", param="state")
        wanted = Wanted(query.get("after") or None, state, _text(request, "text"))
        return answer(await run_in_threadpool(self._list.page, wanted, access_of(request)))

    async def show_batch(self, request: Request) -> Response:
        return answer(await run_in_threadpool(self._look.shown, request.path_params["id"], access_of(request)))

    def _batch(self, batch_id: str, access: Access) -> Batch:
        """A batch that may be seen, once its file was checked."""
        batch = self._book.live(batch_id, access)
        if batch is None:
            raise not_found("batch", batch_id)
        return batch

    async def list_records(self, request: Request) -> Response:
        query = request.query_params
        given = query.get("at") or ""
        if given and not (given.isascii() and given.isdigit() and len(given) < 16):
            raise ApiError(400, "Invalid 'at': expected a number.", code="invalid_value", param="at")
        wanted = Filter(_text(request, "text"), _text(request, "stop"), _text(request, "error"))

        def find() -> dict[str, Any]:
            batch = self._batch(request.path_params["id"], access_of(request))
            newest = query.get("order") == "newest"
            return find_records(self._store, batch.id, wanted, newest=newest, at=int(given) if given else None)

        return answer(await run_in_threadpool(find))

    async def show_record(self, request: Request) -> Response:
        def find() -> dict[str, Any]:
            batch = self._batch(request.path_params["id"], access_of(request))
            return whole_record(self._store, batch, request.path_params["place"])

        return answer(await run_in_threadpool(find))

    async def show_spread(self, request: Request) -> Response:
        def find() -> dict[str, Any]:
            return self._spreads.of(self._batch(request.path_params["id"], access_of(request)).id)

        return answer(await run_in_threadpool(find))

    async def download(self, request: Request) -> Response:
        wish, try_only = Wish.of(request.query_params), request.query_params.get("try") == "1"

        def begin() -> Response:
            batch = self._batch(request.path_params["id"], access_of(request))
            if try_only:
                check_download(self._store, batch, wish)
                return answer({"begins": True})
            return download(self._store, batch, wish)

        return await run_in_threadpool(begin)

    async def act_on_batch(self, request: Request) -> Response:
        access, batch_id = check_page(request), request.path_params["id"]
        body = await json_object(request) if request.headers.get("content-length", "0") != "0" else {}
        act = _act(
            request,
            {
                "cancel": lambda: self._cancel(batch_id, access),
                "retry": lambda: retry(self._store, self._batch(batch_id, access).id),
                "pause": lambda: pause(self._store, self._batch(batch_id, access).id),
                "resume": lambda: resume_batch(self._store, self._batch(batch_id, access).id),
                "priority": lambda: prioritise(
                    self._store, self._batch(batch_id, access).id, str(body.get("priority"))
                ),
                "remove": lambda: purge(self._store, self._batch(batch_id, access).id),
            },
        )
        done = await run_in_threadpool(act)
        self._look.forget(batch_id)
        return answer({"done": done})

    def _cancel(self, batch_id: str, access: Access) -> str:
        found = self._book.cancel(batch_id, access)
        if found is None:
            raise not_found("batch", batch_id)
        return str(found["status"])

    # --- a new batch ---

    async def upload(self, request: Request) -> Response:
        check_page(request)
        return await self._uploads.create(request)

    async def check(self, request: Request) -> Response:
        access = check_page(request)
        draft = draft_of(await json_object(request), access)
        file = await run_in_threadpool(self._files.find, request.path_params["id"], access)
        if file is None:
            raise not_found("file", request.path_params["id"])
        await run_in_threadpool(self._models.look)
        said = self._checks.begin(file, draft)
        return StreamingResponse(said, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    async def submit(self, request: Request) -> Response:
        access = check_page(request)
        draft = draft_of(await json_object(request), access)
        file_id = request.path_params["id"]

        def place() -> str:
            if self._files.find(file_id, access) is None:
                raise not_found("file", file_id)
            order = draft.order(file_id, access, self._now())
            self._orders.put(order)
            return order.batch_id

        return answer({"id": await run_in_threadpool(place)})

    # --- schedules ---

    async def list_schedules(self, request: Request) -> Response:
        _check_admin(access_of(request), SCHEDULES_ARE)
        return answer(await run_in_threadpool(schedules.shown_schedules, self._store))

    async def show_times(self, request: Request) -> Response:
        _check_admin(access_of(request), SCHEDULES_ARE)
        query = request.query_params
        cron = schedules.cron_of(query.get("cron"), query.get("zone"))
        return answer(await run_in_threadpool(schedules.next_times, self._store, cron))

    async def add_schedule(self, request: Request) -> Response:
        access = check_page(request)
        _check_admin(access, SCHEDULES_ARE)
        if access.models:
            raise ApiError(403, "A key that is limited to models adds no schedules.", code="not_allowed")
        body = await json_object(request)
        given, file_id = body.pop("schedule", None), body.pop("file_id", None)
        if not isinstance(given, dict):
            raise ApiError(400, "Missing required parameter: 'schedule'.", param="schedule")
        draft = draft_of(body, access)

        def add() -> str:
            wanted, path = schedules.wanted_schedule(given, draft)
            if path is not None:
                return schedules.add(self._store, wanted, path, path)
            file = self._files.find(str(file_id), access)
            if file is None:
                raise not_found("file", str(file_id)[:80])
            return schedules.add(self._store, wanted, self._files.path(file), file.filename)

        return answer({"name": await run_in_threadpool(add)})

    async def act_on_schedule(self, request: Request) -> Response:
        _check_admin(check_page(request), SCHEDULES_ARE)
        name = request.path_params["name"]
        act = _act(
            request,
            {
                "run": lambda: schedules.run_now(self._store, name, allow_overlap=False),
                "pause": lambda: schedules.set_paused(self._store, name, paused=True),
                "resume": lambda: schedules.set_paused(self._store, name, paused=False),
                "remove": lambda: schedules.remove(self._store, name),
            },
        )
        return answer({"done": await run_in_threadpool(act)})


def _act(request: Request, known: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    act = known.get(request.path_params["act"])
    if act is None:
        raise ApiError(404, f"There is nothing of this name to do; there are {', '.join(known)}.")
    return act


def _check_admin(access: Access, message: str) -> None:
    if not access.admin:
        raise ApiError(403, message, code="not_allowed")


def _text(request: Request, name: str) -> str:
    """Text to look for, folded."""
    return (request.query_params.get(name) or "")[:LONGEST_TEXT].casefold()
