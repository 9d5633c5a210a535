"""A worker without MLX that answers as fast as it can: ``python -m tests.quick_worker MODEL``, for tests and
measurements
of what lies before a worker. It answers each line with the line's id, a shard at a time."""

from __future__ import annotations

import os
import sys

from jobs.app.stop_signal import StopSignals
from jobs.batch import PRIORITIES, queue_name
from jobs.errors import PromptmillError
from jobs.lines.line import Defaults, check_line
from jobs.redis.connect import connect
from jobs.shard import decode_lines
from jobs.store.keys import nudge_key
from jobs.store.store import Store
from tests.pool import echo, finished_line, publish

BLOCK_S = 1


def work(store: Store, batch_id: str, number: int) -> None:
    """Answer the lines of a shard that have no record."""
    attempt, payload = store.claim(batch_id, number), store.payload(batch_id, number)
    if attempt is None or payload is None:
        return
    defaults = Defaults(store.batch(batch_id).defaults)
    lines = decode_lines(payload)
    jobs = [
        check_line(line.raw).job(index=line.index, line=line.line, batch_id=batch_id, defaults=defaults)
        for line in lines
        if line.index not in attempt.finished
    ]
    store.write(attempt, [finished_line(job, echo, batch_id) for job in jobs])
    store.finish(attempt, len(lines))


def main(model: str) -> int:
    stops = StopSignals()
    store = Store(connect(os.environ["PROMPTMILL_REDIS_URL"]))
    queues = [queue_name(model, priority) for priority in PRIORITIES]
    published = -1.0
    with stops.heard():
        while not stops.count:
            if (now := store.now()) - published > 1:
                published = now
                publish(store, f"quick.{os.getpid()}", models=[model], queues=queues, started_at=now)
            found = store.take(queues)
            if found is None:
                store.connection.blpop([nudge_key(queue) for queue in queues], BLOCK_S)
                continue
            queue, job_id = found
            batch_id, _, number = job_id.rpartition("-")
            try:
                work(store, batch_id, int(number))
            except PromptmillError as error:  # it was cancelled meanwhile, or removed
                sys.stderr.write(f"{error}\n")
            store.connection.lrem(f"rq:queue:{queue}:intermediate", 1, job_id)
            store.connection.delete(f"rq:job:{job_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
