"""Tiny models of random weights with real kinds of tokenizers, for tests of guided rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from zlib import crc32

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jobs.guided.constraint import Constraint
from jobs.params import Sampling
from worker.engine.guided.guide import GuidePlan, Phase
from worker.engine.guided.maker import GuideMaker
from worker.engine.loading.model import LoadedModel
from worker.engine.sequence import PreparedLine
from worker.engine.text.completion import TextAssembler
from worker.engine.text.markup import State

CORPUS = [
    '{"name": "Ann", "age": 31, "tags": ["a", "b"], "ok": true, "none": null, "of": {"x": 1.5e3}}',
    "The quick brown fox, naïve café 日本語 \U0001f642 thinks\n\nand  answers: yes or no.",
]
SPECIAL = ("<|im_start|>", "<|im_end|>")
THINKING = ("<think>", "</think>")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TAGS = {"type": "array", "items": {"enum": ["red", "green", "blü"]}, "minItems": 1, "maxItems": 3}
FLAG = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
SCHEMAS = (PERSON, TAGS, FLAG)


def of_bytes(*, thinking: bool = True) -> TokenizerWrapper:
    """A byte-level BPE as Qwen's: its thinking markers are added tokens and not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet))
    return _wrapped(tokenizer, thinking=thinking)


def of_pieces(*, thinking: bool = True) -> TokenizerWrapper:
    """SentencePiece's kind: pieces with a visible space, and a token for each byte that no piece has."""
    pieces = [
        "\u2581",
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        ",",
        "\u2581{",
        '{"',
        '":',
        "na",
        "me",
        "age",
        "ok",
        "tr",
        "ue",
        "false",
    ]
    pieces += [*"abcdefghijklmnopqrstuvwxyz0123456789", "red", "\u2581yes", "\u2581\u2581", "\n"]
    unique = list(dict.fromkeys(pieces))
    vocab = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), *((one, -len(one)) for one in unique)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer, thinking=thinking)


def _wrapped(tokenizer: Tokenizer, *, thinking: bool) -> TokenizerWrapper:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    if thinking:
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in THINKING])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    made.eos_token = SPECIAL[1]
    return TokenizerWrapper(made)


@dataclass
class GuidedModel:
    """A model and what makes guided lines for it."""

    model: LoadedModel

    @classmethod
    def of(cls, model: LoadedModel, tokenizer: TokenizerWrapper) -> GuidedModel:
        """``model`` with another tokenizer, whose vocabulary is shorter than the logits are wide."""
        assert len(tokenizer.get_vocab()) < model.vocab_size
        return cls(replace(model, tokenizer=tokenizer, eos=frozenset(tokenizer.eos_token_ids)))

    @cached_property
    def maker(self) -> GuideMaker:
        return GuideMaker(self.model.tokenizer, self.model.vocab_size)

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    def plan(
        self,
        constraint: Constraint | dict[str, Any] | None,
        sampling: Sampling,
        *,
        eos: frozenset[int] | None = None,
        phase: Phase = Phase.ANSWER,
        budget: int | None = None,
    ) -> GuidePlan:
        if isinstance(constraint, dict):
            constraint = Constraint("json", json.dumps(constraint))
        grammar = None if constraint is None else constraint.grammar()
        return self.maker.plan(
            grammar, phase, sampling, self.model.eos if eos is None else eos, budget=budget, field="response_format"
        )

    def line(
        self,
        key: Any,
        constraint: Constraint | dict[str, Any] | None = None,
        *,
        prompt: Iterable[int] = (5, 6, 7),
        phase: Phase = Phase.ANSWER,
        budget: int | None = None,
        eos: Iterable[int] | None = None,
        **given: Any,
    ) -> PreparedLine:
        """A line of this model, at temperature 1 unless said otherwise; without constraint and budget it is free."""
        sampling = Sampling(**{"seed": crc32(str(key).encode()), "max_tokens": 120, "temperature": 1.0, **given})
        ends = self.model.eos if eos is None else frozenset(eos)
        free = constraint is None and budget is None
        guide = None if free else self.plan(constraint, sampling, eos=ends, phase=phase, budget=budget)
        begins: State = "reasoning" if phase is Phase.THINKING else "answer"
        return PreparedLine(key, tuple(prompt), sampling, ends, begins=begins, guide=guide)

    def texts(self, sequences: Iterable[Any]) -> list[str]:
        """The texts that a user gets."""
        assembler = TextAssembler(self.tokenizer)
        return [assembler.assemble(one).text for one in sequences]
