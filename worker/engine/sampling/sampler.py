"""Logits to tokens: every row of a batch with its own parameters, on one vectorised path.

A step is one function of ``logits [rows, vocab]`` and arrays with a value per row. It is compiled once per
:class:`Features` and shape, never per value. Which path a row takes depends on the row alone, so what shares its batch
never changes its tokens:

* greedy: the best token;
* dense: temperature and no filter, a draw from the whole vocabulary without sorting it;
* candidates: filters, on the ``CANDIDATES`` best tokens. The step also says whether they covered the filters'
  survivors; a row that was not covered is computed again by
* full: filters on the sorted vocabulary.

Order and meaning of the operations are those of ``mlx_lm.sample_utils``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

__all__ = [
    "CANDIDATES",
    "NO_TOKEN",
    "Features",
    "Sampled",
    "Sampler",
    "best",
    "drawable",
    "mass",
    "suited",
    "survivors",
]

CANDIDATES = 256
"""How many of the best tokens the filters look at. A constant: a row's tokens must not depend on its batch."""
TOP_LOGPROBS = 20
"""The most alternatives a line can ask for; always that many are computed, so that the number makes no new graph."""
BLOCKS = 64
"""Members of a block of a long sum."""
ROUND = 1.5 * 2.0**23
EXP2 = (1.0, 0.69314718, 0.24022646, 0.05550329, 0.00961852, 0.00133998699, 0.00015337585)
"""2^x for x between -1/2 and 1/2 as a polynomial: least squares on Chebyshev points, off by 2e-8 at most."""
NO_TOKEN = -1
"""What is told of a row whose logits are NaN, infinite, or all of them -infinity."""
UNIFORMS = 3
"""Random numbers per row and step: XTC's coin, and two for a draw of two levels."""

Arrays = Mapping[str, mx.array]
Step = Callable[..., dict[str, mx.array]]


@dataclass(frozen=True, slots=True)
class Features:
    """What at least one row of the batch needs. Each combination is a graph of its own."""

    bias: bool = False
    repetition: bool = False
    presence: bool = False
    frequency: bool = False
    min_tokens: bool = False
    greedy: bool = False
    dense: bool = False
    candidates: bool = False
    full: bool = False
    xtc: bool = False
    mass: bool = False
    """Some row's filters need the probability mass of the whole vocabulary."""
    logprobs: bool = False
    top_logprobs: bool = False

    @property
    def window(self) -> bool:
        """Whether the step looks back at tokens."""
        return self.repetition or self.presence or self.frequency

    @property
    def draws(self) -> bool:
        return self.dense or self.candidates or self.full


@dataclass(frozen=True, slots=True)
class Sampled:
    """Results of one step, lazy: ``tokens [rows]``, which the next step goes on from, and ``told [rows]``, the same but
    for ``NO_TOKEN`` in rows that have none; ``covered [rows]`` where candidates were used; log-probabilities of the
    tokens ``[rows]`` and of the best alternatives ``[rows, TOP_LOGPROBS]``, ids and values, where asked for."""

    tokens: mx.array
    told: mx.array
    state: dict[str, mx.array]
    covered: mx.array | None = None
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def outputs(self) -> list[mx.array]:
        """All arrays of the step, for an evaluation."""
        asked = (self.covered, self.logprobs, self.top_ids, self.top_logprobs)
        return [self.tokens, self.told, *(array for array in asked if array is not None), *self.state.values()]


class Sampler:
    """Holds the compiled steps. ``compile`` is ``mx.compile``, or None to run each step as it stands. ``traces`` counts
    how often a step's Python ran: once per features and shapes when compiled."""

    def __init__(self, compile: Callable[[Step], Step] | None = mx.compile) -> None:
        self._compile = compile
        self._steps: dict[Features, Step] = {}
        self.traces = 0

    def __call__(self, features: Features, logits: mx.array, state: Arrays, params: Arrays) -> Sampled:
        """Sample one token per row; ``state`` is what the step before returned, or what the rows begin with."""
        step = self._steps.get(features)
        if step is None:
            step = self._traced(features)
            step = self._steps[features] = step if self._compile is None else self._compile(step)
        found = step(logits, dict(state), dict(params))
        return Sampled(
            tokens=found["tokens"],
            told=found["told"],
            state={name: found[name] for name in state},
            covered=found.get("covered"),
            logprobs=found.get("logprobs"),
            top_ids=found.get("top_ids"),
            top_logprobs=found.get("top_logprobs"),
        )

    def _traced(self, features: Features) -> Step:
        def step(logits: mx.array, state: Arrays, params: Arrays) -> dict[str, mx.array]:
            self.traces += 1
            return sample(features, logits, state, params)

        return step


