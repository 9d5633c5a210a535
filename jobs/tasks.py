"""The functions that RQ jobs name: what a plain RQ worker does that is started on our queues by mistake.

The jobs of schedules name one too, which the scheduler never calls.
"""

from __future__ import annotations

import logging
from time import sleep
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rq.job import Job

HOLD_S = 25.0
"""For so long a plain worker is kept from the next job: it would take one after the other, all day. It is less than the
30 s after which RQ's worker writes to the job that it believes to be at work on."""
REFUSED_ID = "taken-by-a-plain-rq-worker"
"""The job that RQ's tools show as failed. Under its own id RQ would end a job that is another's by then."""
SHOWN_S = 3600


def refuse(job: Job | None, message: str) -> NoReturn:
    """Have a job fail in a plain RQ worker, late, and leave alone what Redis keeps of it.

    Raises:
        RuntimeError: always; RQ logs the message, and shows it with its failed jobs for an hour.
    """
    if job is not None:
        job.id, job.failure_ttl, job.retries_left = REFUSED_ID, SHOWN_S, None
        logging.getLogger("rq.worker").error("%s", message)  # now, not in half a minute
        sleep(HOLD_S)
    raise RuntimeError(message)


def run_schedule(name: str, due: int) -> None:
    """Refuse: a schedule's run is the scheduler's.

    Raises:
        RuntimeError: always.
    """
    from rq import get_current_job

    refuse(
        get_current_job(),
        f"the run of schedule {name} at {due} was taken by a plain RQ worker: "
        "leave the queue promptmill:schedules to `promptmill scheduler`",
    )
