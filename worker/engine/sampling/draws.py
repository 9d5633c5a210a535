"""Draws from weights: random numbers that depend on seed and position alone, exponentials, and the inverse
distribution function."""

from __future__ import annotations

import math

import mlx.core as mx

BLOCKS = 64
"""Members of a block of a long sum."""
ROUND = 1.5 * 2.0**23
EXP2 = (1.0, 0.69314718, 0.24022646, 0.05550329, 0.00961852, 0.00133998699, 0.00015337585)
"""2^x for x between -1/2 and 1/2 as a polynomial: least squares on Chebyshev points, off by 2e-8 at most."""
UNIFORMS = 3
"""Random numbers per row and step: one for XTC's coin, and two for a draw of two levels."""


def uniforms_of(keys: mx.array, generated: mx.array) -> mx.array:
    """``[rows, UNIFORMS]`` in [0, 1): a pure function of each row's key and position.

    Keys are hashes of seeds, so adding the position to them makes no two rows meet. 1 - 2^-23 is the most that,
    times a float32 total, stays below that total.
    """
    keyed = mx.stack([keys[:, 0], keys[:, 1] + generated.astype(mx.uint32)], axis=1)
    uniforms = mx.vmap(lambda key: mx.random.uniform(shape=(UNIFORMS,), key=key))(keyed)
    return mx.minimum(uniforms, 1.0 - 2.0**-23)


def mass(logits: mx.array, top: mx.array) -> mx.array:
    """``[rows, 1]``: the sum over the vocabulary of exp(logit - best logit); ``top [rows, 1]`` are the best.

    In two levels: MLX adds up a long row one by one, and loses four digits on the way.
    """
    odds = _exp_of_many(logits.astype(mx.float32) - top.astype(mx.float32))
    return _grid(odds, BLOCKS).sum(axis=1).sum(axis=-1, keepdims=True)


def largest(values: mx.array) -> mx.array:
    """``[rows, 1]``: the largest of each row, NaN where there is one.

    In two levels: on a CPU MLX takes the maximum over strided members several times as quickly as that of a long row.
    """
    rows, count = values.shape
    members = math.gcd(count, BLOCKS)
    return values.reshape(rows, members, count // members).max(axis=1).max(axis=-1, keepdims=True)


def exp(scores: mx.array) -> mx.array:
    """exp, as a power of e: MLX's CPU build is three times as quick with that, and closer to the truth."""
    return mx.power(math.e, scores)


def _exp_of_many(scores: mx.array) -> mx.array:
    """exp of float32 scores up to 0, within 4e-6 and exactly 0 for -inf, in simple operations.

    2^y is 2^n, written into the bits of a float, times a polynomial of what is left of y, at most a half. Adding
    ``ROUND`` leaves n in the lowest bits of a float. Compiled, that is one pass over a vocabulary at twice the speed of
    the C library's functions, which MLX's CPU build calls for one number after the other.
    """
    exponent = mx.maximum(scores * math.log2(math.e), -127.0)
    rounded = exponent + ROUND
    rest = exponent - (rounded - ROUND)
    value = mx.array(EXP2[-1])
    for factor in EXP2[-2::-1]:
        value = value * rest + factor
    power = mx.left_shift(rounded.view(mx.int32), 23) + (127 << 23)
    return value * power.view(mx.float32)


def _grid(weights: mx.array, size: int) -> mx.array:
    """``[rows, size, blocks]``: rows of ``weights``, with zeros behind them, in blocks of ``size`` strided members."""
    rows, count = weights.shape
    blocks = -(-count // size)
    if blocks * size != count:
        weights = mx.pad(weights, [(0, 0), (0, blocks * size - count)])
    return weights.reshape(rows, size, blocks)


def draw_dense(logits: mx.array, temperature: mx.array, uniforms: mx.array) -> mx.array:
    """Tokens ``[rows]`` drawn from the whole vocabulary."""
    wide = logits.astype(mx.float32)
    weights = _exp_of_many((wide - largest(wide)) / temperature[:, None])
    return pick(weights, uniforms[:, 1:])[:, 0]


def pick(weights: mx.array, uniforms: mx.array) -> mx.array:
    """Positions ``[rows, 1]`` drawn in proportion to ``weights [rows, count]``, by inverse distribution function.

    In two levels, each with a uniform of its own, so that a running sum stays short and a light tail is not lost to
    rounding: first a block of strided members, then one of it. Where the weights say nothing, because they are NaN or
    all 0, it is some position, and none beyond the end: arrays are read there.
    """
    size = 1
    while size * size < weights.shape[1]:
        size *= 2
    grid = _grid(weights, size)
    block = _invert(grid.sum(axis=1), uniforms[:, :1])
    inner = mx.take_along_axis(grid, block[:, None], axis=2)[:, :, 0]
    return mx.minimum(_invert(inner, uniforms[:, 1:2]) * grid.shape[2] + block, weights.shape[1] - 1)


def _invert(weights: mx.array, uniform: mx.array) -> mx.array:
    sums = mx.cumsum(weights, axis=-1)
    place = (sums <= uniform * sums[:, -1:]).sum(axis=-1, keepdims=True).astype(mx.int32)
    return mx.minimum(place, weights.shape[1] - 1)