def suited(compile: bool | None = None) -> Sampler:
    """A sampler that compiles its steps or not; None: as suits the device, which is on a GPU only."""
    compiled = mx.default_device() != mx.cpu if compile is None else compile
    return Sampler(mx.compile if compiled else None)


def sample(features: Features, logits: mx.array, state: Arrays, params: Arrays) -> dict[str, mx.array]:
    """One step, uncompiled. ``state`` and ``params`` are those of :mod:`worker.engine.sampling.row_params`."""
    logits = adjust(features, logits, state, params)
    found: dict[str, mx.array] = {}
    ids = values = tokens = None
    if features.greedy or not (features.dense or features.candidates):
        tokens = mx.argmax(_normalised_as_mlx_lm(logits), axis=-1).astype(mx.int32)
    if features.draws:
        uniforms = _uniforms(params["keys"], state["generated"])
        if features.dense:
            tokens = _either(params["dense"], draw_dense(logits, params["temperature"], uniforms), tokens)
        if features.candidates:
            ids, values = best(logits, CANDIDATES)
            total = mass(logits, values[:, :1]) if features.mass else None
            whole = ids.shape[-1] == logits.shape[-1]
            picked, covered = draw_filtered(ids, values, total, params, uniforms, whole=whole, xtc=features.xtc)
            tokens = _either(params["candidates"], picked, tokens)
            found["covered"] = covered | ~params["candidates"]
        if features.full and tokens is not None:
            tokens = _redraw_full(tokens, logits, params, uniforms, xtc=features.xtc)
    if tokens is None:
        raise ValueError("the features have no way to a token")
    if features.logprobs:
        found |= _logprobs(features, logits, tokens, ids, values)
    finite = drawable(logits)
    tokens = mx.where(finite, tokens, 0)
    found["told"] = mx.where(finite, tokens, NO_TOKEN)
    found["tokens"] = tokens
    found["generated"] = state["generated"] + 1
    if features.window:
        found["window"] = mx.concatenate([state["window"][:, 1:], tokens[:, None]], axis=1)
    return found


def drawable(logits: mx.array) -> mx.array:
    """``[rows]``: whether a token can be drawn at all. -infinity is a token that cannot come, which is in order as long
    as another can. One pass: the maximum of numbers with a NaN among them is NaN, in MLX."""
    most = logits.max(axis=-1)
    return (most < mx.inf) & (most > -mx.inf)


def _either(rows: mx.array, tokens: mx.array, others: mx.array | None) -> mx.array:
    """``tokens`` in ``rows`` and ``others`` elsewhere; where nothing else is drawn, idle rows may have them too."""
    return tokens if others is None else mx.where(rows, tokens, others)


def adjust(features: Features, logits: mx.array, state: Arrays, params: Arrays) -> mx.array:
    """Bias, penalties and min_tokens, in the model's own precision, as mlx-lm's processors work.

    The three penalties look at suffixes of the window ``[rows, width]``, whose last column is the newest token. A
    position outside a row's suffix stands for the newest token instead: the same token may be written more than
    once, but always with the same value.
    """
    kind = logits.dtype
    rows = mx.arange(logits.shape[0])[:, None]
    if features.bias:
        logits = logits.at[rows, params["bias_ids"]].add(params["bias_values"].astype(kind))
    if features.repetition:
        ids, used = _suffix(state["window"], params["repetition_size"], _ages_all(state, params))
        penalty = mx.where(used, params["repetition"], 1.0).astype(kind)[:, None]
        old = mx.take_along_axis(logits, ids, axis=-1)
        logits = mx.put_along_axis(logits, ids, mx.where(old < 0, old * penalty, old / penalty), axis=-1)
    if features.presence:
        length = _ages_all(state, params, params["presence_prompt"])
        ids, used = _suffix(state["window"], params["presence_size"], length)
        penalty = mx.where(used, params["presence"], 0.0).astype(kind)[:, None]
        old = mx.take_along_axis(logits, ids, axis=-1)
        logits = mx.put_along_axis(logits, ids, old - penalty, axis=-1)
    if features.frequency:
        length = _ages_all(state, params, params["frequency_prompt"])
        inside = _ages(state["window"]) < mx.minimum(params["frequency_size"], length)[:, None]
        penalty = mx.where(inside, params["frequency"][:, None], 0.0).astype(kind)
        logits = logits.at[rows, state["window"]].subtract(penalty)
    if features.min_tokens:
        early = (state["generated"] < params["min_tokens"])[:, None]
        old = mx.take_along_axis(logits, params["eos_ids"], axis=-1)
        banned = mx.where(early, mx.array(-mx.inf, dtype=kind), old)
        logits = mx.put_along_axis(logits, params["eos_ids"], banned, axis=-1)
    return logits


