"""How fast a model can decode on a machine at best: by what a step must read and must compute. No tensors."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.loading.config import Experts


@dataclass(frozen=True, slots=True)
class Limit:
    """What bounds the tokens per second of a batch.

    ``bandwidth`` is how many bytes a second the device moves when it copies, ``prefill`` how many tokens of prompts it
    computes a second. ``weights`` are the bytes that every step reads, whatever its rows; ``expert_weights`` those of
    all ``experts``, of which it reads the ones its rows go through. ``row_bytes`` are the caches of one row.
    """

    bandwidth: float
    prefill: float
    weights: int
    row_bytes: int
    expert_weights: int = 0
    experts: Experts | None = None

    def step_bytes(self, rows: int) -> float:
        """What a step with so many unlike rows must read."""
        share = 0.0 if self.experts is None else self.experts.share(rows)
        return self.weights + self.expert_weights * share + self.row_bytes * rows

    def at(self, rows: int) -> float:
        """The most tokens per second with so many rows: a step can be no faster than its reading, and a token no
        cheaper than one of a prompt."""
        return min(rows * self.bandwidth / max(1.0, self.step_bytes(rows)), self.prefill)
