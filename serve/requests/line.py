"""A request as a line of a batch: its body under OpenAI's envelope, checked as a line of a file is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from jobs.batch import PRIORITIES
from jobs.errors import MOST_PROBLEMS, LineError
from jobs.lines.line import check_line
from jobs.shard import Group
from serve.access.access import Access
from serve.errors import ApiError
from serve.http.reading import parse_object
from serve.pool.routes import no_model

TIERS = {"flex": "normal"}
"""Tiers of service that are another priority than that of those who wait."""
CODES = {"missing_field": "missing_required_parameter", "unsupported": "unsupported_parameter"}


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request that keeps the contract: who runs it, at which priority, and its line."""

    group: Group
    priority: str
    raw: bytes


def line_of(raw: bytes, url: str, request_id: str, access: Access) -> RequestLine:
    """The line of a request with this body.

    Raises:
        ApiError: a field is missing or no good.
    """
    body = parse_object(raw)
    if body.get("stream"):
        raise ApiError(
            400,
            "Streaming is not supported: leave 'stream' out; the answer comes whole.",
            code="streaming_unsupported",
            param="stream",
        )
    priority = _priority(body)
    try:
        line = orjson.dumps({"custom_id": request_id, "method": "POST", "url": url, "body": body})
    except orjson.JSONEncodeError:
        raise ApiError(400, "The request's body is nested too deeply.", code="invalid_json") from None
    try:
        fields = check_line(line).fields
    except LineError as error:
        raise refusal(error) from None
    model = fields.get("model")
    if model is None:
        raise ApiError(400, "you must provide a model parameter", code="missing_required_parameter", param="model")
    if not access.may_use(model):
        raise no_model(model)
    return RequestLine(Group(model, fields.get("adapter_path")), priority, line)


def _priority(body: dict[str, Any]) -> str:
    """The priority that a body asks for; what says so is taken out of it."""
    body.pop("stream", None)
    tier, priority = body.pop("service_tier", None), body.pop("priority", None)
    if priority is not None:
        if priority not in PRIORITIES:
            wanted = ", ".join(map(repr, PRIORITIES))
            raise ApiError(
                400, f"Invalid 'priority': supported values are {wanted}.", code="invalid_value", param="priority"
            )
        return str(priority)
    return TIERS.get(tier, "high") if isinstance(tier, str) else "high"


def refusal(error: LineError) -> ApiError:
    """What is wrong with a line, as an answer."""
    text = error.message if error.field is None else f"'{error.field}' {error.message}"
    others = "".join(f"; also: '{also.field}' {also.message}" for also in error.also[:MOST_PROBLEMS])
    return ApiError(400, text + others, code=CODES.get(error.code, error.code), param=error.field)
