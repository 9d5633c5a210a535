"""Fields of other tools: the name here, or what is to be written instead; and the values that ask for nothing.

The tools: OpenAI's other APIs, vLLM, SGLang, TGI, transformers, Ollama, llama.cpp, Anthropic, Bedrock, Gemini, and the
rows of common data sets. A null counts as absent everywhere. What other APIs and their clients write for "off", "none"
and "as usual" changes nothing about the text, so it is taken; any other value would, and is refused with the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any, Final

from jobs.errors import LineError
from jobs.params import PARAMETERS

ABSENT: Final = object()
"""Stands for a field that was not given after all."""

_OTHER_NAMES: Mapping[str, str] = {
    "max_tokens": "max_length max_output_tokens max_tokens_to_sample max_token_count max_gen_len num_predict n_predict",
    "min_tokens": "min_length min_new_tokens",
    "repetition_penalty": "repeat_penalty rep_pen",
    "repetition_context_size": "repetition_penalty_range repeat_last_n penalty_last_n",
    "n": "num_return_sequences num_completions candidate_count",
    "stop": "stop_sequences stop_strings stop_words",
    "seed": "random_seed",
    "logprobs": "response_logprobs",
    "top_logprobs": "n_probs logprobs_count top_n_tokens",
    "model": "model_name model_id",
    "adapter_path": "lora lora_path adapter",
    "system_prompt": "system system_instruction system_message instructions",
    "prefill_response": "prefill",
    "chat_template_kwargs": "template_kwargs",
    "messages": "conversation chat dialog",
    "prompt": "input_text",
    "metadata": "extra",
    "guided_json": "json_schema response_schema",
    "guided_regex": "regex",
    "thinking_budget": "thinking_budget_tokens max_thinking_tokens reasoning_budget thinking_token_budget",
}
RENAMED: Mapping[str, str] = {other: ours for ours, others in _OTHER_NAMES.items() for other in others.split()}
"""Other names of what we have; they are also known with capitals in place of underscores."""

WRAPPERS: Mapping[str, str] = {
    "sampling_params": "vLLM's",
    "extra_body": "the OpenAI client's",
    "options": "Ollama's",
    "parameters": "TGI's",
    "generation_config": "Gemini's",
    "inference_config": "Bedrock's",
    "text_generation_config": "Bedrock's",
    "additional_model_request_fields": "Bedrock's",
    "generate_kwargs": "the pipeline's",
}
"""Objects that hold parameters which stand in the line itself here."""


def _unsupported(remedy: str, *names: str, **off: Any) -> tuple[str, Mapping[str, Any]]:
    """Fields of one remedy. Those with a value ask for nothing by it; a tuple holds several such values."""
    return remedy, {**dict.fromkeys(names, ()), **off}


_UNSUPPORTED = (
    # --- conversations and tools ---
    _unsupported('write \'tools\': [{"type": "function", "function": {...}}]', "functions"),
    _unsupported(
        'write \'tool_choice\': {"type": "function", "function": {"name": ...}}', function_call=("none", "auto")
    ),
    _unsupported('only ["text"] is generated', modalities=["text"]),
    _unsupported("only text is generated", "audio"),
    _unsupported("only text is read", "images"),
    _unsupported("nothing is searched: put what is to be known into the prompt", "web_search_options"),
    _unsupported("lines know of no others: write the whole conversation into 'messages'", "previous_response_id"),
    _unsupported("nothing is filtered: remove it", "safety_settings"),
    _unsupported("remove it", "anthropic_version"),
    # --- the prompt ---
    _unsupported(
        "the prompt is not repeated in the text: put it before the text yourself", echo=False, return_full_text=False
    ),
    _unsupported("text is not inserted before a suffix: put both into the prompt", "suffix"),
    _unsupported(
        "a prompt that is too long is an error: shorten it", truncation=("disabled", False), truncate_prompt_tokens=-1
    ),
    _unsupported("a prompt that is too long is an error: remove it", n_keep=0),
    _unsupported("a 'prompt' is always taken as it stands, 'messages' go through the template: remove it", raw=False),
    _unsupported(
        "the chat template is the model's: write the whole text into 'prompt' instead of 'messages'",
        "template",
        "chat_template",
    ),
    _unsupported(
        "write them into the prompt, or into 'chat_template_kwargs' where the template knows them", "documents"
    ),
    _unsupported(
        "what the tokenizer adds to a 'prompt', and the template to 'messages', is added: remove it",
        "add_special_tokens",
    ),
    # --- thinking, and how long the answer is ---
    _unsupported(
        'the chat template may know it: write "chat_template_kwargs": {"reasoning_effort": "low"}, or '
        '{"enable_thinking": false}, as the model has it',
        reasoning_effort="medium",
    ),
    _unsupported(
        'the chat template may know it: write "chat_template_kwargs": {"enable_thinking": true}',
        "reasoning",
        "thinking",
        "think",
    ),
    _unsupported("reasoning is always in the record, apart from the text: remove it", include_reasoning=True),
    _unsupported("say in the prompt how long the answer is to be", verbosity="medium"),
    # --- the text ---
    _unsupported(
        "write 'response_format': {\"type\": \"json_object\"}, or 'guided_json' with a schema",
        "format",
        response_mime_type="text/plain",
    ),
    _unsupported("write 'guided_grammar' with a grammar in Lark", "grammar", "ebnf"),
    _unsupported("between the parts of JSON there is one blank or none: remove it", "guided_whitespace_pattern"),
    _unsupported("write the tokens' texts into 'extra_eos_tokens', as [\"<|im_end|>\"]", "stop_token_ids"),
    _unsupported("write the token's text into 'extra_eos_tokens', as [\"<|im_end|>\"]", "eos_token_id"),
    _unsupported("give their tokens -100 in 'logit_bias'", "bad_words"),
    _unsupported("give them -100 in 'logit_bias', as {\"1234\": -100}", "bad_words_ids", "suppress_tokens"),
    _unsupported("give the others -100 in 'logit_bias', as {\"1234\": -100}", "allowed_token_ids"),
    _unsupported("lines bring no code: see 'logit_bias' and the penalties", "logits_processors"),
    _unsupported(
        "no text holds the token that ended it: remove it", skip_special_tokens=True, spaces_between_special_tokens=True
    ),
    _unsupported(
        "the record has what matched as 'stop_string': put it behind the text yourself",
        include_stop_str_in_output=False,
        no_stop_trim=False,
    ),
    _unsupported("records hold text: remove it", detokenize=True),
    _unsupported("'logprobs': true gives each token: remove it", details=False),
    _unsupported("only new tokens have log-probabilities: remove it", "prompt_logprobs", decoder_input_details=False),
    _unsupported("nothing is scored: remove it", "continuation"),
    _unsupported("write 'return_token_ids': true", return_tokens_as_token_ids=False),
    _unsupported("texts have no watermark: remove it", watermark=False),
    # --- sampling ---
    _unsupported("no best one is chosen: 'n' gives as many texts as it says", best_of=1),
    _unsupported(
        "there is no beam search: 'n' gives several texts of their own",
        "beam_width",
        use_beam_search=False,
        num_beams=1,
        num_beam_groups=1,
    ),
    _unsupported(
        "it is of beam search, which there is none of: remove it",
        length_penalty=1,
        early_stopping=False,
        diversity_penalty=0,
    ),
    _unsupported("use 'repetition_penalty' or 'frequency_penalty'", no_repeat_ngram_size=0, dry_multiplier=0),
    _unsupported("use 'repetition_penalty'", encoder_repetition_penalty=1),
    _unsupported("there is no guidance by a second prompt: remove it", guidance_scale=1),
    _unsupported("use 'min_p' or 'top_p'", typical_p=1, typical=1, tfs_z=1, mirostat=0),
    _unsupported("use 'min_p'", epsilon_cutoff=0, eta_cutoff=0, top_a=0),
    _unsupported("it is of mirostat, which there is none of: remove it", "mirostat_tau", "mirostat_eta"),
    _unsupported("use 'temperature'", "dynatemp_exponent", dynatemp_range=0, smoothing_factor=0),
    _unsupported("it is of DRY, which there is none of: remove it", "dry_base", "dry_allowed_length"),
    _unsupported("newlines are penalised as other tokens are: remove it", penalize_nl=False),
    _unsupported("the order of the filters is always the same: remove it", "samplers"),
    # --- the worker and the batch ---
    _unsupported("a batch does not stream; remove it", stream=False),
    _unsupported("a batch is in the background anyway: remove it", background=False),
    _unsupported("a batch has one priority, of `submit --priority`: remove it", priority=0),
    _unsupported("a batch may end after a time: `submit --expires-in`; remove it", "timeout"),
    _unsupported(
        "no predicted output is used: remove it (a worker's --draft-model makes decoding faster)", "prediction"
    ),
    _unsupported("a draft model is the worker's: `promptmill worker --draft-model`", draft_model=False),
    _unsupported("a draft model is the worker's: `promptmill worker --num-draft-tokens`", "num_draft_tokens"),
    _unsupported("the context is the worker's: `promptmill worker --max-context`; remove it", "num_ctx"),
    _unsupported("it is no matter of a line: remove it", "num_thread", "num_gpu"),
    _unsupported("it is no matter of a line: `promptmill worker --decode-concurrency`; remove it", "num_batch"),
)
UNSUPPORTED: Mapping[str, str] = {name: remedy for remedy, fields in _UNSUPPORTED for name in fields}
"""What would change the text and is not done: what to do instead."""

EXPLAINED: Mapping[str, str] = {
    "enable_thinking": "goes into 'chat_template_kwargs': {\"enable_thinking\": ...}",
    "inputs": "is 'prompt' here (a text), or 'messages'",
    "input": 'is \'prompt\' here, or \'messages\': [{"role": "user", "content": ...}]',
    "contents": "is 'messages' here: [{\"role\": \"user\", \"content\": ...}]; Gemini's role 'model' is 'assistant'",
    "conversations": "is 'messages' here: [{\"role\": \"user\", \"content\": ...}]; ShareGPT's 'from' and 'value' are "
    "'role' and 'content', its 'human' and 'gpt' are 'user' and 'assistant'",
    "prompts": "is 'prompt' here, one line for each",
    "prompt_token_ids": "is no text: a line gives 'prompt' or 'messages'",
    "input_ids": "is no text: a line gives 'prompt' or 'messages'",
    "question": 'goes into \'messages\': [{"role": "user", "content": ...}], or is \'prompt\' here',
    "instruction": 'goes into \'messages\': [{"role": "user", "content": ...}], or is \'prompt\' here',
    "max_completion_tokens": "is 'max_tokens' here",
    "custom_id": "is 'id' here; an OpenAI batch line has its other fields in 'body'",
    "method": "belongs to an OpenAI batch line, which has its fields in 'body'",
    "url": "belongs to an OpenAI batch line, which has its fields in 'body'",
    "ignore_eos_token": "is 'ignore_eos' here",
}
"""Names that need more than another name."""

COLUMNS = frozenset(
    {
        "audio", "chat", "conversation", "details", "dialog", "documents", "extra", "images", "input", "instruction",
        "prediction", "question", "raw", "reasoning", "template", "thinking",
    }
)  # fmt: skip
"""Names that columns of data sets have too."""

WITHOUT_EFFECT = frozenset(
    {
        "user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "stream_options", "request_id", "guided_decoding_backend", "cache_prompt", "keep_alive", "use_cache",
        "extra_headers",
    }
)  # fmt: skip
"""Whatever they say, the text is the same."""

_OFF: Mapping[str, Any] = {name: off for _, fields in _UNSUPPORTED for name, off in fields.items()} | {
    "num_return_sequences": 1,
    "n_probs": 0,
}
"""Fields of other APIs, with what is their own default or switches them off."""

MEANT: Mapping[str, tuple[tuple[Any, ...], Any]] = {
    "metadata": (("", []), {}),
    "chat_template_kwargs": (("", []), {}),
    "system_prompt": (("", [], {}), ""),
    "prefill_response": (("", [], {}), ""),
    "adapter_path": (("",), None),
    "model": (("",), ABSENT),
    "response_format": (("", [], {}, "text"), {"type": "text"}),
    **dict.fromkeys(("guided_regex", "guided_grammar", "structured_outputs"), (("", [], {}), None)),
    "guided_json": (("", []), None),
    "thinking_budget": (("", [], {}, -1), None),
    "tools": (("", {}), ()),
    "tool_choice": (("", [], {}), "auto"),
    "parallel_tool_calls": (("", [], {}), True),
    "return_token_ids": (("", [], {}), False),
}
"""Fields of ours that are no parameters: what else may stand for "off", and the value that it means."""

EITHER = {"prompt": "messages", "messages": "prompt"}
"""Of these a line has one: the other may be there and empty."""


def is_foreign(name: str) -> bool:
    """Whether another tool has a field of this name."""
    return any(_snake(name) in table for table in (RENAMED, WRAPPERS, UNSUPPORTED, EXPLAINED))


def is_column(name: str, value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether a field is more likely a column of the user's own data: a text, beside the prompt that was made of it."""
    return name in COLUMNS and isinstance(value, str) and ("prompt" in fields or "messages" in fields)


