"""One part of the benchmark of guided lines, run in a process of its own.

    python -m bench.guided.sides PART < TASK

reads a task as JSON and prints what was measured, as one line of JSON.
"""

from __future__ import annotations

import sys

from bench.guided.task import GuidedTask
from bench.sides import measured_by, print_measured
from bench.task import Measured

SIDES = {
    "schemas": ("bench.guided.schemas", "side"),
    "texts": ("bench.guided.texts", "side"),
    "speed": ("bench.guided.speed", "side"),
    "waits": ("bench.guided.waits", "side"),
}
"""Where each part is."""


def run_side(part: str, task: GuidedTask) -> list[Measured]:
    """Run a part in a process of its own.

    Raises:
        RuntimeError: with the end of what the process said.
    """
    return measured_by("bench.guided.sides", part, given=task.to_json())


if __name__ == "__main__":
    print_measured(SIDES[sys.argv[1]], GuidedTask.from_json(sys.stdin.read()))
