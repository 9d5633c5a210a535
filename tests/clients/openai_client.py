"""The official client of OpenAI, strict about what it gets: our own tests of it, which `make test` runs too, and a
program that looks at real texts."""

from __future__ import annotations

from importlib.metadata import version

from tests.clients.client import Check, Client, Place
from tests.clients.environment import ROOT
from tests.clients.running import run_program, run_pytest


def run(place: Place) -> list[Check]:
    """The tests start servers of their own, with a worker that has no model."""
    return [*run_pytest(place, "tests/e2e/test_serve.py", folder=ROOT), *run_program(place, "use_openai.py")]


CLIENT = Client(
    name="openai",
    version=version("openai"),
    what="files, batches, models, completions, with `_strict_response_validation`: `tests/e2e/test_serve.py`, which is "
    "in `make test`, and `tests/clients/programs/use_openai.py`",
    run=run,
)
