"""Names that other tools have for fields, and what is to be written here instead.

The tools: OpenAI's other APIs, vLLM, SGLang, TGI, transformers, Ollama, llama.cpp, Anthropic, Bedrock, Gemini, and the
rows of common data sets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.lines.values import are_rows

__all__ = ["cure_of_row", "cure_of_wrapper", "explained", "is_column", "is_foreign", "renamed", "unsupported"]

RENAMED: Mapping[str, str] = {
    "max_length": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_tokens_to_sample": "max_tokens",
    "max_token_count": "max_tokens",
    "max_gen_len": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "min_length": "min_tokens",
    "min_new_tokens": "min_tokens",
    "repeat_penalty": "repetition_penalty",
    "rep_pen": "repetition_penalty",
    "repetition_penalty_range": "repetition_context_size",
    "repeat_last_n": "repetition_context_size",
    "penalty_last_n": "repetition_context_size",
    "num_return_sequences": "n",
    "num_completions": "n",
    "candidate_count": "n",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "random_seed": "seed",
    "n_probs": "top_logprobs",
    "logprobs_count": "top_logprobs",
    "top_n_tokens": "top_logprobs",
    "response_logprobs": "logprobs",
    "lora": "adapter_path",
    "lora_path": "adapter_path",
    "adapter": "adapter_path",
    "model_name": "model",
    "model_id": "model",
    "system": "system_prompt",
    "system_instruction": "system_prompt",
    "system_message": "system_prompt",
    "instructions": "system_prompt",
    "prefill": "prefill_response",
    "template_kwargs": "chat_template_kwargs",
    "conversation": "messages",
    "chat": "messages",
    "dialog": "messages",
    "input_text": "prompt",
    "extra": "metadata",
}
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

UNSUPPORTED: Mapping[str, str] = {
    "tools": "no tools are given to the model: describe them in the prompt, or remove it",
    "tool_choice": "there are no tools to choose from: remove it",
    "functions": "no functions are given to the model: describe them in the prompt, or remove it",
    "function_call": "there are no functions to call: remove it",
    "parallel_tool_calls": "there are no tools to call: remove it",
    "stream": "a batch does not stream; remove it",
    "echo": "the prompt is not repeated in the text: put it before the text yourself",
    "suffix": "text is not inserted before a suffix: put both into the prompt",
    "best_of": "no best one is chosen: 'n' gives as many texts as it says",
    "modalities": 'only ["text"] is generated',
    "audio": "only text is generated",
    "images": "only text is read",
    "prediction": "no predicted output is used: remove it (a worker's --draft-model makes decoding faster)",
    "web_search_options": "nothing is searched: put what is to be known into the prompt",
    "reasoning_effort": 'the chat template may know it: write "chat_template_kwargs": {"reasoning_effort": "low"}, or '
    '{"enable_thinking": false}, as the model has it',
    "reasoning": 'the chat template may know it: write "chat_template_kwargs": {"enable_thinking": true}',
    "thinking": 'the chat template may know it: write "chat_template_kwargs": {"enable_thinking": true}',
    "think": 'the chat template may know it: write "chat_template_kwargs": {"enable_thinking": true}',
    "thinking_budget": "thinking has no budget of its own: remove it, or see 'max_tokens'",
    "include_reasoning": "reasoning is always in the record, apart from the text: remove it",
    "verbosity": "say in the prompt how long the answer is to be",
    "truncation": "a prompt that is too long is an error: shorten it",
    "truncate_prompt_tokens": "a prompt that is too long is an error: shorten it",
    "background": "a batch is in the background anyway: remove it",
    "previous_response_id": "lines know of no others: write the whole conversation into 'messages'",
    "guided_json": "texts are not constrained: say in the prompt what is wanted",
    "guided_regex": "texts are not constrained: say in the prompt what is wanted",
    "guided_choice": "texts are not constrained: say in the prompt what is wanted",
    "guided_grammar": "texts are not constrained: say in the prompt what is wanted",
    "guided_decoding_backend": "texts are not constrained: remove it",
    "structured_outputs": "texts are not constrained: say in the prompt what is wanted",
    "json_schema": "texts are not constrained: say in the prompt what is wanted",
    "grammar": "texts are not constrained: say in the prompt what is wanted",
    "format": "texts are not constrained: say in the prompt what is wanted",
    "response_schema": "texts are not constrained: say in the prompt what is wanted",
    "response_mime_type": "texts are not constrained: say in the prompt what is wanted",
    "regex": "texts are not constrained: say in the prompt what is wanted",
    "ebnf": "texts are not constrained: say in the prompt what is wanted",
    "prompt_logprobs": "only new tokens have log-probabilities: remove it",
    "continuation": "nothing is scored: remove it",
    "return_token_ids": "records have no token ids: remove it",
    "return_tokens_as_token_ids": "records have no token ids: remove it",
    "stop_token_ids": "write the tokens' texts into 'extra_eos_tokens', as [\"<|im_end|>\"]",
    "eos_token_id": "write the token's text into 'extra_eos_tokens', as [\"<|im_end|>\"]",
    "bad_words": "give their tokens -100 in 'logit_bias'",
    "bad_words_ids": "give them -100 in 'logit_bias', as {\"1234\": -100}",
    "suppress_tokens": "give them -100 in 'logit_bias', as {\"1234\": -100}",
    "allowed_token_ids": "give the others -100 in 'logit_bias', as {\"1234\": -100}",
    "logits_processors": "lines bring no code: see 'logit_bias' and the penalties",
    "use_beam_search": "there is no beam search: 'n' gives several texts of their own",
    "num_beams": "there is no beam search: 'n' gives several texts of their own",
    "num_beam_groups": "there is no beam search: 'n' gives several texts of their own",
    "beam_width": "there is no beam search: 'n' gives several texts of their own",
    "length_penalty": "it is of beam search, which there is none of: remove it",
    "early_stopping": "it is of beam search, which there is none of: remove it",
    "diversity_penalty": "it is of beam search, which there is none of: remove it",
    "no_repeat_ngram_size": "use 'repetition_penalty' or 'frequency_penalty'",
    "encoder_repetition_penalty": "use 'repetition_penalty'",
    "guidance_scale": "there is no guidance by a second prompt: remove it",
    "skip_special_tokens": "no text holds the token that ended it: remove it",
    "spaces_between_special_tokens": "no text holds the token that ended it: remove it",
    "include_stop_str_in_output": "the record has what matched as 'stop_string': put it behind the text yourself",
    "no_stop_trim": "the record has what matched as 'stop_string': put it behind the text yourself",
    "add_special_tokens": "what the tokenizer adds to a 'prompt', and the template to 'messages', is added: remove it",
    "detokenize": "records hold text: remove it",
    "return_full_text": "the prompt is not repeated in the text: put it before the text yourself",
    "details": "'logprobs': true gives each token: remove it",
    "decoder_input_details": "only new tokens have log-probabilities: remove it",
    "watermark": "texts have no watermark: remove it",
    "priority": "a batch has one priority, of `submit --priority`: remove it",
    "typical_p": "use 'min_p' or 'top_p'",
    "typical": "use 'min_p' or 'top_p'",
    "epsilon_cutoff": "use 'min_p'",
    "eta_cutoff": "use 'min_p'",
    "tfs_z": "use 'min_p' or 'top_p'",
    "top_a": "use 'min_p'",
    "mirostat": "use 'min_p' or 'top_p'",
    "mirostat_tau": "it is of mirostat, which there is none of: remove it",
    "mirostat_eta": "it is of mirostat, which there is none of: remove it",
    "dynatemp_range": "use 'temperature'",
    "dynatemp_exponent": "use 'temperature'",
    "smoothing_factor": "use 'temperature'",
    "dry_multiplier": "use 'repetition_penalty' or 'frequency_penalty'",
    "dry_base": "it is of DRY, which there is none of: remove it",
    "dry_allowed_length": "it is of DRY, which there is none of: remove it",
    "penalize_nl": "newlines are penalised as other tokens are: remove it",
    "samplers": "the order of the filters is always the same: remove it",
    "n_keep": "a prompt that is too long is an error: remove it",
    "raw": "a 'prompt' is always taken as it stands, 'messages' go through the template: remove it",
    "template": "the chat template is the model's: write the whole text into 'prompt' instead of 'messages'",
    "chat_template": "the chat template is the model's: write the whole text into 'prompt' instead of 'messages'",
    "documents": "write them into the prompt, or into 'chat_template_kwargs' where the template knows them",
    "num_ctx": "the context is the worker's: `promptmill worker --max-context`; remove it",
    "num_thread": "it is no matter of a line: remove it",
    "num_gpu": "it is no matter of a line: remove it",
    "num_batch": "it is no matter of a line: `promptmill worker --decode-concurrency`; remove it",
    "draft_model": "a draft model is the worker's: `promptmill worker --draft-model`",
    "num_draft_tokens": "a draft model is the worker's: `promptmill worker --num-draft-tokens`",
    "timeout": "a batch may end after a time: `submit --expires-in`; remove it",
    "safety_settings": "nothing is filtered: remove it",
    "anthropic_version": "remove it",
}
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


def _instruction_and(text: str, *, keep: str = "") -> str:
    """The command for rows of instructions that may have a text to work on, under this path of jq's."""
    content = f'[.instruction, {text}] | map(strings | select(. != "")) | join("\\n\\n")'
    return f"jq -c '{{{keep}messages: [{{role: \"user\", content: ({content})}}], metadata: .}}'"


