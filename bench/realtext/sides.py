"""One side of the benchmark of real text, run in a process of its own.

    python -m bench.realtext.sides SIDE < TASK

reads a task as JSON and prints what was measured, as one line of JSON.
"""

from __future__ import annotations

import sys

from bench.realtext.task import TextTask
from bench.sides import measured_by, print_measured
from bench.task import Measured

SIDES = {
    "engine": ("bench.realtext.mill", "engine"),
    "limit": ("bench.realtext.peers", "limit"),
    "batch-generator": ("bench.realtext.peers", "batch_generator"),
    "one": ("bench.realtext.peers", "one_at_a_time"),
}
"""Where each side is. The engine is the first of a round: how long its texts are is what the limit computes."""


def run_side(side: str, task: TextTask) -> Measured:
    """Run a side in a process of its own.

    Raises:
        RuntimeError: with the end of what the process said.
    """
    return measured_by("bench.realtext.sides", side, given=task.to_json())[0]


if __name__ == "__main__":
    print_measured(SIDES[sys.argv[1]], TextTask.from_json(sys.stdin.read()))
