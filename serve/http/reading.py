"""Reading requests: their JSON, and how lists are paged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import orjson
from starlette.requests import Request
from starlette.responses import Response

from serve.access.access import Access
from serve.errors import ApiError

MOST_PAGE = 100


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def access_of(request: Request) -> Access:
    """Who asks, as the guard found it."""
    return cast("Access", request.scope["access"])


async def json_object(request: Request) -> dict[str, Any]:
    """The body of a request.

    Raises:
        ApiError: it is no JSON object.
    """
    return parse_object(await request.body())


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: it is none.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request's body is not valid JSON: {error.msg}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request's body must be a JSON object.", code="invalid_type")
    return body


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    after: str | None
    limit: int
    ascending: bool

    def of(self, items: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """The part of a list that begins with these, in OpenAI's shape."""
        found = list(islice(items, self.limit + 1))
        data = found[: self.limit]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > self.limit,
        }


def page_of(request: Request, is_id: Callable[[str], object], *, most: int = MOST_PAGE, usual: int = 20) -> Page:
    """The page that a request asks for, of a list of what has such ids.

    Raises:
        ApiError: its ``limit``, ``order`` or ``after`` is no good.
    """
    query = request.query_params
    given, order = query.get("limit", str(usual)), query.get("order", "desc")
    if not (given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= most):
        raise ApiError(
            400, f"Invalid 'limit': expected a number from 1 to {most}.", code="invalid_value", param="limit"
        )
    if order not in ("asc", "desc"):
        raise ApiError(400, "Invalid 'order': expected 'asc' or 'desc'.", code="invalid_value", param="order")
    after = query.get("after") or None
    if after is not None and not is_id(after):
        raise ApiError(400, f"Invalid 'after': '{after[:80]}' is no id.", code="invalid_value", param="after")
    return Page(after, int(given), order == "asc")
