"""The function that shard jobs name. RQ's own workers would call it; promptmill's never do."""

from __future__ import annotations


def run_shard(batch_id: str, number: int, lines: int) -> None:
    """Refuse: a shard needs a worker that keeps a model loaded.

    Raises:
        RuntimeError: always; RQ then requeues the shard, and a promptmill worker can take it.
    """
    raise RuntimeError(
        f"shard {number} of {batch_id} ({lines} lines) was taken by a plain RQ worker: "
        "start `promptmill worker` on this queue instead"
    )
