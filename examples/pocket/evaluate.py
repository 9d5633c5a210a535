"""Measure a saved pocket model on prompts it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from corpus import END_THINK, KINDS, Kind, held_out_samples
from mlx_lm import batch_generate, load
from mlx_lm.sample_utils import make_sampler
from tasks import Sample
from tokenizer import CONTEXT_LENGTH, VOCAB_SIZE

PROMPTS_PER_KIND = 40
MAX_TOKENS = 400
WARM = 0.7
"""The sampling temperature the model is measured at besides greedy decoding."""


@dataclass(frozen=True)
class Score:
    """Fractions of right answers to `asked` prompts of one kind, and the greedy answers' token counts."""

    kind: Kind
    asked: int
    greedy: float
    thinking: float
    warm: float
    ended: float
    shortest: int
    longest: int


@dataclass(frozen=True)
class Answer:
    """A generated text with its length in tokens, and whether the model ended it itself."""

    text: str
    tokens: int
    ended: bool


class Asker:
    """A loaded model that answers questions in batches."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer, *_ = load(str(folder))

    def ask(self, samples: Sequence[Sample], *, thinking: bool = False, temperature: float = 0.0) -> list[Answer]:
        """Answers to the samples' questions; a thought before the answer is cut off."""
        prompts = [self._prompt(sample.question, thinking) for sample in samples]
        options: dict[str, Any] = {"sampler": make_sampler(temperature)}
        made = batch_generate(
            self.model, self.tokenizer, prompts, max_tokens=MAX_TOKENS, return_token_ids=True, **options
        )
        texts = [text.partition(f"{END_THINK}\n\n")[2] for text in made.texts] if thinking else made.texts
        return [
            Answer(text, len(ids), len(ids) < MAX_TOKENS) for text, ids in zip(texts, made.token_ids or [], strict=True)
        ]

    def _prompt(self, question: str, thinking: bool) -> list[int]:
        messages = [{"role": "user", "content": question}]
        prompt: list[int] = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=thinking
        )
        return prompt


def is_right(sample: Sample, answer: Answer) -> bool:
    """Whether the model ended the answer itself and the answer is (one of) the right one(s)."""
    fits = answer.text == sample.answer if sample.accept is None else sample.accept(answer.text)
    return answer.ended and fits


def _right(samples: Sequence[Sample], answers: Sequence[Answer]) -> float:
    return sum(map(is_right, samples, answers)) / len(samples)


def measure(folder: Path, seed: int) -> list[Score]:
    """The scores of the model in `folder` for every kind of question; `seed` is that of its training."""
    asker = Asker(folder)
    mx.random.seed(seed)
    scores = []
    for kind in KINDS:
        samples = held_out_samples(kind, PROMPTS_PER_KIND, seed + 1)
        greedy = asker.ask(samples)
        scores.append(
            Score(
                kind,
                len(samples),
                _right(samples, greedy),
                _right(samples, asker.ask(samples, thinking=True)),
                _right(samples, asker.ask(samples, temperature=WARM)),
                sum(answer.ended for answer in greedy) / len(samples),
                min(answer.tokens for answer in greedy),
                max(answer.tokens for answer in greedy),
            )
        )
    return scores


REPORT = """\
# The pocket model

A language model of {parameters:,} parameters (Qwen3 architecture, float32, a vocabulary of {vocab} tokens,
a context of {context} tokens) for trying things out: it answers a few kinds of simple question and is good
for nothing else. It was trained from nothing on questions that the script beside this folder writes, in
{steps} steps.

To train it again, from the root of the repository (ten to fifteen minutes on two cores that are free):

    python examples/pocket/train.py

On Linux, install OpenBLAS first (`libopenblas0-pthread` in Debian): the script uses it where it is, and is
many times faster. The same seed, versions and machine give the same weights.

## What it gets right

Each row is a kind of question, asked with prompts that were kept out of training (not so for the kinds
marked *, which have too few). An answer is right if it is exactly the expected one and the model ends it
itself; lists, poems and stories are judged by what they must contain, and a story by its length too.
"Thinking" is with `enable_thinking` set in the chat template, "at {warm}" is sampled at that temperature;
the others are greedy. "Tokens" are those of the shortest and the longest answer.

| kind | prompts | right | thinking | at {warm} | ends | tokens |
|---|---:|---:|---:|---:|---:|---:|
{rows}
"""


def report(scores: Sequence[Score], parameters: int, steps: int) -> str:
    """The measured model's README, as Markdown."""
    rows = "\n".join(
        f"| {s.kind.name}{'*' if s.kind.closed else ''} | {s.asked} | {s.greedy:.0%} | {s.thinking:.0%} "
        f"| {s.warm:.0%} | {s.ended:.0%} | {s.shortest}-{s.longest} |"
        for s in scores
    )
    return REPORT.format(
        parameters=parameters,
        vocab=VOCAB_SIZE,
        context=CONTEXT_LENGTH,
        steps=steps,
        warm=WARM,
        rows=rows,
    )
