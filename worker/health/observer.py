"""Events of a worker's lines and shards, for whoever keeps an account of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.shard import Group
    from worker.shards.claimed import End
    from worker.shards.records import EndedLine

__all__ = ["Observer"]


class Observer:
    """Keeps no account: see :class:`worker.health.prometheus.PrometheusMetrics` for one that does. Threads: any; each
    method says its own."""

    def line_ended(self, line: EndedLine, *, ok: bool) -> None:
        """A record was made of a line. Thread: scribe."""

    def line_retried(self, group: Group) -> None:
        """An attempt at a line failed, and it gets another one. Thread: writer."""

    def shard_taken(self, group: Group) -> None:
        """A shard was claimed. Thread: main."""

    def shard_ended(self, group: Group, end: End) -> None:
        """A shard is no longer this worker's; once for each. Threads: any."""
