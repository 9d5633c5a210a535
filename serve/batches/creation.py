"""The request that creates a batch, checked."""

from __future__ import annotations

from typing import Any

from jobs.app.units import parse_duration
from jobs.batch import PRIORITIES
from jobs.delivery import check_webhook
from jobs.errors import RefusedError
from jobs.lines.line import CHAT_URL, COMPLETIONS_URL
from jobs.lines.values import json_kind
from jobs.params import did_you_mean
from jobs.store.retention import KEEP_S
from serve.access.access import Access
from serve.errors import ApiError
from serve.intake.orders import OPENAI, IntakeOrder
from submit.upload.submitter import MAX_NAME_LENGTH

ENDPOINTS = (CHAT_URL, COMPLETIONS_URL)
FIELDS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
    "name",
    "priority",
    "webhook",
    "idempotency_key",
)
SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 60.0, 31 * 86400.0
SHORTEST_KEPT_S, LONGEST_KEPT_S = 3600, 2_592_000
MOST_METADATA, LONGEST_NAME, LONGEST_VALUE = 16, 64, 512


def order_of(body: dict[str, Any], batch_id: str, access: Access, now: float) -> IntakeOrder:
    """The order that a request places.

    Raises:
        ApiError: a field is missing or no good.
    """
    for name in body:
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise ApiError(400, f"Unknown parameter: '{name[:80]}'{hint}.", code="unknown_parameter", param=name[:80])
    window, window_s = _window(body)
    return IntakeOrder(
        batch_id=batch_id,
        input_file_id=_text(body, "input_file_id"),
        endpoint=_endpoint(body),
        completion_window=window,
        window_s=window_s,
        created_at=now,
        owner=access.owner,
        admin=access.admin,
        models=access.models,
        metadata=_metadata(body.get("metadata")),
        name=_name(body.get("name")),
        priority=_priority(body.get("priority")),
        webhook=_webhook(body.get("webhook")),
        keep_s=_kept(body.get("output_expires_after")),
    )


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        raise ApiError(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    return value


def _wrong_type(name: str, wanted: str, value: Any) -> ApiError:
    message = f"Invalid type for '{name}': expected {wanted}, but got {json_kind(value)} instead."
    return ApiError(400, message, code="invalid_type", param=name)


def _wrong_value(name: str, value: object, wanted: str) -> ApiError:
    return ApiError(400, f"Invalid value: '{value!s:.80}'. {wanted}", code="invalid_value", param=name)


def _endpoint(body: dict[str, Any]) -> str:
    endpoint = _text(body, "endpoint")
    whole = endpoint if endpoint.startswith("/v1/") else f"/v1{endpoint}"
    if whole not in ENDPOINTS:
        raise _wrong_value("endpoint", endpoint, f"Supported values are: '{CHAT_URL}' and '{COMPLETIONS_URL}'.")
    return whole


def _window(body: dict[str, Any]) -> tuple[str, float]:
    window = _text(body, "completion_window")
    wanted = "'completion_window' takes a time from 1m to 31d, such as '24h' or '1h'."
    try:
        seconds = parse_duration(window)
    except RefusedError:
        raise _wrong_value("completion_window", window, wanted) from None
    if not SHORTEST_WINDOW_S <= seconds <= LONGEST_WINDOW_S:
        raise _wrong_value("completion_window", window, wanted)
    return window, seconds


def _metadata(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong_type("metadata", "an object", given)
    if len(given) > MOST_METADATA:
        raise _wrong_value("metadata", len(given), f"At most {MOST_METADATA} entries are taken.")
    for name, value in given.items():
        if not isinstance(value, str):
            raise _wrong_type(f"metadata.{name[:LONGEST_NAME]}", "a string", value)
        if name == OPENAI or len(name) > LONGEST_NAME or len(value) > LONGEST_VALUE:
            wanted = f"Names have at most {LONGEST_NAME} characters and are not '{OPENAI}', values {LONGEST_VALUE}."
            raise _wrong_value(f"metadata.{name[:LONGEST_NAME]}", value, wanted)
    return given


def _name(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise _wrong_type("name", "a string", given)
    if not (1 <= len(given) <= MAX_NAME_LENGTH and given.isprintable()):
        raise _wrong_value("name", given, f"A name has 1 to {MAX_NAME_LENGTH} printable characters.")
    return given


def _priority(given: Any) -> str:
    if given is None:
        return "normal"
    if given not in PRIORITIES:
        raise _wrong_value("priority", given, f"Supported values are: {', '.join(map(repr, PRIORITIES))}.")
    return str(given)


def _webhook(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise _wrong_type("webhook", "a string", given)
    try:
        return check_webhook(given)
    except RefusedError as error:
        raise ApiError(400, str(error), code="invalid_value", param="webhook") from None


def _kept(given: Any) -> float:
    name = "output_expires_after"
    if given is None:
        return KEEP_S
    if not isinstance(given, dict):
        raise _wrong_type(name, "an object", given)
    if given.get("anchor") != "created_at":
        raise _wrong_value(f"{name}.anchor", given.get("anchor"), "Supported values are: 'created_at'.")
    seconds = given.get("seconds")
    if type(seconds) is not int or not SHORTEST_KEPT_S <= seconds <= LONGEST_KEPT_S:
        wanted = f"Expected a number from {SHORTEST_KEPT_S} to {LONGEST_KEPT_S}."
        raise _wrong_value(f"{name}.seconds", seconds, wanted)
    return float(seconds)
