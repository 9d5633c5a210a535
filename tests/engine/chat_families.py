"""Small tokenizers with chat templates in the manner of known families: how they mark turns, and where they bite."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nIt was a fine day, and if a < b then x > y.",
    "def add(a, b):\n    return a + b\n\n\n> quoted mail\n<h1>Title</h1>\n<table>im_start im_end user</table>",
    "système développeur 日本語 naïve café <|x|> [INST] reasoning think /think end_of_turn start_of_turn channel",
]

CHATML = """
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last and reasoning %}{{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TRIMMED = """{{ bos_token }}{% for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MERGED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}
    {%- set first = '' %}{% set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

HARMONY = """
{%- if messages[0].role == 'developer' or messages[0].role == 'system' %}
    {{- '<|start|>developer<|message|># Instructions\\n\\n' + messages[0].content + '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role == 'assistant' %}
        {%- if loop.last and message.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""

PIECED = """{% for message in messages %}
{{- '<|' + message.role + '|>' + (message.name or '') + message.content + '<|end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

BRACKETS = """{{ bos_token }}{% for message in messages %}
    {%- if message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
    {%- else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}
{%- endfor %}"""


@dataclass(frozen=True, slots=True)
class Family:
    """How a family writes chats: its template, and its tokens by what they are."""

    template: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    spm: str | None = None
    """How spaces become part of tokens: ``replace``, ``prepend`` or ``metaspace``; None: they are bytes."""


FAMILIES = {
    "chatml": Family(
        CHATML,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ("<think>", "</think>", "<tool_response>", "</tool_response>", "<|fim_prefix|>"),
    ),
    "trimmed": Family(TRIMMED, ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_0|>")),
    "merged": Family(
        MERGED, ("<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>"), ("\n\n", "\n", "<h1>", "</h1>"), "replace"
    ),
    "harmony": Family(HARMONY, ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>")),
    "pieced": Family(PIECED, ("<|endoftext|>",), ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>")),
    "prepended": Family(BRACKETS, ("<s>", "</s>"), spm="prepend"),
    "metaspace": Family(BRACKETS, ("<s>", "</s>", "[INST]", "[/INST]"), spm="metaspace"),
}


@functools.cache
def tokenizer_of(name: str) -> TokenizerWrapper:
    """The tokenizer of a family, as mlx-lm wraps it."""
    family = FAMILIES[name]
    special = [AddedToken(token, special=True, normalized=False) for token in family.special]
    backend = _bytes(family) if family.spm is None else _pieces(family)
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.added])
    return wrapped(
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=family.special[0],
            eos_token=family.special[-1],
            chat_template=family.template,
        )
    )


def wrapped(tokenizer: PreTrainedTokenizer | PreTrainedTokenizerFast) -> TokenizerWrapper:
    return TokenizerWrapper(tokenizer, lambda tokenizer: None)


def added(name: str) -> list[str]:
    """The tokens of a family that its text could write."""
    return [*FAMILIES[name].special, *FAMILIES[name].added]


def _bytes(family: Family) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _pieces(family: Family) -> Tokenizer:
    alphabet = sorted({character for text in CORPUS for character in text} | {"\u2581", "\n"})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocab = {"<unk>": 0} | {token: number + 1 for number, token in enumerate([*bytes_, *model["vocab"]])}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = normalizers.Replace(" ", "\u2581")
    if family.spm == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
    elif family.spm == "replace":
        backend.normalizer = space
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
