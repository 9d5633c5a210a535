"""Curator's batch back end."""

from __future__ import annotations

from tests.clients.client import Check, Client, Place
from tests.clients.running import run_program


def run(place: Place) -> list[Check]:
    """Offline: without its telemetry, and with the table of prices that LiteLLM brings."""
    return run_program(
        place, "use_curator.py",
        CURATOR_CACHE_DIR=str(place.folder / "cache"), CURATOR_DISABLE_RICH_DISPLAY="1", TELEMETRY_ENABLED="0",
        LITELLM_LOCAL_MODEL_COST_MAP="True", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1",
    )  # fmt: skip


CLIENT = Client(
    name="curator",
    version="0.1.31",
    what="`curator.LLM(batch=True)` of 40 rows in three batches, and objects of a schema, with openai 2.30.0",
    run=run,
    packages=("bespokelabs-curator==0.1.31", "openai==2.30.0"),
)
