"""A plugin of pytest: what the tests take from Llama Stack's own fixtures and packages, for a server that runs."""

from __future__ import annotations

import enum
import os
import sys
import types
from collections.abc import Iterator

import pytest
from openai import OpenAI


class OpenAIFilePurpose(enum.StrEnum):
    """The one name that the tests need of the package `ogx_api`."""

    BATCH = "batch"


package = types.ModuleType("ogx_api")
package.OpenAIFilePurpose = OpenAIFilePurpose  # type: ignore[attr-defined]
sys.modules["ogx_api"] = package


@pytest.fixture(scope="session")
def openai_client() -> Iterator[OpenAI]:
    with OpenAI(max_retries=0, timeout=30.0) as client:
        yield client


@pytest.fixture
def text_model_id() -> str:
    return os.environ["MODEL"]


@pytest.fixture
def embedding_model_id() -> str:
    pytest.skip("no model of embeddings is served")
