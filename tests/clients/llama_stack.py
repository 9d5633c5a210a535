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
    what="`tests/integration/batches`, with openai 2.30.0 and a plugin of some lines that gives it a client",
    run=run,
    packages=("openai==2.30.0", "pytest==8.4.2"),
    suite=SUITE,
    known={
        "test_batch_e2e_embeddings": "no model of embeddings is served",
        "test_batch_invalid_completion_window": "it wants `1h` refused; here a window is any time from 1m to 31d",
        "test_file_malformed_batch_file[empty]": "an expected failure of the suite: it wants the upload itself to be "
        "refused; OpenAI and promptmill check files when a batch is made of them",
        "test_file_malformed_batch_file[malformed]": "as the one above",
    },
)
