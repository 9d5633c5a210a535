"""Llama Stack's (now OGX) integration tests of batches. Their own fixtures start their own server; the plugin
`programs/llama_stack_shim.py` gives the tests a client of this one in place of that."""

from __future__ import annotations

import shutil

from tests.clients.client import Check, Client, Place, Suite
from tests.clients.running import PROGRAMS, run_pytest

TESTS = "tests/integration/batches"
SUITE = Suite(
    "llama-stack",
    "https://github.com/llamastack/llama-stack",
    "d1b6632946ca1bb953d47ea3317b8f3c30771d88",
    (f"/{TESTS}/",),
)


def run(place: Place) -> list[Check]:
    """In a copy, away from the settings and fixtures of the whole suite."""
    own = place.folder / "batches"
    shutil.copytree(place.suite / TESTS, own)
    return run_pytest(
        place, "-p", "llama_stack_shim", "batches", folder=place.folder, more={"PYTHONPATH": str(PROGRAMS)}
    )


CLIENT = Client(
    name="llama-stack",
    version=SUITE.revision[:8],
    what="`tests/integration/batches`, with openai 3.57.0 and a plugin of some lines that gives it a client",
    run=run,
    packages=("openai==3.57.0", "pytest==9.2.0"),
    suite=SUITE,
)
