"""The outermost layer: each request gets an id and is let in or not, bodies are bounded, errors become OpenAI's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import redis.exceptions
from starlette.requests import ClientDisconnect

from jobs.errors import BatchNotFoundError, PromptmillError, RedisError
from serve.access.access import Gate
from serve.errors import ApiError, unavailable
from serve.http.exchange import Answered, App, Exchange, Receive, Room, Scope, Send
from serve.page.session import API, cookie_token
from serve.settings import Limits

log = logging.getLogger("promptmill.serve")

OPEN_PATHS = frozenset({"/health", "/"})
OPEN_FILES = "/page/"
"""What needs no key: that the process answers, and the page's files."""


class Guard:
    """An ASGI application around another. ``answered`` is told of each answer when its head is sent: the path, the
    method, the status, the seconds it took, the bytes of the request's body."""

    def __init__(
        self,
        app: App,
        gate: Gate,
        limits: Limits,
        *,
        answered: Answered = lambda path, method, status, seconds, received: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._gate, self._limits, self._answered, self._clock = app, gate, limits, answered, clock
        self._room = Room(limits.bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._limits, self._room, self._answered, self._clock)
        try:
            headers = dict(scope["headers"])
            exchange.check_head(headers)
            path = scope["path"]
            if path not in OPEN_PATHS and not path.startswith(OPEN_FILES):
                cookie = headers.get(b"cookie", b"") if path.startswith(API) else b""
                scope["access"] = self._gate.enter(headers, cookie=cookie_token(cookie.decode("latin-1")))
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            await _fail(exchange, error)
        finally:
            exchange.end()


async def _fail(exchange: Exchange, error: Exception) -> None:
    """Answer with an error; where the answer has begun already the connection breaks off, so that nobody takes it for
    whole."""
    told = _told(error)
    if told.status >= 500 and not isinstance(error, ApiError) and told.status != 503:
        log.error("request %s failed: %r", exchange.id, error, exc_info=error, extra={"action": "request_failed"})
    if exchange.started:
        raise error
    await exchange.fail(told)


def _told(error: Exception) -> ApiError:
    """What a client is told of an error: nothing of addresses and paths."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RedisError | redis.exceptions.RedisError):
        return unavailable(error)
    if isinstance(error, BatchNotFoundError):
        return ApiError(404, "There is no such batch.")
    if isinstance(error, PromptmillError) and error.exit_status == 2:
        return ApiError(400, str(error))
    return ApiError(500, "The server had an error while it worked on your request; its log says more.")
