"""What is read in models' configs, whatever their families call it."""

from __future__ import annotations

from typing import Any

import pytest

from worker.engine.loading.config import Experts, context_length_of, experts_of


@pytest.mark.parametrize(
    "config",
    [
        {"num_experts": 128, "num_experts_per_tok": 8},
        {"num_local_experts": 128, "num_experts_per_tok": 8},
        {"n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8},
        {"num_experts": 128, "num_experts_per_token": 8},
        {"num_local_experts": 128, "experts_per_token": 8},
        {"num_experts": [128, 128], "moe_topk": [8, 8]},
        {"moe_num_experts": 128, "moe_k": 8},
        {"moe_num_experts": 128, "moe_top_k": 8},
        {"text_config": {"num_experts": 128, "top_k_experts": 8}},
        {"ffn_config": {"moe_num_experts": 128, "moe_top_k": 8}},
    ],
)
def test_experts_are_found_under_each_familys_names(config: dict[str, Any]) -> None:
    """128 of them, 8 per token."""
    assert experts_of(config) == Experts(128, 8)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_experts": 0, "num_experts_per_tok": 2},
        {"num_experts": None},
        {"num_local_experts": 1, "num_experts_per_tok": 1},
        {"num_experts": 64},
        {"text_config": None},
    ],
)
def test_a_dense_model_has_no_experts(config: dict[str, Any]) -> None:
    """Nor has one whose single expert takes every token."""
    assert experts_of(config) is None


def test_the_context_of_a_models_text_counts() -> None:
    """Where a config has a part about text, beside one about pictures."""
    assert context_length_of({"n_ctx": 2048}) == 2048
    assert context_length_of({"text_config": {"max_position_embeddings": 4096}}) == 4096
    assert context_length_of({"max_position_embeddings": -1}) is None
