"""The files that the page is made of: read once, sent as they are, with a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.errors import ApiError

FOLDER = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page, and the tag that changes with it."""

    body: bytes
    kind: str
    tag: str


def read_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """The page's files by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in KINDS:
            body = path.read_bytes()
            found[path.name] = Asset(body, KINDS[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:20]}"')
    return found


@dataclass(frozen=True, slots=True)
class AssetRoutes:
    """`/`, and `/page/NAME`. They need no key: nothing of the pool is in them."""

    assets: Mapping[str, Asset]

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/page/{name}", self.file, methods=["GET"]),
        ]

    async def index(self, request: Request) -> Response:
        return self._sent(INDEX, request)

    async def file(self, request: Request) -> Response:
        return self._sent(request.path_params["name"], request)

    def _sent(self, name: str, request: Request) -> Response:
        asset = self.assets.get(name)
        if asset is None:
            raise ApiError(404, f"The page has no file '{name[:80]}'.")
        headers = {**HEADERS, "ETag": asset.tag}
        if request.headers.get("if-none-match") == asset.tag:
            return Response(status_code=304, headers=headers)
        return Response(asset.body, headers={**headers, "Content-Type": asset.kind})
