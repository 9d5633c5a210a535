"""Who is let in where there are no keys."""

from __future__ import annotations

import pytest

from serve.access.access import Gate
from serve.errors import ApiError

HOST = b"localhost:8577"


def test_a_page_of_the_server_itself_is_let_in() -> None:
    """Browsers name its origin, and programs name none."""
    gate = Gate(None, ["https://tools.example.com"])
    for headers in ({}, {b"origin": b"http://localhost:8577"}, {b"origin": b"https://tools.example.com"}):
        assert gate.enter({b"host": HOST, **headers}).admin


@pytest.mark.parametrize("origin", [b"https://evil.example.com", b"null", b"http://localhost:1"])
def test_a_page_of_another_site_is_not(origin: bytes) -> None:
    """Its form would cancel batches, though it could not read the answer."""
    with pytest.raises(ApiError) as refused:
        Gate(None).enter({b"host": HOST, b"origin": origin})
    assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")