def _ages(window: mx.array) -> mx.array:
    """``[1, width]``: how many tokens came after each column."""
    width = window.shape[1]
    return mx.arange(width - 1, -1, -1)[None]


def _ages_all(state: Arrays, params: Arrays, with_prompt: mx.array | None = None) -> mx.array:
    """``[rows]``: how many tokens a penalty may look at, prompt and output or (``with_prompt`` false) output only."""
    prompt = params["prompt_tokens"]
    if with_prompt is not None:
        prompt = mx.where(with_prompt, prompt, 0)
    return prompt + state["generated"]


def _suffix(window: mx.array, size: mx.array, length: mx.array) -> tuple[mx.array, mx.array]:
    """Token ids ``[rows, width]`` of each row's last ``min(size, length)`` tokens, and whether there are any."""
    count = mx.minimum(size, length)
    ids = mx.where(_ages(window) < count[:, None], window, window[:, -1:])
    return ids, count > 0


def _normalised_as_mlx_lm(logits: mx.array) -> mx.array:
    """What mlx-lm takes the argmax of. In half precision normalising rounds, and may make two tokens equal."""
    if logits.dtype == mx.float32:
        return logits
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _uniforms(keys: mx.array, generated: mx.array) -> mx.array:
    """``[rows, UNIFORMS]`` in [0, 1): a pure function of each row's key and position.

    Keys are hashes of seeds, so adding the position to them makes no two rows meet. 1 - 2^-23 is the most that,
    times a float32 total, stays below that total.
    """
    keyed = mx.stack([keys[:, 0], keys[:, 1] + generated.astype(mx.uint32)], axis=1)
    uniforms = mx.vmap(lambda key: mx.random.uniform(shape=(UNIFORMS,), key=key))(keyed)
    return mx.minimum(uniforms, 1.0 - 2.0**-23)


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


def mass(logits: mx.array, top: mx.array) -> mx.array:
    """``[rows, 1]``: the sum over the vocabulary of exp(logit - best logit); ``top [rows, 1]`` are the best.

    In two levels: MLX adds up a long row one by one, and loses four digits on the way.
    """
    odds = _exp_of_many(logits.astype(mx.float32) - top.astype(mx.float32))
    return _grid(odds, BLOCKS).sum(axis=1).sum(axis=-1, keepdims=True)


def _exp(scores: mx.array) -> mx.array:
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


