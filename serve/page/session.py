"""Who looks at the page: a key that was typed in once comes back as a cookie, which scripts cannot read.

The cookie goes to `/api` alone, and never with what another site asks for. Whatever changes something there also takes
a header that other sites cannot send, so that none can act for who is logged in, or for who has no need to be.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.access.access import Access
from serve.errors import ApiError
from serve.http.reading import Json, access_of

API = "/api/"
COOKIE = "promptmill_key"
MARK = "x-promptmill-page"
"""The header of what the page sends."""
LASTS_S = 30 * 86400


def cookie_token(header: str) -> str | None:
    """The key in a Cookie header."""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return found.value if found is not None and found.value else None


def answer(content: Any) -> Json:
    """JSON that nobody keeps."""
    return Json(content, headers={"Cache-Control": "no-store"})


def check_page(request: Request) -> Access:
    """Who asks for a change, which only the page may.

    Raises:
        ApiError: it may be another site that does.
    """
    if MARK not in request.headers:
        raise ApiError(403, f"Changes under {API} are for the page: other programs use /v1.", code="not_allowed")
    return access_of(request)


class SessionRoutes:
    """Logging in and out."""

    def __init__(self, *, keys: bool, secure: bool) -> None:
        self._keys, self._secure = keys, secure

    def routes(self) -> list[Route]:
        return [
            Route("/api/session", self.show, methods=["GET"]),
            Route("/api/session", self.begin, methods=["POST"]),
            Route("/api/session", self.end, methods=["DELETE"]),
        ]

    async def show(self, request: Request) -> Response:
        return answer(self._shown(access_of(request)))

    def _shown(self, access: Access) -> dict[str, Any]:
        return {"keys": self._keys, "name": access.owner, "admin": access.admin, "models": list(access.models)}

    async def begin(self, request: Request) -> Response:
        """The gate has let the key in that stands in the header; from now on it comes by itself."""
        shown = answer(self._shown(check_page(request)))
        _, _, token = request.headers.get("authorization", "").partition(" ")
        if self._keys and token:
            shown.set_cookie(
                COOKIE,
                token.strip(),
                max_age=LASTS_S,
                path=API,
                secure=self._secure,
                httponly=True,
                samesite="strict",
            )
        return shown

    async def end(self, request: Request) -> Response:
        check_page(request)
        shown = answer({"ended": True})
        shown.delete_cookie(COOKIE, path=API, secure=self._secure, httponly=True, samesite="strict")
        return shown
