"""A snapshot of the engines' work, for ``status`` and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.sequence import InFlight

__all__ = ["COUNTED", "Snapshot", "counted", "snapshot_of"]


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


COUNTED = ("decode_rows", "decode_slots", "completion_tokens", "prompt_tokens", "cached_tokens", "finished_lines")
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
