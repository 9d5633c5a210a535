"""`serve --cors-origin`: pages as browsers name them."""

from __future__ import annotations

import pytest

from jobs.errors import RefusedError
from serve.commands.serve import check_origin


@pytest.mark.parametrize("origin", ["https://tools.example", "http://localhost:3000", "chrome-extension://abc"])
def test_a_page_is_named_by_its_origin(origin: str) -> None:
    """Its scheme, its host and a port, with keys and without."""
    check_origin(origin, keys=False)


@pytest.mark.parametrize("origin", ["https://tools.example/", "tools.example", "https://A.example", "https://*.b", "*"])
def test_what_no_browser_writes_is_refused(origin: str) -> None:
    """It would let in nobody; all pages are let in only where there are keys."""
    with pytest.raises(RefusedError):
        check_origin(origin, keys=False)
    if origin == "*":
        check_origin(origin, keys=True)
