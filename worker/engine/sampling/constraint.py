"""Which tokens may be drawn: a bit for each, taken into account after bias and penalties and before the filters."""

from __future__ import annotations

import mlx.core as mx

WORD = 32


def allowed_only(logits: mx.array, allowed: mx.array) -> mx.array:
    """``logits [rows, vocab]`` with -infinity where a bit of ``allowed [rows, words]`` (uint32) is not set."""
    rows, width = logits.shape
    places = mx.arange(WORD, dtype=mx.uint32)
    bits = mx.bitwise_and(mx.right_shift(allowed[:, :, None], places), 1).reshape(rows, -1)[:, :width]
    return mx.where(bits.astype(mx.bool_), logits, mx.array(-mx.inf, dtype=logits.dtype))
