"""The rates of the last minute that a worker publishes, from the totals that its engines count."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.health.snapshot import Snapshot

__all__ = ["KEPT_S", "Rates"]

KEPT_S = 60.0
"""Shares and lines per second are of so long a time: prompts come in waves."""
MOST_SAMPLES = 60


class Rates:
    """Thread: heartbeat. Takes in a snapshot about once a second; ``now`` is of a steady clock, in seconds."""

    def __init__(self, now: float, first: Snapshot) -> None:
        self._samples = deque([(now, first)])
        self._speeds: deque[int] = deque(maxlen=MOST_SAMPLES)

    def add(self, now: float, shot: Snapshot) -> dict[str, Any]:
        """What is published of the time since the last snapshot, and of the last minute."""
        before, last = self._samples[-1]
        speed = (shot.completion_tokens - last.completion_tokens) / max(now - before, 1e-6)
        self._speeds.append(round(speed))
        self._samples.append((now, replace(shot, in_flight=())))
        while len(self._samples) > 2 and now - self._samples[0][0] > KEPT_S:
            self._samples.popleft()
        since, oldest = self._samples[0]
        stepped = shot.decode_slots - last.decode_slots
        read = shot.prompt_tokens - oldest.prompt_tokens
        # A row that begins again takes its prefix again, and its prompt counts once.
        cached = min(shot.cached_tokens - oldest.cached_tokens, read)
        return {
            "tokens_per_second": round(speed, 1),
            "speeds": list(self._speeds),
            "occupancy": round((shot.decode_rows - last.decode_rows) / stepped, 3) if stepped > 0 else None,
            "cached_share": round(cached / read, 3) if read > 0 else None,
            "lines_per_second": round((shot.finished_lines - oldest.finished_lines) / max(now - since, 1e-6), 3),
        }
