"""What a server tells Prometheus at `/metrics`: answers by path and status, how long they took, and who waits.

Paths are those of the API without ids in them: the number of series is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.errors import ApiError
from serve.http.reading import access_of

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PATHS = ("chat/completions", "completions", "files", "batches", "models")
_KNOWN = re.compile(rf"(?:/v1)?/({'|'.join(PATHS)})(?:/.*)?")


class Metrics:
    """Counts answers, in a registry of its own. Threads: the event loop's, and any for scrapes.

    ``waiting()`` are the requests that wait for their lines now.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series each, of no use to Prometheus
        self.registry = CollectorRegistry()
        text = "Answers by path of the API, method and status."
        self._answers = Counter("promptmill_http_answers", text, ("path", "method", "status"), registry=self.registry)
        text = "From the head of a request to the head of its answer."
        self._seconds = Histogram("promptmill_http_seconds", text, ("path",), registry=self.registry, buckets=SECONDS)
        self._received = Counter("promptmill_http_received_bytes", "Bytes of requests' bodies.", registry=self.registry)
        gauge = Gauge("promptmill_http_waiting", "Requests that wait for their lines.", registry=self.registry)
        gauge.set_function(waiting)

    def answered(self, path: str, method: str, status: int, seconds: float, received: int) -> None:
        """The head of an answer was sent."""
        found = _KNOWN.fullmatch(path)
        name = found[1] if found else "other"
        self._answers.labels(name, method if method in ("GET", "POST", "DELETE") else "other", str(status)).inc()
        self._seconds.labels(name).observe(seconds)
        self._received.inc(received)

    def route(self) -> Route:
        """The path that Prometheus reads."""
        return Route("/metrics", self._read, methods=["GET"])

    async def _read(self, request: Request) -> Response:
        if not access_of(request).admin:
            raise ApiError(403, "Metrics are for admin keys.", code="not_allowed")
        text: Any = await run_in_threadpool(generate_latest, self.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
