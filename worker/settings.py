"""The settings of a worker: the options of its command line, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.app.worker_options import EngineSettings, ServiceOptions
from jobs.shard import Group
from worker.models.residency import STARVATION_S

__all__ = ["ServiceSettings"]


@dataclass(frozen=True, slots=True)
class ServiceSettings(ServiceOptions):
    """The options of a worker's life, and what it serves. ``metrics`` is the host and port for Prometheus."""

    groups: tuple[Group, ...]
    starvation_s: float = STARVATION_S
    metrics: tuple[str, int] | None = None
    """Host and port for Prometheus."""
    engine: EngineSettings = field(default_factory=EngineSettings)
