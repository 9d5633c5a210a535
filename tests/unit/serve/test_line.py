"""A request's body as a line: what may stand in it besides OpenAI's fields."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.lines.line import CHAT_URL, check_line
from serve.access.access import Access
from serve.errors import ApiError
from serve.requests.line import RequestLine, line_of

CHAT: dict[str, Any] = {"model": "a/b", "messages": [{"role": "user", "content": "x"}]}


def line(**fields: Any) -> RequestLine:
    return line_of(orjson.dumps({**CHAT, **fields}), CHAT_URL, "req_1", Access())


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({}, "high"),
        ({"service_tier": "auto"}, "high"),
        ({"service_tier": "flex"}, "normal"),
        ({"service_tier": "flex", "priority": "low"}, "low"),
        ({"service_tier": None, "priority": None}, "high"),
    ],
)
def test_who_waits_goes_first_unless_asked_otherwise(fields: dict[str, Any], priority: str) -> None:
    """What says so is no part of the line."""
    made = line(**fields)
    assert made.priority == priority
    assert set(orjson.loads(made.raw)["body"]) == set(CHAT)


def test_the_line_is_that_of_a_file() -> None:
    """It is checked as one, has the request's id, and what asks for no stream is dropped."""
    made = line(stream=False, temperature=0.5, adapter_path="x/y")
    checked = check_line(made.raw)
    assert (checked.id, checked.endpoint, made.group.key) == ("req_1", CHAT_URL, "a/b+x/y")
    assert checked.fields["temperature"] == 0.5


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"stream": True}, "streaming_unsupported", "stream"),
        ({"priority": 1}, "invalid_value", "priority"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"messages": None}, "missing_required_parameter", "prompt"),
        ({"max_tokens": "x"}, "invalid_type", "max_tokens"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    """With its code."""
    with pytest.raises(ApiError) as error:
        line(**fields)
    assert (error.value.status, error.value.code, error.value.param) == (400, code, param)