ROWS: tuple[tuple[frozenset[str], str, str], ...] = (
    (
        frozenset({"instruction", "instances"}),
        "a self-instruct row",
        _instruction_and(".instances[0].input", keep="id, "),
    ),
    (
        frozenset({"instruction", "input", "output"}),
        "an Alpaca row",
        _instruction_and(".input"),
    ),
    (
        frozenset({"instruction", "output"}),
        "an Alpaca row",
        "jq -c '{messages: [{role: \"user\", content: .instruction}], metadata: .}'",
    ),
    (
        frozenset({"instruction", "response"}),
        "an instruction row",
        "jq -c '{messages: [{role: \"user\", content: .instruction}], metadata: .}'",
    ),
    (
        frozenset({"conversations"}),
        "a ShareGPT row",
        'jq -c \'{id, messages: [.conversations[] | {role: ({human: "user", gpt: "assistant"}[.from] // .from), '
        "content: .value}]}'",
    ),
    (
        frozenset({"question", "answer"}),
        "a row of questions and answers",
        "jq -c '{messages: [{role: \"user\", content: .question}], metadata: .}'",
    ),
    (frozenset({"recordId", "modelInput"}), "Bedrock's envelope", "jq -c '{custom_id: .recordId, body: .modelInput}'"),
    (frozenset({"request", "key"}), "Gemini's envelope", "jq -c '{custom_id: .key, body: .request}'"),
    (frozenset({"custom_id", "params"}), "Anthropic's envelope", "jq -c '{custom_id, body: .params}'"),
    (frozenset({"custom_id", "response"}), "a result of OpenAI's batches, not a line", ""),
    (frozenset({"text"}), "a row of texts", "jq -c '{prompt: .text, metadata: .}'"),
    (
        frozenset({"question"}),
        "a row of questions",
        "jq -c '{messages: [{role: \"user\", content: .question}], metadata: .}'",
    ),
    (
        frozenset({"instruction"}),
        "a row of instructions",
        "jq -c '{messages: [{role: \"user\", content: .instruction}], metadata: .}'",
    ),
)
"""Lines that are somebody else's as a whole: the fields they have, what they are, what makes lines of them."""


