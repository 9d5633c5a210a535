"""The settings of a worker: what it serves, how it ends, and how its engines are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jobs.shard import Group
from worker.faults.spool import SPOOL_KEEP_S
from worker.models.load_failures import PATIENCE_S
from worker.models.residency import STARVATION_S
from worker.shards.claimed import MAX_ATTEMPTS

__all__ = ["DECODE_CONCURRENCY", "EngineSettings", "ServiceSettings"]

DECODE_CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How engines are made: mlx-lm's names; None is the engine's own default.

    ``autotune`` is the file that remembers how many rows suit each model, at most ``decode_concurrency`` of them.
    """

    decode_concurrency: int = DECODE_CONCURRENCY
    prompt_concurrency: int = 8
    prefill_step_size: int = 2048
    max_context: int | None = None
    memory_limit: int | None = None
    wired_limit: int | None = None
    prefix_memory: int | None = None
    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    draft_model: str | None = None
    num_draft_tokens: int = 3
    revision: str | None = None
    trust_remote_code: bool = False
    control_tokens: bool = False
    autotune: Path | None = None
    load_patience_s: float = PATIENCE_S


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What a worker serves and when it ends; times in seconds. ``parent`` is the process id that it ends with.

    ``spool`` is the folder in which finished records are kept for ``spool_keep_s`` (None: they are not), ``metrics``
    the host and port for Prometheus.
    """

    groups: tuple[Group, ...]
    pool: str | None = None
    name: str | None = None
    preload: bool = True
    burst: bool = False
    max_idle_s: float | None = None
    drain_s: float = 30.0
    parent: int | None = None
    recycle_after_tokens: int | None = None
    max_attempts: int = MAX_ATTEMPTS
    allow_sleep: bool = False
    starvation_s: float = STARVATION_S
    spool: Path | None = None
    spool_keep_s: float = SPOOL_KEEP_S
    metrics: tuple[str, int] | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