def renamed(name: str, known: Container[str]) -> str | None:
    """Our name of a field of another tool, or of one of ours that is written in another way, such as ``topP``."""
    snake = _snake(name)
    return snake if snake != name and snake in known else RENAMED.get(snake)


def foreign_field(name: str, value: Any, known: Container[str]) -> tuple[str, str] | None:
    """The error's code and what is to be said of a field that another tool has; ``known`` are our own."""
    snake = _snake(name)
    if (meant := renamed(name, known)) is not None:
        return "unknown_field", f"is '{meant}' here"
    if snake in UNSUPPORTED:
        return "unsupported", f"is not supported: {UNSUPPORTED[snake]}"
    if snake in EXPLAINED:
        return "unknown_field", EXPLAINED[snake]
    if snake not in WRAPPERS:
        return None
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []
    others = [f"; '{key}' is '{meant}' here" for key in keys if (meant := renamed(key, known)) is not None]
    return "unknown_field", f"is {WRAPPERS[snake]}: write its fields beside 'prompt' or 'messages'{''.join(others)}"


def is_empty(value: Any) -> bool:
    """Whether a value is null, ``""``, ``[]`` or ``{}``."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def asks_for_nothing(name: str, value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether a field that is none of ours changes nothing about the text; ``fields`` are all of the line."""
    if name in WITHOUT_EFFECT or (is_empty(value) and is_foreign(name)):
        return True
    if name == "best_of" and _same(value, fields.get("n", 1)):
        return True
    off = _OFF.get(name, ())
    return any(_same(value, one) for one in (off if isinstance(off, tuple) else (off,)))


def meant_by_nothing(name: str, value: Any, fields: Mapping[str, Any], error: LineError) -> Any:
    """What a value that our own field ``name`` does not take means where it asks for nothing, which may be
    :data:`ABSENT`; ``error`` where it asks for something."""
    if name in EITHER and is_empty(value) and not is_empty(fields.get(EITHER[name])):
        return ABSENT
    values, meaning = MEANT.get(name, ((), None))
    if name in PARAMETERS:
        values, meaning = PARAMETERS[name].off, PARAMETERS[name].default
    return meaning if any(_same(value, off) for off in values) else error


def _same(value: Any, off: Any) -> bool:
    """Equal as JSON has it: 1 and 1.0 are, 1 and true are not."""
    return isinstance(value, bool) == isinstance(off, bool) and bool(value == off)


_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def _snake(name: str) -> str:
    return _CAPITAL.sub("_", name[:80]).lower().replace("-", "_")
