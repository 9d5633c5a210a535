"""The user's own id of lines that are not valid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from jobs.lines.line_id import readable_id


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"id":"a","temperature":"hot"}', "a"),
        (b'{"custom_id":"a","body":{"id":"other"}}', "a"),
        (b'{"custom_id":"a","params":{}}', "a"),
        (b'{"id":7,"prompt":"x"}', "7"),
        (b'{"id":"a","prompt":"x","temperature":NaN}', "a"),
        (b'{"prompt":"x","temperature":NaN,"id":"a"}', "a"),
        (b'{"id":"a","prompt":"cut of', "a"),
        (b'{"id" : "a\\u00e9" , "prompt":"caf\xe9"}', "a\u00e9"),
        (b'{"metadata":{"id":"inner"},"id":"outer","prompt":', "outer"),
        (b'{"metadata":{"id":"inner"},"prompt":', None),
        (b'{"custom_id":"a","body":{"prompt":"cut', "a"),
        (b'{"prompt":"{\\"id\\":\\"no\\"}","x":', None),
        (b'{"id":"caf\xe9","prompt":"x"}', None),
        (b'{"id":"","prompt":"x","y":', None),
        (b'{"id":true}', None),
        (b'["id","a"]', None),
        (b"nope", None),
        (b'{"id":"a"', "a"),
        (b'{"a":' + b"[" * 100_000, None),
    ],
)
def test_ids_are_read_wherever_they_can_be(raw: bytes, name: str | None) -> None:
    """Also of lines that are no JSON, up to where they are damaged; never one of something inside the line."""
    assert readable_id(raw) == name


@given(st.binary(max_size=100) | st.text('{}[]":,id\\ custom_', max_size=40).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_searched_without_an_accident(raw: bytes) -> None:
    """Whatever a line is, there is an id in it or not."""
    name = readable_id(raw)
    assert name is None or (1 <= len(name) <= 256 and name.isprintable())
