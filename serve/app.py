"""The application: all paths of the server, with and without `/v1`, behind the guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, Router

from serve.access.access import Gate
from serve.batches.routes import BatchRoutes
from serve.errors import ApiError
from serve.files.routes import FileRoutes
from serve.http.exchange import App
from serve.http.guard import Guard
from serve.http.metrics import Metrics
from serve.http.reading import Json
from serve.pool.routes import ModelRoutes
from serve.requests.desk import Desk
from serve.requests.routes import completion_routes
from serve.settings import Limits

SHOWN = ("x-request-id", "Retry-After", "X-Incomplete", "X-Last-Line", "Content-Range", "Content-Disposition")
"""Headers of answers that scripts of other origins may read."""


@dataclass(frozen=True, slots=True)
class Api:
    """The parts that answer."""

    files: FileRoutes
    batches: BatchRoutes
    models: ModelRoutes
    desk: Desk
    metrics: Metrics

    def routes(self) -> list[Route]:
        """Every path of the API, without a version before it."""
        return [
            *completion_routes(self.desk),
            *self.files.routes(),
            *self.batches.routes(),
            *self.models.routes(),
        ]


def make_app(
    api: Api, gate: Gate, limits: Limits, *, origins: Sequence[str] = (), more: Sequence[BaseRoute] = ()
) -> App:
    """The application. ``more`` are routes beside the API, such as those of a page."""
    plain = api.routes()
    versioned = [Route(f"/v1{route.path}", route.endpoint, methods=_methods(route)) for route in plain]
    beside = [Route("/health", health, methods=["GET"]), api.metrics.route(), *more]
    router = Router([*versioned, *plain, *beside], redirect_slashes=False)
    app: App = Guard(_explained(router), gate, limits, answered=api.metrics.answered)
    if origins:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            app, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"], expose_headers=SHOWN
        )
    return app


def _methods(route: Route) -> list[str] | None:
    return None if route.methods is None else sorted(route.methods - {"HEAD"})


def _taken(router: Router, scope: Any) -> str:
    """The methods that are taken where a request went: each may have a route of its own."""
    there = [route for route in router.routes if isinstance(route, Route) and route.matches(scope)[0] != Match.NONE]
    return ", ".join(sorted({method for route in there for method in route.methods or ()}))


async def health(_request: Request) -> Response:
    """That the process answers."""
    return Json({"status": "ok"})


def _explained(router: Router) -> App:
    """The router, with its own refusals as ours."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = router  # without it the router answers by itself where nothing fits
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            if error.status_code == 405:
                message = f"{scope['path'][:200]} does not take {scope['method']}."
                raise ApiError(405, message, headers={"Allow": _taken(router, scope)}) from None
            message = f"Unknown request URL: {scope['method']} {scope['path'][:200]}."
            raise ApiError(error.status_code, message) from None

    return app
