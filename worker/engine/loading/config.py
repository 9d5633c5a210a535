"""What a model's config says about it, under the names that the families of models have for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SECTIONS = ("text_config", "ffn_config")
"""Parts of a config in which a model of text, or of experts, may be described."""
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a layer, and how many of them each token goes through."""

    count: int
    per_token: int

    def share(self, tokens: int) -> float:
        """The part of the experts that so many unlike tokens go through, at random: what a step must read."""
        return 1.0 - (1.0 - self.per_token / self.count) ** tokens


def configured(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """The first positive number under one of ``keys``, in the config or in its part about text; of a list, which has
    one for each layer, the first."""
    for section in (config, *(config.get(name) or {} for name in SECTIONS)):
        for key in keys:
            value = section.get(key)
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, int) and value > 0:
                return value
    return None


def context_length_of(config: Mapping[str, Any]) -> int | None:
    """The most tokens a row may hold, None where the config does not say."""
    return configured(config, CONTEXT_KEYS)


def experts_of(config: Mapping[str, Any]) -> Experts | None:
    """The experts of a model that has some and chooses among them for each token."""
    count, per_token = configured(config, EXPERT_KEYS), configured(config, PER_TOKEN_KEYS)
    if count is None or per_token is None or per_token >= count:
        return None
    return Experts(count, per_token)
