"""Which tokens may be drawn: a bit for each, taken into account after bias and penalties and before the filters."""

from __future__ import annotations

import mlx.core as mx

SIGN, INFINITY = 1 << 31, 0x7F800000
"""Bits of a float32: its sign, and those of infinity."""


def allowed_only(logits: mx.array, allowed: mx.array) -> mx.array:
    """``logits [rows, vocab]`` with -infinity where a bit of ``allowed [rows, words]`` (uint32) is not set.

    Each bit becomes the sign of an infinity, and the lesser of that and the logit is taken: few simple operations,
    several times as quick on a CPU as a choice between two arrays.
    """
    rows, width = logits.shape
    places = mx.arange(31, -1, -1, dtype=mx.uint32)
    signs = mx.bitwise_and(mx.left_shift(mx.bitwise_invert(allowed)[:, :, None], places), SIGN)
    bounds = mx.bitwise_or(signs, INFINITY).view(mx.float32).reshape(rows, -1)[:, :width]
    return mx.minimum(logits, bounds.astype(logits.dtype))
