"""distilabel's offline batch generation."""

from __future__ import annotations

from tests.clients.client import Check, Client, Place
from tests.clients.running import run_program


def run(place: Place) -> list[Check]:
    return run_program(place, "use_distilabel.py", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


CLIENT = Client(
    name="distilabel",
    version="1.5.3",
    what="`OpenAILLM(use_offline_batch_generation=True)`, by itself and in a pipeline of 40 rows, with openai 3.57.0",
    run=run,
    packages=(
        "distilabel[openai]==1.5.3",
        "openai==3.57.0",
        "datasets==5.2.0",
        "requests==2.34.2",  # distilabel imports it and does not say so
    ),
    known={
        "a line that fails leaves its place empty": "distilabel reads only the output file, and OpenAI writes requests "
        "that failed into another: the answers after it move up",
    },
)
