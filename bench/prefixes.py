"""Lines that share a long system prompt: with what they share computed once, and without.

python -m bench.prefixes [--model NAME] [--repeats N] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from bench.engine import QUICK, add_options, measurement, opened
from bench.models import SHAPES
from bench.record import Measurement, append
from bench.sides import run_side
from bench.task import Task

__all__ = ["measure"]

MODEL = "small"
LINES = 64
NEW_TOKENS = 32
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.prefixes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, help=f"[default: {MODEL}, quick: {QUICK.model}]")
    add_options(parser)
    options = parser.parse_args(arguments)
    run, path = opened(options)
    model = options.model or (QUICK.model if options.quick else MODEL)
    for item in measure(run, model, options.repeats, quick=options.quick):
        append(path, [item])


if __name__ == "__main__":
    main()
