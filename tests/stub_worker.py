"""A worker without MLX, as a process: ``python -m tests.stub_worker FLAGS`` answers with each line's id.

The model ``broken`` cannot be loaded: it ends with status 5.
"""

from __future__ import annotations

import argparse
import os
import sys

from jobs.app.stop_signal import StopSignals
from jobs.batch import PRIORITIES, queue_name
from jobs.redis.connect import connect
from jobs.shard import Group
from jobs.store.store import Store
from tests.pool import work


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--adapter-path", action="append", default=[])
    parser.add_argument("--pool")
    flags, _ = parser.parse_known_args()
    if "broken" in flags.model:
        sys.stderr.write("2026-01-01T00:00:00 INFO hello\n2026-01-01T00:00:00 ERROR broken: the folder is empty\n")
        return 5
    stops = StopSignals()
    store = Store(connect(os.environ["PROMPTMILL_REDIS_URL"]))
    groups = [Group(model, adapter) for model in flags.model for adapter in (None, *flags.adapter_path)]
    queues = [queue_name(group.key, priority, flags.pool) for group in groups for priority in PRIORITIES]
    with stops.heard():
        while not stops.count:
            if found := store.take(queues):
                work(store, found[1].rpartition("-")[0])
            stops.wakeup.wait(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main())
