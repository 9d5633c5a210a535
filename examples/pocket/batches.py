"""Batches of tokens for training: documents of like length side by side, padded to one width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from corpus import Document, documents
from tokenizer import VOCAB_SIZE
from tokenizers import Tokenizer

WIDTHS = (24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 352, 448)
"""Tokens per row; a document longer than the last is left out."""

TOKENS_PER_BATCH = 1536
"""In the batch of one worker; a step learns from one batch of each."""

COPY_LENGTHS = (12, 6, 24)
"""How many random tokens a row of a copying batch repeats."""

COPY_TOKENS = 1024
"""In a copying batch of one worker."""


@dataclass(frozen=True)
class Row:
    """One document's tokens, and for each whether it counts in the loss."""

    tokens: list[int]
    learned: list[bool]


class Batch(NamedTuple):
    """Inputs [rows, width], and where in the flattened rows which token is to be predicted [learned]."""

    inputs: mx.array
    positions: mx.array
    targets: mx.array


def encode(tokenizer: Tokenizer, document: Document) -> Row:
    """The document's parts tokenized one by one, as prompt and answer are when the model is used."""
    tokens: list[int] = []
    learned: list[bool] = []
    for part in document:
        ids = tokenizer.encode(part.text, add_special_tokens=False).ids
        tokens.extend(ids)
        learned.extend([part.learned] * len(ids))
    return Row(tokens, learned)


def make_batch(rows: list[Row], width: int) -> Batch:
    """`rows` padded to `width` inputs; the token after each input is its target."""
    inputs = np.zeros((len(rows), width), dtype=np.int32)
    targets = np.zeros_like(inputs)
    learned = np.zeros_like(inputs, dtype=bool)
    for index, row in enumerate(rows):
        length = len(row.tokens) - 1
        inputs[index, :length] = row.tokens[:-1]
        targets[index, :length] = row.tokens[1:]
        learned[index, :length] = row.learned[1:]
    positions = np.flatnonzero(learned).astype(np.int32)
    return Batch(mx.array(inputs), mx.array(positions), mx.array(targets.reshape(-1)[positions]))


def copy_batches(seed: int) -> Iterator[Batch]:
    """Batches without end of random tokens said twice; the second time is to be predicted."""
    rng = np.random.default_rng(seed)
    for length in cycle(COPY_LENGTHS):
        first = rng.integers(0, VOCAB_SIZE, (COPY_TOKENS // (2 * length), length))
        learned = [False] * length + [True] * length
        rows = [Row([*row, *row], learned) for row in first.tolist()]
        yield make_batch(rows, 2 * length - 1)


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Batches without end, the same for the same seed and tokenizer."""
    waiting: dict[int, list[Row]] = {width: [] for width in WIDTHS}
    for document in documents(seed):
        row = encode(tokenizer, document)
        width = next((w for w in WIDTHS if len(row.tokens) - 1 <= w), None)
        if width is None:
            continue
        waiting[width].append(row)
        if len(waiting[width]) * width >= TOKENS_PER_BATCH:
            yield make_batch(waiting[width], width)
            waiting[width] = []
