"""Lines that share a long system prompt: with what they share computed once, and without.

python -m bench.prefixes [--model NAME] [--repeats N] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bench.engine import QUICK, measurement, run_by_itself
from bench.record import Measurement
from bench.sides import run_side
from bench.task import Task

MODEL = "small"
LINES = 64
NEW_TOKENS = 16
SIDES = ("prefixes-off", "prefixes-on")


def measure(run: str, model: str, repeats: int, *, quick: bool = False) -> Iterator[Measurement]:
    """Both sides once per round.

    Raises:
        RuntimeError: when the two give other tokens.
    """
    for number in range(repeats):
        task = Task(model, QUICK.lines if quick else LINES, QUICK.new_tokens if quick else NEW_TOKENS, number)
        off, on = (run_side(side, task)[0] for side in SIDES)
        print(f"{model:6} round {number + 1}/{repeats}  {off.seconds / on.seconds:.1f} times as fast", file=sys.stderr)
        if off.extra["digest"] != on.extra["digest"]:
            raise RuntimeError("rows that go on from a shared prefix have other tokens")
        for item in (off, on):
            yield measurement("prefixes", run, task, number, item)


if __name__ == "__main__":
    run_by_itself("python -m bench.prefixes", __doc__, MODEL, measure)
