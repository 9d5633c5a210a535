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
    command = [sys.executable, "-m", "bench.sides", side, task.model]
    command += [str(number) for number in (task.lines, task.new_tokens, task.seed)]
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as temporary:
        done = subprocess.run(
            command, cwd=ROOT, env=child_environment(temporary), capture_output=True, text=True, timeout=TIMEOUT_S
        )
    if done.returncode:
        raise RuntimeError(f"{side} on {task.model} failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    return [Measured(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def main(arguments: list[str]) -> None:
    side, model, *numbers = arguments
    lines, new_tokens, seed = map(int, numbers)
    module, name = SIDES[side]
    function: Any = getattr(importlib.import_module(module), name)
    measured: list[Measured] = function(Task(model, lines, new_tokens, seed))
    print(json.dumps([dataclasses.asdict(item) for item in measured]))


if __name__ == "__main__":
    main(sys.argv[1:])
