"""LiteLLM's end-to-end tests of OpenAI's endpoints, those of files and batches: they ask `localhost:4000`."""

from __future__ import annotations

import shutil

from tests.clients.client import Check, Client, Place, Suite
from tests.clients.running import run_pytest

TESTS = "tests/openai_endpoints_tests"
MODULES = ("test_openai_files_endpoints.py", "test_openai_batches_endpoint.py")
SUITE = Suite(
    "litellm", "https://github.com/BerriAI/litellm", "5bb7394c93e00b5a45ae76f5de5335ee8dc5c667", (f"/{TESTS}/",)
)


def run(place: Place) -> list[Check]:
    """In a copy, because the tests write beside themselves."""
    own = place.folder / "tests"
    shutil.copytree(place.suite / TESTS, own)
    return run_pytest(place, *MODULES, folder=own)


CLIENT = Client(
    name="litellm",
    version=SUITE.revision[:8],
    what="`tests/openai_endpoints_tests` of files and batches, with openai 3.57.0",
    run=run,
    packages=("openai==3.57.0", "aiohttp==3.14.5", "pytest==9.2.0", "pytest-asyncio==1.5.0", "jsonlines==4.0.0"),
    suite=SUITE,
    models=("gpt-4o-2024-05-13",),
    port=4000,
    known={
        "test_vertex_batches_endpoint": "skipped by the suite itself: it needs Vertex AI",
        "test_list_batches_with_target_model_names": "skipped by the suite itself: it tests LiteLLM's own code",
    },
)
