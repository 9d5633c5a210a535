"""The work, the same for all sides: prompts of random tokens, every row with sampling parameters of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.models import FIRST_TOKEN, word

CONCURRENCY = 32
"""Rows that decode together, on every side."""
PROMPT_TOKENS = (20, 60)
PENALTY_CONTEXT = 20
"""Both penalties look at the last 20 tokens of prompt and output: mlx-lm's default."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the work."""

    prompt: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    seed: int

    @property
    def fields(self) -> dict[str, Any]:
        """Its own parameters, under the names that job lines and requests to mlx-lm's server share."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "repetition_context_size": PENALTY_CONTEXT,
            "presence_penalty": self.presence_penalty,
            "presence_context_size": PENALTY_CONTEXT,
        }


def make_work(lines: int, vocab: int, seed: int) -> list[Row]:
    """``lines`` rows of random token ids below ``vocab``; the same for the same arguments."""
    draw = random.Random(f"{vocab}/{seed}")
    return [
        Row(
            prompt=tuple(draw.randrange(FIRST_TOKEN, vocab) for _ in range(draw.randint(*PROMPT_TOKENS))),
            temperature=draw.uniform(0.5, 1.5),
            top_p=draw.uniform(0.7, 0.99),
            top_k=draw.randint(10, 100),
            min_p=draw.uniform(0.01, 0.1),
            repetition_penalty=draw.uniform(1.01, 1.3),
            presence_penalty=draw.uniform(0.1, 1.0),
            seed=draw.randrange(2**32),
        )
        for _ in range(lines)
    ]


def text_of(tokens: Sequence[int]) -> str:
    """A prompt as text, which the benchmarks' tokenizers turn into the same tokens."""
    return "".join(map(word, tokens))