def survivors(
    ids: mx.array,
    values: mx.array,
    total: mx.array | None,
    params: Arrays,
    coin: mx.array,
    *,
    whole: bool,
    xtc: bool = True,
) -> tuple[mx.array, mx.array, mx.array]:
    """Which of the candidates (best first, ``[rows, count]``) survive top_p, min_p, XTC and top_k.

    ``total`` is the mass of the vocabulary relative to the best token (None: no row needs it), ``coin [rows, 1]``
    XTC's uniform. ``whole`` says that the candidates are the whole vocabulary, ``xtc`` that some row uses XTC.

    Returns:
        Scores relative to the best (float32), the survivors, and per row whether no other token survives.
    """
    scores = values.astype(mx.float32)
    scores = scores - scores[:, :1]
    odds = _exp(scores)
    ranks = mx.arange(scores.shape[-1])[None]
    kept = scores > -mx.inf
    top_p, min_p = params["top_p"][:, None], params["log_min_p"][:, None]
    if total is None:
        total = odds.sum(axis=-1, keepdims=True)
    needed = (mx.cumsum(odds, axis=-1, inclusive=False) < top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(scores, mx.maximum(needed, 1) - 1, axis=-1)
    kept = kept & ((scores >= threshold) | (top_p >= 1.0))
    kept = kept & ((scores >= min_p) | (ranks < params["min_tokens_to_keep"][:, None]))
    closed = ~kept[:, -1] if not whole else mx.ones_like(kept[:, -1])
    seen = closed
    if xtc:
        kept, seen = _xtc(ids, odds, kept, total, closed, params, coin)
    top_k = params["top_k"][:, None]
    order = mx.cumsum(kept.astype(mx.int32), axis=-1)
    enough = (params["top_k"] > 0) & (order[:, -1] >= params["top_k"])
    enough = enough & seen if xtc else enough
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
    unfiltered = (params["top_p"] >= 1.0) & (params["log_min_p"] == -mx.inf)
    alive = mx.where(kept, odds, 0.0)
    mass = mx.where(closed[:, None], alive.sum(axis=-1, keepdims=True), total)
    share = alive / mass
    over = share > params["xtc_threshold"][:, None]
    least = mx.where(over, share, mx.inf).min(axis=-1, keepdims=True)
    exempt = (ids[:, :, None] == params["xtc_exempt"][:, None, :]).any(axis=-1)
    tossed = coin < params["xtc_probability"][:, None]
    cut = tossed & (share > least) & ~exempt
    seen = closed | (unfiltered & ~over[:, -1]) | ~tossed[:, 0]
    return kept & ~cut, seen


def draw_filtered(
    ids: mx.array,
    values: mx.array,
    total: mx.array | None,
    params: Arrays,
    uniforms: mx.array,
    *,
    whole: bool,
    xtc: bool = True,
) -> tuple[mx.array, mx.array]:
    """Tokens ``[rows]`` drawn from the survivors among the candidates, and whether they covered the filters."""
    scores, kept, covered = survivors(ids, values, total, params, uniforms[:, :1], whole=whole, xtc=xtc)
    top = mx.where(kept, scores, -mx.inf).max(axis=-1, keepdims=True)
    weights = mx.where(kept, _exp((scores - top) / params["temperature"][:, None]), 0.0)
    return mx.take_along_axis(ids, pick(weights, uniforms[:, 1:]), axis=-1)[:, 0], covered


def draw_dense(logits: mx.array, temperature: mx.array, uniforms: mx.array) -> mx.array:
    """Tokens ``[rows]`` drawn from the whole vocabulary."""
    wide = logits.astype(mx.float32)
    weights = _exp_of_many((wide - wide.max(axis=-1, keepdims=True)) / temperature[:, None])
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


def _redraw_full(drawn: mx.array, logits: mx.array, params: Arrays, uniforms: mx.array, *, xtc: bool) -> mx.array:
    """``drawn`` with the tokens of the rows in ``full_rows`` drawn from their sorted vocabulary."""
    rows = params["full_rows"]
    chosen = {name: params[name][rows] for name in FILTERS if name in params}
    ids, values = best(logits[rows], logits.shape[-1])
    picked, _ = draw_filtered(ids, values, None, chosen, uniforms[rows], whole=True, xtc=xtc)
    return mx.put_along_axis(drawn, rows, picked, axis=0)


FILTERS = (
    "temperature",
    "top_p",
    "log_min_p",
    "min_tokens_to_keep",
    "top_k",
    "xtc_probability",
    "xtc_threshold",
    "xtc_exempt",
)
"""The per-row parameters that filters and draws read, those of XTC where it is used."""


def _logprobs(
    features: Features, logits: mx.array, tokens: mx.array, ids: mx.array | None, values: mx.array | None
) -> dict[str, mx.array]:
    wide = logits.astype(mx.float32)
    norm = mx.logsumexp(wide, axis=-1, keepdims=True)
    found = {"logprobs": (mx.take_along_axis(wide, tokens[:, None], axis=-1) - norm)[:, 0]}
    if features.top_logprobs:
        if ids is None or values is None:
            ids, values = best(logits, TOP_LOGPROBS)
        found["top_ids"] = ids[:, :TOP_LOGPROBS].astype(mx.int32)
        found["top_logprobs"] = values[:, :TOP_LOGPROBS].astype(mx.float32) - norm
    return found
