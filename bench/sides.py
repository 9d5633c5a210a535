"""One side of the engine's benchmark, run in a process of its own.

    python -m bench.sides SIDE MODEL LINES NEW_TOKENS SEED

prints what was measured, as one line of JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from typing import Any

from bench.models import ROOT
from bench.record import child_environment
from bench.task import Measured, Task

SIDES = {
    "limit": ("bench.peers", "limit"),
    "mlx-lm-greedy": ("bench.peers", "greedy"),
    "mlx-lm-own": ("bench.peers", "own"),
    "mlx-lm-one": ("bench.peers", "one_at_a_time"),
    "mlx-lm-server": ("bench.server", "serve"),
    "greedy": ("bench.mill", "greedy"),
    "own": ("bench.mill", "own"),
    "alone": ("bench.mill", "alone"),
    "prefixes-off": ("bench.mill", "prefixes_off"),
    "prefixes-on": ("bench.mill", "prefixes_on"),
    "profile": ("bench.profile", "profile"),
}
"""Where each side is; a module is imported only by the process that runs one of its sides."""
ENGINE_SIDES = tuple(SIDES)[: list(SIDES).index("own") + 1]
"""Those of the engine's benchmark; the others are for ``endtoend``, ``prefixes`` and ``profile``."""

TIMEOUT_S = 3600


def run_side(side: str, task: Task) -> list[Measured]:
    """Run a side in a process of its own, with OpenBLAS and with nothing compiled before.

    Raises:
        RuntimeError: with the end of what the process said.
    """
    numbers = [str(number) for number in (task.lines, task.new_tokens, task.seed)]
    return measured_by("bench.sides", side, task.model, *numbers)


def measured_by(module: str, side: str, *arguments: str, given: str = "") -> list[Measured]:
    """What a module prints that runs one side, ``given`` on its standard input.

    Raises:
        RuntimeError: with the end of what the process said.
    """
    command = [sys.executable, "-m", module, side, *arguments]
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as temporary:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=child_environment(temporary),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            input=given,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    return [Measured(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def print_measured(place: tuple[str, str], task: Any) -> None:
    """Run the side that is at ``place``, a module and a function's name, and print what it measured."""
    module, name = place
    measured: list[Measured] = getattr(importlib.import_module(module), name)(task)
    print(json.dumps([dataclasses.asdict(item) for item in measured]))


def main(arguments: list[str]) -> None:
    side, model, *numbers = arguments
    lines, new_tokens, seed = map(int, numbers)
    print_measured(SIDES[side], Task(model, lines, new_tokens, seed))


if __name__ == "__main__":
    main(sys.argv[1:])
