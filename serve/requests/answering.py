"""The answer to a request, made of its line's record."""

from __future__ import annotations

from typing import Any

import orjson

from jobs.record_head import whole
from serve.errors import error_body
from serve.requests.answers import GONE
from submit.results.openai_format import envelope

OVER = {"batch_cancelled": 409, "batch_expired": 504, "request_timeout": 504}
"""HTTP statuses of lines that came to no answer."""


def answer_of(record: bytes, url: str) -> tuple[int, bytes]:
    """The status and the body of an answer."""
    if record == GONE:
        return 503, orjson.dumps(
            error_body(503, "The request was lost before it was answered; send it again.", code="request_lost")
        )
    shown: dict[str, Any] = envelope(whole(record), lambda: url)
    response = shown["response"]
    if response is not None:
        return response["status_code"], orjson.dumps(response["body"])
    failure = shown["error"]
    status = OVER.get(failure["code"], 500)
    return status, orjson.dumps(error_body(status, failure["message"], code=failure["code"]))
