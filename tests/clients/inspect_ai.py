"""Inspect's batch mode: `inspect eval --batch`."""

from __future__ import annotations

from tests.clients.client import Check, Client, Place
from tests.clients.running import run_program


def run(place: Place) -> list[Check]:
    return run_program(place, "use_inspect.py")


CLIENT = Client(
    name="inspect-ai",
    version="0.3.285",
    what="`inspect eval --batch` of 40 questions, with openai 3.57.0 and `-M responses_api=false`",
    run=run,
    packages=("inspect-ai==0.3.285", "openai==3.57.0"),
    known={
        "a line that fails fails alone": "Inspect cannot read the line of a request that failed, also not as OpenAI "
        "writes it (`--strict-openai`): all requests of the batch fail with it",
    },
)
