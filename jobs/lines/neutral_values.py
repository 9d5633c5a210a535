"""Values of other APIs' fields that change nothing ("off", "none", "as usual"): they are accepted.

A null counts as absent everywhere. Beyond that, a value of these tables changes nothing about the text, so it is taken;
any other value of the same field would, and is refused with what to write instead (:mod:`jobs.lines.foreign_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jobs.lines.foreign_names import is_foreign

__all__ = ["ABSENT", "asks_for_nothing", "is_empty", "meant_by_nothing"]

ABSENT: Final = object()
"""Stands for a field that was not given after all."""

WITHOUT_EFFECT = frozenset(
    {
        "user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "stream_options", "request_id", "cache_prompt", "keep_alive", "use_cache", "extra_headers",
    }
)  # fmt: skip
"""Whatever they say, the text is the same."""

OFF: Mapping[str, tuple[Any, ...]] = {
    # OpenAI
    "stream": (False,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "echo": (False,),
    "best_of": (1,),
    "modalities": (["text"],),
    "truncation": ("disabled", False),
    "verbosity": ("medium",),
    "reasoning_effort": ("medium",),
    "background": (False,),
    # vLLM, SGLang, TGI
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "detokenize": (True,),
    "priority": (0,),
    "truncate_prompt_tokens": (-1,),
    "return_full_text": (False,),
    "details": (False,),
    "decoder_input_details": (False,),
    "watermark": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "include_reasoning": (True,),
    "thinking_budget": (-1,),
    # transformers
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "diversity_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    # llama.cpp, Ollama
    "mirostat": (0,),
    "tfs_z": (1,),
    "typical": (1,),
    "top_a": (0,),
    "dynatemp_range": (0,),
    "dry_multiplier": (0,),
    "smoothing_factor": (0,),
    "penalize_nl": (False,),
    "n_probs": (0,),
    "n_keep": (0,),
    "raw": (False,),
    # a draft model is the worker's
    "draft_model": (False,),
}
"""Fields of other APIs, with the values that are their own defaults or switch them off."""

MEANT: Mapping[str, tuple[tuple[Any, ...], Any]] = {
    "top_k": ((-1,), 0),
    "stop": (("", {}), ()),
    "extra_eos_tokens": (("", {}), ()),
    "logit_bias": (("", []), {}),
    "metadata": (("", []), {}),
    "chat_template_kwargs": (("", []), {}),
    "system_prompt": (("", [], {}), ""),
    "prefill_response": (("", [], {}), ""),
    "adapter_path": (("",), None),
    "model": (("",), ABSENT),
    "response_format": (("", [], {}, "text"), ABSENT),
}
"""Fields of ours: what else may stand for "off", and the value that it means."""

EITHER = {"prompt": "messages", "messages": "prompt"}
"""Of these a line has one: the other may be there and empty."""


def is_empty(value: Any) -> bool:
    """Whether a value is null, ``""``, ``[]`` or ``{}``."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def asks_for_nothing(name: str, value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether a field that is none of ours changes nothing about the text; ``fields`` are all of the line."""
    if name in WITHOUT_EFFECT or (is_empty(value) and is_foreign(name)):
        return True
    if name == "best_of" and _same(value, fields.get("n", 1)):
        return True
    return any(_same(value, off) for off in OFF.get(name, ()))


def meant_by_nothing(name: str, value: Any, fields: Mapping[str, Any]) -> Any:
    """What a value that our own field ``name`` does not take means where it asks for nothing, which may be
    :data:`ABSENT`.

    Raises:
        LookupError: it asks for something.
    """
    if name in EITHER and is_empty(value) and not is_empty(fields.get(EITHER[name])):
        return ABSENT
    values, meaning = MEANT[name]
    if not any(_same(value, off) for off in values):
        raise LookupError(name)
    return meaning


def _same(value: Any, off: Any) -> bool:
    """Equal as JSON has it: 1 and 1.0 are, 1 and true are not."""
    return isinstance(value, bool) == isinstance(off, bool) and bool(value == off)
