"""Snapshots of the engines' work, for ``status`` and the metrics, and the rates between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.sequence import InFlight

KEPT_S = 60.0
"""Shares and lines per second are of so long a time: prompts come in waves."""
MOST_SAMPLES = 60


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Replaced whole by the compute thread, so other threads read it without a lock."""

    in_flight: tuple[InFlight, ...] = ()
    decode_rows: int = 0
    decode_slots: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finished_lines: int = 0
    memory_bytes: int = 0
    prefix_bytes: int = 0
    preempted_rows: int = 0
    scored_tokens: int = 0


COUNTED = (
    "decode_rows",
    "decode_slots",
    "preempted_rows",
    "completion_tokens",
    "prompt_tokens",
    "cached_tokens",
    "finished_lines",
    "scored_tokens",
)
"""What a snapshot sums over the engines there are and were."""


def counted(engines: Sequence[Engine], past: Mapping[str, int]) -> dict[str, int]:
    """Totals of these engines and of ``past`` ones."""
    return {name: before + sum(getattr(engine.stats, name) for engine in engines) for name, before in past.items()}


def snapshot_of(engines: Sequence[Engine], past: Mapping[str, int]) -> Snapshot:
    """What these engines are doing; ``past`` has the totals of those that were unloaded."""
    memory = [engine.memory for engine in engines]
    return Snapshot(
        in_flight=tuple(line for engine in engines for line in engine.snapshot()),
        memory_bytes=memory[0][0] if memory else 0,
        prefix_bytes=sum(prefixes for _, prefixes in memory),
        **counted(engines, past),
    )


class Rates:
    """What a worker publishes of the last minute, from a snapshot about once a second. Thread: heartbeat; ``now`` is of
    a steady clock, in seconds."""

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
            "scored_per_second": round((shot.scored_tokens - oldest.scored_tokens) / max(now - since, 1e-6), 1),
            "lines_per_second": round((shot.finished_lines - oldest.finished_lines) / max(now - since, 1e-6), 3),
        }