SHOWN_ROWS = 40
"""Of the name under which an object holds rows, so many characters are shown."""


def is_foreign(name: str) -> bool:
    """Whether another tool has a field of this name."""
    snake = _snake(name)
    return any(spelling in table for spelling in (name, snake) for table in (RENAMED, WRAPPERS, UNSUPPORTED, EXPLAINED))


def is_column(name: str, value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether a field is more likely a column of the user's own data: a text, beside the prompt that was made of it."""
    return name in COLUMNS and isinstance(value, str) and ("prompt" in fields or "messages" in fields)


def renamed(name: str, known: Iterable[str]) -> str | None:
    """Our name of a field of another tool, or of one of ours that is written in another way, such as ``topP``."""
    snake = _snake(name)
    if snake != name and snake in known:
        return snake
    return RENAMED.get(snake)


def unsupported(name: str) -> str | None:
    """What to do instead of a field that would change the text and is not done."""
    return UNSUPPORTED.get(name) or UNSUPPORTED.get(_snake(name))


def explained(name: str) -> str | None:
    """What is to be said of a name for which there is more to say than another name."""
    return EXPLAINED.get(name) or EXPLAINED.get(_snake(name))


def cure_of_wrapper(name: str, value: Any, known: Iterable[str]) -> str | None:
    """What is to be done with an object that holds parameters."""
    owner = WRAPPERS.get(_snake(name))
    if owner is None:
        return None
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []
    others = [f"'{key}' is '{meant}' here" for key in keys if (meant := renamed(key, known)) is not None]
    return f"is {owner}: write its fields beside 'prompt' or 'messages'{''.join(f'; {other}' for other in others)}"


def cure_of_row(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Of a line without a prompt the field that gives away whose it is, and what to do."""
    for names, what, cure in ROWS:
        if names <= fields.keys():
            field = next(name for name in fields if name in names)
            rewrite = f"; make lines of the file: {cure} FILE > lines.jsonl" if cure else ""
            return field, f"the line is {what}: a line has 'prompt' or 'messages'{rewrite}"
    if len(fields) == 1:
        name, value = next(iter(fields.items()))
        if are_rows(value) and not is_foreign(name):
            shown = name[:SHOWN_ROWS]
            each = f"jq -c '.[{json.dumps(shown)}][]' FILE > lines.jsonl"
            return shown, f"the line is an object around rows, not one of them; make lines of the file: {each}"
    return None


_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def _snake(name: str) -> str:
    return _CAPITAL.sub("_", name[:80]).lower().replace("-", "_")
