"""The byte-level BPE tokenizer, trained on the corpus, and the files that describe it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from corpus import END_OF_TEXT, END_THINK, IM_END, IM_START, THINK, Document, documents
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1024
CONTEXT_LENGTH = 1024
"""Tokens of prompt and answer together that the model is declared for."""

TRAINING_DOCUMENTS = 12_000

PIECES = r", (?=\d)|\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s"
"""What text is cut into before merges: each digit alone (sums are learned digit by digit), the comma
between numbers with its space (so that counting is short), words and runs of marks with theirs."""

CHAT_TEMPLATE = r"""{%- if tools %}
{{- '<|im_start|>system\nTools, called as <tool_call>{"name": ..., "arguments": {...}}</tool_call>:\n' }}
{%- for tool in tools %}
{{- tool | tojson + '\n' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}
{%- for tool_call in message['tool_calls'] or [] %}
{%- set tool_call = tool_call.function or tool_call %}
{{- '\n<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
{{- tool_call.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking %}
{{- '<think>\n' }}
{%- endif %}
{%- endif %}
"""


def _special_tokens() -> list[AddedToken]:
    """The tokens outside the BPE; the thinking marks stay visible in decoded text."""
    hidden = [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, IM_START, IM_END)]
    shown = [AddedToken(text, special=False, normalized=False) for text in (THINK, END_THINK)]
    return hidden + shown


def train_tokenizer(corpus: Iterable[Document]) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` tokens, each digit a token of its own, trained on `corpus`."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    special = _special_tokens()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    marks = [token.content for token in special]
    tokenizer.train_from_iterator((_text_without(marks, document) for document in corpus), trainer)
    tokenizer.add_tokens(special)
    return tokenizer


def _text_without(marks: list[str], document: Document) -> str:
    text = "".join(part.text for part in document)
    for mark in marks:
        text = text.replace(mark, "\n")
    return text


def default_tokenizer(seed: int) -> Tokenizer:
    """The tokenizer of the documents of `seed`."""
    return train_tokenizer(islice(documents(seed), TRAINING_DOCUMENTS))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template to `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_LENGTH,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [IM_START],
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
