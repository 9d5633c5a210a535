"""The official client of OpenAI, strict about what it gets: the part that `make test` runs too."""

from __future__ import annotations

from importlib.metadata import version

from tests.clients.client import Check, Client, Place
from tests.clients.environment import ROOT
from tests.clients.running import run_pytest


def run(place: Place) -> list[Check]:
    """Our own tests; they start servers of their own."""
    return run_pytest(place, "tests/e2e/test_serve.py", folder=ROOT)


CLIENT = Client(
    name="openai",
    version=version("openai"),
    what="files, batches, models, completions, with `_strict_response_validation`: `tests/e2e/test_serve.py`",
    run=run,
)
