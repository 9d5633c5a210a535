"""The paths under `/v1/models`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.access.access import Access
from serve.errors import ApiError
from serve.http.reading import Json, access_of
from serve.pool.models import Models


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """What may be asked of models."""

    models: Models

    def routes(self) -> list[Route]:
        return [
            Route("/models", self.list, methods=["GET"]),
            Route("/models/{id:path}", self.retrieve, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        live = await run_in_threadpool(self._live, access_of(request))
        return Json({"object": "list", "data": [_shown(name, since) for name, since in sorted(live.items())]})

    async def retrieve(self, request: Request) -> Response:
        name = request.path_params["id"]
        live = await run_in_threadpool(self._live, access_of(request))
        if name not in live:
            raise no_model(name)
        return Json(_shown(name, live[name]))

    def _live(self, access: Access) -> Mapping[str, float]:
        self.models.look()
        return {name: since for name, since in self.models.live.items() if access.may_use(name)}


def no_model(name: str) -> ApiError:
    """No worker serves it, or this key may not use it."""
    return ApiError(
        404,
        f"The model '{name[:200]}' does not exist here or you do not have access to it; "
        "GET /v1/models lists those that are served.",
        code="model_not_found",
        param="model",
    )


def _shown(name: str, since: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(since), "owned_by": "promptmill"}
