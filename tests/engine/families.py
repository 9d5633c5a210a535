"""Model families of mlx-lm, each as a tiny model with random weights, and what the engine should find out about it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

VOCAB = 256


@dataclass(frozen=True, slots=True)
class Family:
    """``config`` is what differs from :data:`COMMON`.

    ``batches`` is True, or a part of the reason why rows run one at a time; ``padded`` whether prompts of different
    lengths are prefilled together. ``prefixes``: from what prompts share, any part can be used, only ``exact``ly what
    was kept, or nothing.
    """

    config: dict[str, Any]
    batches: Literal[True] | str = True
    padded: bool = True
    prefixes: Literal["any part", "exact", "no"] = "any part"


COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "head_dim": 16,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
LOW_RANK = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "routed_scaling_factor": 1.0,
}
DEEPSEEK = {
    **LOW_RANK,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
LONGCAT = {
    **LOW_RANK,
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 128,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 64,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "num_layers": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "attention_bias": False,
}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32}
DELTA |= {"linear_value_head_dim": 32, "linear_conv_kernel_dim": 4}
WINDOWS = ["sliding_attention", "full_attention"]
WINDOW = 12
"""Tokens of sliding windows: most prompts are longer."""

FAMILIES: dict[str, Family] = {
    # Keys and values of all tokens.
    "llama": Family({"tie_word_embeddings": False}),
    "qwen2": Family({}),
    "qwen3": Family({"tie_word_embeddings": False}),
    "qwen3_moe": Family({"tie_word_embeddings": False, **EXPERTS}),
    # Its attention and its masks of batches do not fit each other.
    "gemma2": Family({}, batches="cannot be broadcast", padded=False, prefixes="no"),
    "phi3": Family({}),
    "mixtral": Family({"num_local_experts": 4}),
    "smollm3": Family({"num_hidden_layers": 4}),
    "ernie4_5": Family({"use_bias": False, "tie_word_embeddings": True}),
    "bailing_moe": Family({**EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1}),
    "glm4_moe": Family(
        {
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "routed_scaling_factor": 1.0,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "rope_scaling": None,
            "use_qk_norm": True,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "partial_rotary_factor": 0.5,
        }
    ),
    "minimax": Family(
        {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64, "rotary_dim": 8}
    ),
    "afm7": Family(
        {"hidden_dim": 64, "num_layers": 3, "num_kv_reuse_layers": 1, "num_heads": 4, "num_kv_heads": 2},
        batches="logits are off",
        padded=False,
        prefixes="no",
    ),
    # The same, compressed; two caches per layer in the last ones.
    "deepseek_v3": Family(DEEPSEEK),
    "deepseek_v32": Family({**DEEPSEEK, "index_head_dim": 32, "index_n_heads": 2, "index_topk": 8}),
    "longcat_flash": Family(LONGCAT),
    # Sliding windows.
    "gemma3_text": Family(
        {"num_hidden_layers": 4, "sliding_window": WINDOW, "sliding_window_pattern": 2}, prefixes="exact"
    ),
    "gemma3n": Family(
        {
            "text_config": {
                **COMMON,
                "model_type": "gemma3n_text",
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": VOCAB,
                "sliding_window": WINDOW,
                "rope_local_base_freq": 10000.0,
                "final_logit_softcapping": 30.0,
                "layer_types": [*WINDOWS, *WINDOWS],
                "activation_sparsity_pattern": [0.0] * 4,
                "hidden_size_per_layer_input": 16,
                "altup_num_inputs": 2,
                "altup_coef_clip": 120.0,
                "altup_correct_scale": True,
                "altup_active_idx": 0,
                "laurel_rank": 8,
            }
        },
        prefixes="exact",
    ),
    "gemma4_text": Family(
        {
            "num_hidden_layers": 4,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": VOCAB,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 16,
            "sliding_window": WINDOW,
            "layer_types": [*WINDOWS, *WINDOWS],
            "tie_word_embeddings": True,
        },
        prefixes="exact",
    ),
    "ministral3": Family(
        {
            "layer_types": WINDOWS,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 64,
                "type": "default",
            },
        },
        prefixes="exact",
    ),
    "cohere2": Family(
        {"num_hidden_layers": 4, "sliding_window": WINDOW, "sliding_window_pattern": 2}, prefixes="exact"
    ),
    "olmo3": Family({"layer_types": WINDOWS, "sliding_window": WINDOW}, prefixes="exact"),
    "exaone4": Family(
        {
            "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "default"},
            "sliding_window": WINDOW,
            "sliding_window_pattern": "LG",
        },
        prefixes="exact",
    ),
    "gpt_oss": Family(
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW, "layer_types": WINDOWS},
        prefixes="exact",
    ),
    "mimo_v2_flash": Family(
        {
            "num_experts_per_tok": 2,
            "hybrid_layer_pattern": [1, 0],
            "moe_layer_freq": [0, 1],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
            "sliding_window_size": WINDOW,
            "moe_intermediate_size": 64,
            "n_shared_experts": None,
            "n_routed_experts": 4,
            "routed_scaling_factor": None,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "layernorm_epsilon": 1e-5,
            "swa_rope_theta": 10000.0,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "v_head_dim": 16,
            "swa_head_dim": 16,
            "swa_v_head_dim": 16,
            "partial_rotary_factor": 0.5,
        },
        prefixes="exact",
    ),
    # Recurrent state, alone and between attention.
    "mamba": Family(
        {"state_size": 16, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 8},
        padded=False,
        prefixes="exact",
    ),
    "mamba2": Family(
        {
            "num_heads": 4,
            "head_dim": 32,
            "state_size": 16,
            "layer_norm_epsilon": 1e-5,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_bias": False,
            "use_conv_bias": True,
            "tie_word_embeddings": False,
            "time_step_limit": [0.001, 100.0],
            "time_step_rank": "auto",
        },
        prefixes="exact",
    ),
    "rwkv7": Family(
        {
            "norm_eps": 1e-5,
            "head_dim": 32,
            "a_low_rank_dim": 16,
            "v_low_rank_dim": 16,
            "gate_low_rank_dim": 16,
            "decay_low_rank_dim": 16,
        },
        padded=False,
        prefixes="exact",
    ),
    "qwen3_next": Family(
        {
            **DELTA,
            **EXPERTS,
            "shared_expert_intermediate_size": 64,
            "partial_rotary_factor": 0.5,
            "full_attention_interval": 2,
        },
        prefixes="exact",
    ),
    "granitemoehybrid": Family(
        {
            "attention_bias": False,
            "embedding_multiplier": 4.0,
            "attention_multiplier": 0.25,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
            "layer_types": ["mamba", "attention"],
            "position_embedding_type": "nope",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_proj_bias": False,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_n_groups": 1,
            "mamba_conv_bias": True,
        },
        prefixes="exact",
    ),
    "falcon_h1": Family(
        {"mamba_d_head": 32, "mamba_d_ssm": 128, "mamba_d_state": 16, "mamba_n_heads": 4, "mamba_chunk_size": 16},
        prefixes="exact",
    ),
    "nemotron_h": Family(
        {
            "num_hidden_layers": 3,
            "attention_bias": False,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "mamba_proj_bias": False,
            "ssm_state_size": 16,
            "conv_kernel": 4,
            "n_groups": 1,
            "mlp_bias": False,
            "layer_norm_epsilon": 1e-5,
            "use_bias": False,
            "use_conv_bias": True,
            "hybrid_override_pattern": ["M", "*", "-"],
        },
        padded=False,
        prefixes="exact",
    ),
    "jamba": Family(
        {
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_conv": 4,
            "mamba_d_state": 16,
            "mamba_expand": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        padded=False,
        prefixes="exact",
    ),
    "plamo2": Family(
        {
            "hidden_size_per_head": 16,
            "attention_window_size": 2048,
            "full_attention_idx": [1],
            "mamba_d_state": 16,
            "mamba_num_heads": 4,
        },
        prefixes="exact",
    ),
    "lfm2": Family(
        {
            "num_hidden_layers": 4,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 64,
            "block_ff_dim": 128,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
        },
        prefixes="exact",
    ),
    "kimi_linear": Family(
        {
            **LOW_RANK,
            "num_key_value_heads": 4,
            "linear_attn_config": {
                "kda_layers": [1],
                "full_attn_layers": [2],
                "num_heads": 4,
                "head_dim": 32,
                "short_conv_kernel_size": 4,
            },
            "model_max_length": 4096,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
        },
        prefixes="exact",
    ),
    "bailing_moe_linear": Family(
        {
            **EXPERTS,
            "num_key_value_heads": 4,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "layer_group_size": 2,
            "group_norm_size": 2,
        },
        padded=False,
        prefixes="exact",
    ),
    "olmo_hybrid": Family(
        {
            **DELTA,
            "linear_allow_neg_eigval": True,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "layer_types": ["linear_attention", "full_attention"],
        },
        padded=False,
        prefixes="exact",
    ),
    "longcat_flash_ngram": Family(
        {**LONGCAT, "ngram_vocab_size_ratio": 3, "emb_neighbor_num": 2, "emb_split_num": 2},
        padded=False,
        prefixes="exact",
    ),
    "qwen3_5": Family(
        {
            "text_config": {
                **COMMON,
                **DELTA,
                "model_type": "qwen3_5_text",
                "full_attention_interval": 2,
                "tie_word_embeddings": True,
            }
        },
        prefixes="exact",
    ),
    "lfm2_moe": Family(
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "use_expert_bias": True,
            "num_dense_layers": 1,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        prefixes="exact",
    ),
    "gear": Family(
        {"num_hidden_layers": 3, "layer_types": ["conv_mixer", *WINDOWS], "sliding_window": WINDOW},
        prefixes="exact",
    ),
    "recurrent_gemma": Family(
        {
            "num_hidden_layers": 3,
            "attention_bias": False,
            "conv1d_width": 4,
            "logits_soft_cap": 30.0,
            "num_key_value_heads": 1,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
        # It takes an empty state for more than zeros, so a prompt of one token goes wrong beside others.
        batches="logits are off",
        padded=False,
        prefixes="no",
    ),
    "baichuan_m1": Family(
        {"sliding_window": WINDOW, "sliding_window_layers": [0], "conv_window": 2},
        padded=False,
        prefixes="exact",
    ),
    # Chunks, and caches of a model's own.
    "llama4": Family(
        {
            "text_config": {
                **COMMON,
                "model_type": "llama4_text",
                "num_hidden_layers": 4,
                "attention_bias": False,
                "attention_chunk_size": 16,
                "interleave_moe_layer_step": 2,
                "intermediate_size_mlp": 128,
                "num_experts_per_tok": 1,
                "num_local_experts": 4,
                "rope_scaling": None,
                "use_qk_norm": True,
            }
        },
        batches="has no attribute 'merge'",
        padded=False,
        prefixes="no",
    ),
    "deepseek_v41": Family(
        {
            **DEEPSEEK,
            "o_groups": 2,
            "o_lora_rank": 16,
            "sliding_window": WINDOW,
            "compress_ratios": [1, 2],
        },
        batches="has no attribute 'merge'",
        padded=False,
        prefixes="no",
    ),
}


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """What the ``config.json`` of a tiny model of ``kind`` would hold."""
    return {**COMMON, **FAMILIES[kind].config, "model_type": kind, **changes}


def new_model(kind: str, **changes: Any) -> Any:
    """A tiny model of mlx-lm, its weights random and not computed yet."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(11)
    return module.Model(module.ModelArgs.from_dict(config_of(kind, **changes)))
