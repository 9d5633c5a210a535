"""Errors as OpenAI writes them: a status, and a body with a message, a type, the field at fault and a code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.redis.connect import full

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client is told in place of an answer. The message names what is wrong and the remedy, and nothing of the
    host."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, code=self.code, param=self.param)


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of a failure: ``{"error": {"message", "type", "param", "code"}}``."""
    kind = KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def not_found(what: str, name: str) -> ApiError:
    """There is no such thing, or none that this key may see."""
    return ApiError(404, f"No {what} found with id '{name[:80]}'.", param="id")


def unavailable(error: Exception | None = None) -> ApiError:
    """Redis is out, or full: what was asked was not done."""
    if error is not None and full(error):
        return ApiError(
            503,
            "The queue is full: its Redis has no memory left; try again later, and tell the operator.",
            code="queue_full",
            headers={"Retry-After": "30"},
        )
    return ApiError(
        503,
        "The queue cannot be reached at the moment; try again in a few seconds.",
        code="queue_unavailable",
        headers={"Retry-After": "2"},
    )


def unstored(error: OSError) -> ApiError:
    """The folder of files takes nothing: what was sent was not kept."""
    return ApiError(
        507, f"The file cannot be kept: {error.strerror}.", code="storage_full", headers={"Retry-After": "30"}
    )
