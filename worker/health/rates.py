"""The rates of the last minute that a worker publishes, from the totals that its engines count."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from worker.models.compute import Snapshot

__all__ = ["KEPT_S", "Recent"]

KEPT_S = 60.0
"""Shares and lines per second are of so long a time: prompts come in waves."""
MOST_SAMPLES = 60


class Recent:
    """Takes in a snapshot about once a second; ``now`` is of a steady clock, in seconds."""

    def __init__(self, now: float, first: Snapshot) -> None:
        self._last = first
        self._samples: deque[_Sample] = deque([_sample(now, first)])
        self._speeds: deque[int] = deque(maxlen=MOST_SAMPLES)

    def add(self, now: float, shot: Snapshot) -> dict[str, Any]:
        """What is published of the time since the last snapshot, and of the last minute."""
        last, before = self._last, self._samples[-1].at
        self._last = shot
        speed = (shot.completion_tokens - last.completion_tokens) / max(now - before, 1e-6)
        self._speeds.append(round(speed))
        self._samples.append(_sample(now, shot))
        while len(self._samples) > 2 and now - self._samples[0].at > KEPT_S:
            self._samples.popleft()
        oldest = self._samples[0]
        stepped = shot.decode_slots - last.decode_slots
        read = shot.prompt_tokens - oldest.prompt_tokens
        # A row that begins again takes its prefix again, and its prompt counts once.
        cached = min(shot.cached_tokens - oldest.cached_tokens, read)
        return {
            "tokens_per_second": round(speed, 1),
            "speeds": list(self._speeds),
            "occupancy": round((shot.decode_rows - last.decode_rows) / stepped, 3) if stepped > 0 else None,
            "cached_share": round(cached / read, 3) if read > 0 else None,
            "lines_per_second": round((shot.finished_lines - oldest.lines) / max(now - oldest.at, 1e-6), 3),
        }


class _Sample(NamedTuple):
    at: float
    prompt_tokens: int
    cached_tokens: int
    lines: int


def _sample(now: float, shot: Snapshot) -> _Sample:
    return _Sample(now, shot.prompt_tokens, shot.cached_tokens, shot.finished_lines)
