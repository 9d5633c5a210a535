"""The function that jobs of schedules name. RQ's own workers would call it; the scheduler never does."""

from __future__ import annotations


def run_schedule(name: str, due: int) -> None:
    """Refuse: a schedule's run is the scheduler's.

    Raises:
        RuntimeError: always; the scheduler makes the job again.
    """
    raise RuntimeError(
        f"the run of schedule {name} at {due} was taken by a plain RQ worker: "
        "leave the queue promptmill:schedules to `promptmill scheduler`"
    )
