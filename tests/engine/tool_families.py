"""Small tokenizers whose chat templates know tools, in the manner of known families, and mlx-lm's parsers of calls."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.engine.chat_families import CORPUS

TOOLS_FIRST = """
{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nA call is <tool_call>{...}</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function %}
            {{- CALL }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
JSON_CALL = (
    '\'\\n<tool_call>\\n{"name": "\' + tool_call.name + \'", "arguments": \' + (tool_call.arguments | tojson) '
    "+ '}\\n</tool_call>'"
)
XML_CALL = (
    "'\\n<tool_call>\\n<function=' + tool_call.name + '>\\n'"
    " }}{%- for key, value in tool_call.arguments.items() %}"
    "{{- '<parameter=' + key + '>\\n' + (value | string) + '\\n</parameter>\\n' }}{%- endfor %}"
    "{{- '</function>\\n</tool_call>'"
)
GEMMA_CALL = (
    "START + 'call:' + tool_call.name + '{'"
    " }}{%- for key, value in tool_call.arguments.items() %}"
    "{{- key + ':' + QUOTE + (value | string) + QUOTE + (',' if not loop.last else '') }}{%- endfor %}"
    "{{- '}' + END"
)
MISTRAL = """{{- bos_token }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}
            {{- CALL }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- '[INST]' + message.content + '[/INST]' }}{%- endif %}
{%- endfor %}"""
ARGS_CALL = "'[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments"
LIST_CALL = (
    '\'[TOOL_CALLS] [{"name": "\' + call.function.name + \'", "arguments": \' + '
    "(call.function.arguments | tojson) + '}]'"
)
HARMONY = """
{%- if messages[0].role == 'system' or tools %}
    {{- '<|start|>developer<|message|>' + (messages[0].content if messages[0].role == 'system' else '') }}
    {%- for tool in tools or [] %}
        {{- '\\ntype ' + tool.function.name + ' // ' + tool.function.description }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>functions to=assistant<|channel|>commentary<|message|>' }}
        {{- (message.content | tojson) + '<|end|>' }}
    {%- elif message.role == 'assistant' and 'tool_calls' in message %}
        {%- if message.content and message.thinking %}{{- raise_exception('not both') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {%- if message.thinking or message.content %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' }}
            {{- (message.thinking or message.content) + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- (call.arguments | tojson) + '<|call|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""
SILENT = """{%- for message in messages %}
    {{- '<|' + message.role + '|>' + message.content }}
    {%- if message.tool_calls and not message.content %}
        {%- for call in message.tool_calls %}{{- call.function.name + (call.function.arguments | tojson) }}{%- endfor %}
    {%- endif %}
{%- endfor %}{%- for tool in tools or [] %}{{- tool.function.name }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
"""It shows calls only where nothing is said besides."""


@dataclass(frozen=True, slots=True)
class ToolFamily:
    """A family's template and added tokens, the last one of them EOS; ``parser`` is mlx-lm's, if it has one."""

    template: str
    added: tuple[str, ...]
    parser: str | None


CHATML = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CHATML_ENDS = ("<|im_start|>", "<|im_end|>")


def _gemma(start: str, end: str, quote: str) -> str:
    call = GEMMA_CALL.replace("START", f"'{start}'").replace("END", f"'{end}'").replace("QUOTE", f"'{quote}'")
    return TOOLS_FIRST.replace("CALL", call).replace("<tool_call>{...}</tool_call>", f"{start}{end}")


GEMMA4_TOKENS = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")
FLAT_TOKENS = ("<start_function_call>", "<end_function_call>", "<escape>")
TOOL_FAMILIES = {
    "json_tools": ToolFamily(TOOLS_FIRST.replace("CALL", JSON_CALL), (*CHATML, *CHATML_ENDS), "json_tools"),
    "qwen3_coder": ToolFamily(TOOLS_FIRST.replace("CALL", XML_CALL), (*CHATML, *CHATML_ENDS), "qwen3_coder"),
    "mistral": ToolFamily(
        MISTRAL.replace("CALL", ARGS_CALL), ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "</s>"), "mistral"
    ),
    "mistral_list": ToolFamily(
        MISTRAL.replace("CALL", LIST_CALL), ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "</s>"), "mistral"
    ),
    "gemma4": ToolFamily(_gemma("<|tool_call>", "<tool_call|>", '<|"|>'), (*GEMMA4_TOKENS, *CHATML_ENDS), "gemma4"),
    "function_gemma": ToolFamily(
        _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        (*FLAT_TOKENS, *CHATML_ENDS),
        "function_gemma",
    ),
    "harmony": ToolFamily(
        HARMONY,
        ("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"),
        None,
    ),
    "glm47": ToolFamily(
        TOOLS_FIRST.replace("CALL", XML_CALL), (*CHATML, "<arg_key>", "</arg_key>", *CHATML_ENDS), "glm47"
    ),
    "silent": ToolFamily(SILENT, ("<tool_call>", "</tool_call>", *CHATML_ENDS), "json_tools"),
    "unread": ToolFamily(TOOLS_FIRST.replace("CALL", JSON_CALL), CHATML_ENDS, None),
}
ENFORCED = ("json_tools", "qwen3_coder", "mistral", "mistral_list", "gemma4", "function_gemma", "harmony")


@functools.cache
def tools_tokenizer(name: str) -> TokenizerWrapper:
    """The tokenizer of a family, of bytes, as mlx-lm wraps it."""
    family = TOOL_FAMILIES[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.added[-2:]])
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.added[:-2]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.added[0],
        eos_token=family.added[-1],
        chat_template=family.template,
    )
    if family.parser is None:
        return TokenizerWrapper(tokenizer, lambda tokenizer: None)
    module = importlib.import_module(f"mlx_lm.tool_parsers.{family.parser}")
    return TokenizerWrapper(
        tokenizer,
        lambda tokenizer: None,
        tool_parser=module.parse_tool_call,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
    )
