"""Filters: which of a row's best tokens may be drawn, and whether those tokens cover all that may.

Order and meaning of the operations are those of ``mlx_lm.sample_utils``. A filter without an array in ``params`` is
one that no row uses.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from jobs.params import PARAMETERS
from worker.engine.sampling.draws import exp, mass, pick

CANDIDATES, WIDE = 256, 4096
"""How many of the best tokens the filters look at, of rows that ask for few tokens and of others. Constants: a row's
tokens must not depend on its batch."""
MOST_MEMBERS, FEW_BLOCKS = 8, 4
"""Members of a block in the search for the best tokens; blocks there are at least, for each of these tokens."""
FILTER_ARRAYS = frozenset(
    {"temperature", "xtc_exempt", *(name for name, row in PARAMETERS.items() if row.stage == "filter")}
)
"""The arrays with a value per row that filters and draws read."""

Arrays = Mapping[str, mx.array]


def best(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Ids and values ``[rows, min(count, vocab)]`` of the best tokens, best first."""
    if count >= logits.shape[-1]:
        ids = mx.argsort(logits, axis=-1)[:, ::-1].astype(mx.int32)
        return ids, mx.take_along_axis(logits, ids, axis=-1)
    ids = _largest(logits, count)
    values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(values, axis=-1)[:, ::-1]
    return mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def _largest(values: mx.array, count: int) -> mx.array:
    """Positions ``[rows, count]`` of the largest of ``values [rows, size]``, in any order.

    Long rows are cut into strided blocks: block b holds b, b + blocks, b + 2 blocks... The largest values lie within
    the blocks of the largest maxima, and those are found in the same way. So a few small partitions do in place of a
    large one (which on Metal is a full sort).
    """
    rows, size = values.shape
    members = _block(size, count)
    if members == 1:
        return _partition(values, count)
    blocks = size // members
    chosen = _largest(values.reshape(rows, members, blocks).max(axis=1), count)
    offsets = mx.arange(0, size, blocks, dtype=mx.int32)
    places = (chosen[:, None, :] + offsets[None, :, None]).reshape(rows, -1)
    inner = _partition(mx.take_along_axis(values, places, axis=-1), count)
    return mx.take_along_axis(places, inner, axis=-1)


def _partition(values: mx.array, count: int) -> mx.array:
    cut = values.shape[-1] - count
    return mx.argpartition(values, cut, axis=-1)[:, cut:].astype(mx.int32)


def _block(size: int, count: int) -> int:
    """Members per block: 8, or 4 or 2 where the size is not a multiple or there would be few blocks; 1: no blocks."""
    members = 1
    while members < MOST_MEMBERS and size % (2 * members) == 0 and size // (2 * members) >= FEW_BLOCKS * count:
        members *= 2
    return members


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


def draw_wide(
    drawn: mx.array, covered: mx.array, logits: mx.array, params: Arrays, uniforms: mx.array
) -> tuple[mx.array, mx.array]:
    """``drawn`` and ``covered``, both ``[rows]``, with the tokens of ``wide_rows`` drawn from more candidates."""
    rows = params["wide_rows"]
    chosen, some = _rows_of(params, rows), logits[rows]
    picked, within = draw_filtered(some, *best(some, WIDE), chosen, uniforms[rows], with_mass=True)
    return mx.put_along_axis(drawn, rows, picked, axis=0), mx.put_along_axis(covered, rows, within, axis=0)


def redraw_full(drawn: mx.array, covered: mx.array, logits: mx.array, params: Arrays, uniforms: mx.array) -> mx.array:
    """``drawn`` with the tokens of ``full_rows`` drawn from their sorted vocabulary, where candidates have not
    ``covered`` their filters. Where they have, the token is theirs, so that it is the same whether or not a row is
    among ``full_rows``; those in ``never_covered`` have no candidates."""
    rows = params["full_rows"]
    chosen, some = _rows_of(params, rows), logits[rows]
    picked, _ = draw_filtered(some, *best(some, logits.shape[-1]), chosen, uniforms[rows], with_mass=False)
    settled = covered[rows] & ~params["never_covered"]
    return mx.put_along_axis(drawn, rows, mx.where(settled, drawn[rows], picked), axis=0)


def _rows_of(params: Arrays, rows: mx.array) -> dict[str, mx.array]:
    return {name: array[rows] for name, array in params.items() if name in FILTER_ARRAYS}
