"""Filters: which of a row's best tokens may be drawn, and whether those tokens cover all that may.

Order and meaning of the operations are those of ``mlx_lm.sample_utils``. A filter without an array in ``params`` is
one that no row uses.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from jobs.params import PARAMETERS
from worker.engine.sampling.draws import exp, mass, pick

CANDIDATES = 256
"""How many of the best tokens the filters look at. A constant: a row's tokens must not depend on its batch."""
FILTER_ARRAYS = frozenset(
    {"temperature", "xtc_exempt", *(name for name, row in PARAMETERS.items() if row.stage == "filter")}
)
"""The arrays with a value per row that filters and draws read."""

Arrays = Mapping[str, mx.array]


def best(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Ids and values ``[rows, min(count, vocab)]`` of the best tokens, best first.

    Large vocabularies are cut into strided blocks: the ``count`` best tokens lie within the ``count`` blocks of the
    best maxima, so two small partitions do in place of one over the vocabulary (which on Metal is a full sort).
    """
    vocab = logits.shape[-1]
    if count >= vocab:
        ids = mx.argsort(logits, axis=-1)[:, ::-1].astype(mx.int32)
        return ids, mx.take_along_axis(logits, ids, axis=-1)
    size = _block(vocab, count)
    if size > 1:
        ids = _block_members(logits, count, size)
        values = mx.take_along_axis(logits, ids, axis=-1)
        inner = _partition(values, count)
        ids = mx.take_along_axis(ids, inner, axis=-1)
    else:
        ids = _partition(logits, count)
    values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(values, axis=-1)[:, ::-1]
    return mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def _partition(values: mx.array, count: int) -> mx.array:
    cut = values.shape[-1] - count
    return mx.argpartition(values, cut, axis=-1)[:, cut:].astype(mx.int32)


def _block(vocab: int, count: int) -> int:
    """Members per block, a power of two near the square root of ``vocab / count``; 1 where blocks do not pay."""
    size = 1
    while 4 * size * size <= vocab // count and vocab % (2 * size) == 0:
        size *= 2
    return size


def _block_members(logits: mx.array, count: int, size: int) -> mx.array:
    """Ids ``[rows, count * size]`` of the members of the best blocks; block b holds b, b + blocks, b + 2 blocks..."""
    rows, vocab = logits.shape
    blocks = vocab // size
    chosen = _partition(logits.reshape(rows, size, blocks).max(axis=1), count)
    offsets = mx.arange(0, vocab, blocks, dtype=mx.int32)
    return (chosen[:, None, :] + offsets[None, :, None]).reshape(rows, -1)


def survivors(
    logits: mx.array, ids: mx.array, values: mx.array, params: Arrays, coin: mx.array, *, with_mass: bool
) -> tuple[mx.array, mx.array, mx.array]:
    """Which of the candidates (best first, ``[rows, count]``) survive top_p, min_p, XTC and top_k.

    ``coin [rows, 1]`` is XTC's random number. ``with_mass`` says that some row needs the probability mass of the whole
    vocabulary ``logits``; without it the mass of the candidates is taken.

    Returns:
        Scores relative to the best (float32), the survivors, and per row whether no other token survives.
    """
    scores = values.astype(mx.float32)
    scores = scores - scores[:, :1]
    odds = exp(scores)
    ranks = mx.arange(scores.shape[-1])[None]
    total = mass(logits, values[:, :1]) if with_mass else odds.sum(axis=-1, keepdims=True)
    kept = scores > -mx.inf
    top_p = params["top_p"][:, None]
    needed = (mx.cumsum(odds, axis=-1, inclusive=False) < top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(scores, mx.maximum(needed, 1) - 1, axis=-1)
    kept = kept & ((scores >= threshold) | (top_p >= 1.0))
    kept = kept & ((scores >= params["min_p"][:, None]) | (ranks < params["min_tokens_to_keep"][:, None]))
    whole = ids.shape[-1] == logits.shape[-1]
    closed = ~kept[:, -1] if not whole else mx.ones_like(kept[:, -1])
    seen = None
    if "xtc_probability" in params:
        kept, seen = _xtc(ids, odds, kept, total, closed, params, coin)
    top_k = params["top_k"][:, None]
    order = mx.cumsum(kept.astype(mx.int32), axis=-1)
    enough = (params["top_k"] > 0) & (order[:, -1] >= params["top_k"])
    enough = enough if seen is None else enough & seen
    return scores, kept & ((top_k == 0) | (order <= top_k)), closed | enough


def _xtc(
    ids: mx.array,
    odds: mx.array,
    kept: mx.array,
    total: mx.array,
    closed: mx.array,
    params: Arrays,
    coin: mx.array,
) -> tuple[mx.array, mx.array]:
    """XTC on the survivors so far, and per row whether it could see all it needed."""
    unfiltered = (params["top_p"] >= 1.0) & (params["min_p"] == -mx.inf)
    alive = mx.where(kept, odds, 0.0)
    share = alive / mx.where(closed[:, None], alive.sum(axis=-1, keepdims=True), total)
    over = share > params["xtc_threshold"][:, None]
    least = mx.where(over, share, mx.inf).min(axis=-1, keepdims=True)
    exempt = (ids[:, :, None] == params["xtc_exempt"][:, None, :]).any(axis=-1)
    tossed = coin < params["xtc_probability"][:, None]
    cut = tossed & (share > least) & ~exempt
    seen = closed | (unfiltered & ~over[:, -1]) | ~tossed[:, 0]
    return kept & ~cut, seen


def draw_filtered(
    logits: mx.array, ids: mx.array, values: mx.array, params: Arrays, uniforms: mx.array, *, with_mass: bool
) -> tuple[mx.array, mx.array]:
    """Tokens ``[rows]`` drawn from the survivors among the candidates, and whether they covered the filters."""
    scores, kept, covered = survivors(logits, ids, values, params, uniforms[:, :1], with_mass=with_mass)
    top = mx.where(kept, scores, -mx.inf).max(axis=-1, keepdims=True)
    weights = mx.where(kept, exp((scores - top) / params["temperature"][:, None]), 0.0)
    return mx.take_along_axis(ids, pick(weights, uniforms[:, 1:]), axis=-1)[:, 0], covered


def redraw_full(drawn: mx.array, logits: mx.array, params: Arrays, uniforms: mx.array) -> mx.array:
    """``drawn`` with the tokens of the rows in ``full_rows`` drawn from their sorted vocabulary."""
    rows = params["full_rows"]
    chosen = {name: array[rows] for name, array in params.items() if name in FILTER_ARRAYS}
    wide = logits[rows]
    ids, values = best(wide, logits.shape[-1])
    picked, _ = draw_filtered(wide, ids, values, chosen, uniforms[rows], with_mass=False)
    return mx.put_along_axis(drawn, rows, picked, axis=0)
