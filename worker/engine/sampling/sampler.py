"""Logits to tokens: every row of a batch with its own parameters, on one vectorised path.

A step is one function of ``logits [rows, vocab]`` and arrays with a value per row. It is compiled once per
:data:`Features` and shape, never per value. Which path a row takes depends on the row alone, so what shares its batch
never changes its tokens:

* greedy: the best token;
* dense: temperature and no filter, a draw from the whole vocabulary without sorting it;
* candidates: filters that leave few tokens, on the ``CANDIDATES`` best ones;
* wide: other filters, on the ``WIDE`` best. In both cases the step also says whether these tokens covered all that
  survive the filters. Where they did not, the token is drawn by
* full: filters on the sorted vocabulary. A row that was not covered is computed again with it, and for some steps
  more: its tokens are those of the candidates wherever these cover, so that nothing depends on how many.

Order and meaning of the operations are those of ``mlx_lm.sample_utils``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import mlx.core as mx

from worker.engine.sampling.constraint import allowed_only
from worker.engine.sampling.draws import draw_dense, largest, mass, uniforms_of
from worker.engine.sampling.filters import CANDIDATES, best, draw_filtered, draw_wide, redraw_full
from worker.engine.sequence import NO_TOKEN, NONE_ALLOWED

TOP_LOGPROBS = 20
"""The most alternatives a line can ask for; always that many are computed, so that the number makes no new graph."""
LARGE_VOCABULARY = 32_000
"""Tokens from which on a compiled step pays on a CPU."""
MOST_GRAPHS = 128
"""Compiled steps that are held."""

Arrays = Mapping[str, mx.array]
Step = Callable[..., dict[str, mx.array]]
Features = frozenset[str]
"""What at least one row of the batch needs; each combination is a graph of its own. Parameters of the step by name, the
paths by name, ``draws`` (any path but greedy), ``window`` (the step looks back at tokens), ``mass`` (filters need
the probability mass of the whole vocabulary) and ``guided`` (rows may not draw every token)."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Results of one step, lazy: ``tokens [rows]``, ``NO_TOKEN`` or ``NONE_ALLOWED`` in rows that have none; ``inputs
    [rows]``, the same but for a token 0 there, which the next step goes on from; ``covered [rows]``, whether the
    candidates covered a row's filters, where they were used; log-probabilities of the tokens ``[rows]`` and of the best
    alternatives ``[rows, TOP_LOGPROBS]``, ids and values, where asked for. All but ``inputs`` may have idle rows at
    their end."""

    tokens: mx.array
    inputs: mx.array
    state: dict[str, mx.array]
    covered: mx.array | None = None
    logprobs: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def outputs(self) -> list[mx.array]:
        """All arrays of the step, for an evaluation."""
        asked = (self.covered, self.logprobs, self.top_ids, self.top_logprobs)
        return [self.inputs, self.tokens, *(array for array in asked if array is not None), *self.state.values()]


class Sampler:
    """Holds the compiled steps, the ``most_graphs`` that were used last. ``compile`` is ``mx.compile``, or None to run
    each step as it stands. ``traces`` counts how often a step was traced: once per features and shapes, unless it was
    given up in between.

    The arrays of a step may have idle rows after those of ``logits``.
    """

    def __init__(self, compile: Callable[[Step], Step] | None = mx.compile, most_graphs: int = MOST_GRAPHS) -> None:
        self._compile = compile
        self._most_graphs = most_graphs
        self._steps: dict[Hashable, Step] = {}
        self.traces = 0

    @property
    def compiled(self) -> bool:
        return self._compile is not None

    @property
    def graphs(self) -> int:
        """How many compiled steps are held."""
        return len(self._steps)

    def __call__(self, features: Features, logits: mx.array, state: Arrays, params: Arrays) -> Sampled:
        """Sample one token per row; ``state`` is what the step before returned, or what the rows begin with."""
        rows, state, params = logits.shape[0], dict(state), dict(params)
        idle = state["generated"].shape[0] - rows
        if idle:
            logits = mx.concatenate([logits, mx.broadcast_to(logits[:1], (idle, logits.shape[1]))])
        found = self._step_of(features, logits, state, params)(logits, state, params)
        if idle:
            found["inputs"] = found["inputs"][:rows]
        return Sampled(state={name: found.pop(name) for name in state}, **found)

    def _step_of(self, features: Features, logits: mx.array, state: Arrays, params: Arrays) -> Step:
        if self._compile is None:
            return partial(sample, features)
        shapes = (array.shape for array in chain([logits], state.values(), params.values()))
        key = (features, logits.dtype, *shapes)
        step = self._steps.pop(key, None)
        if step is None:
            step = self._compile(self._traced(features))
        self._steps[key] = step
        if len(self._steps) > self._most_graphs:
            del self._steps[next(iter(self._steps))]
        return step

    def _traced(self, features: Features) -> Step:
        def step(logits: mx.array, state: Arrays, params: Arrays) -> dict[str, mx.array]:
            self.traces += 1
            return sample(features, logits, state, params)

        return step


def suited(compile: bool | None = None, *, vocab_size: int = 0, compiler: bool = True) -> Sampler:
    """A sampler that compiles its steps or not; None: as suits the device. On a GPU it always pays. The CPU build needs
    a C++ ``compiler``, for some seconds once per machine, and saves a quarter of a step: worth while only where that
    is milliseconds, with large vocabularies."""
    if compile is None:
        compile = mx.default_device() != mx.cpu or (compiler and vocab_size >= LARGE_VOCABULARY)
    return Sampler(mx.compile if compile else None)


def sample(features: Features, logits: mx.array, state: Arrays, params: Arrays) -> dict[str, mx.array]:
    """One step, uncompiled. ``state`` and ``params`` are those of :mod:`worker.engine.sampling.row_params`."""
    logits = own = adjust(features, logits, state, params)
    if "guided" in features:
        logits = allowed_only(logits, params["allowed"])
    found: dict[str, mx.array] = {}
    ids = values = tokens = covered = None
    if "greedy" in features:
        tokens = mx.argmax(_normalised_as_mlx_lm(logits), axis=-1).astype(mx.int32)
    if "draws" in features:
        uniforms = uniforms_of(params["keys"], state["generated"])
        if "dense" in features:
            tokens = _either(params["dense"], draw_dense(logits, params["temperature"], uniforms), tokens)
        if "candidates" in features:
            ids, values = best(logits, CANDIDATES)
            picked, within = draw_filtered(logits, ids, values, params, uniforms, with_mass="mass" in features)
            tokens = _either(params["candidates"], picked, tokens)
            covered = within | ~params["candidates"]
        if not features.isdisjoint(("wide", "full")):
            tokens = mx.zeros(logits.shape[0], dtype=mx.int32) if tokens is None else tokens
            covered = mx.ones(logits.shape[0], dtype=mx.bool_) if covered is None else covered
            if "wide" in features:
                tokens, covered = draw_wide(tokens, covered, logits, params, uniforms)
            if "full" in features:
                tokens = redraw_full(tokens, covered, logits, params, uniforms)
        if covered is not None:
            found["covered"] = covered
    if tokens is None:
        raise ValueError("the features have no way to a token")
    if "logprobs" in features:
        if "guided" in features:  # what the model itself thinks best
            ids = values = None
        found |= _logprobs(features, own, tokens, ids, values)
    finite = drawable(own)
    if "guided" in features:
        possible = drawable(logits)
        tokens = mx.where(possible, tokens, NONE_ALLOWED)
        inputs = mx.where(finite & possible, tokens, 0)
    else:
        inputs = mx.where(finite, tokens, 0)
    found["tokens"] = mx.where(finite, tokens, NO_TOKEN)
    found["inputs"] = inputs
    found["generated"] = state["generated"] + 1
    if "window" in features:
        found["window"] = mx.concatenate([state["window"][:, 1:], inputs[:, None]], axis=1)
    return found


def drawable(logits: mx.array) -> mx.array:
    """``[rows]``: whether a token can be drawn at all. -infinity is a token that cannot come, which is in order as long
    as another can. One pass: the maximum of numbers with a NaN among them is NaN, in MLX."""
    most = largest(logits)[:, 0]
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
    if "logit_bias" in features:
        logits = logits.at[rows, params["bias_ids"]].add(params["bias_values"].astype(kind))
    if "repetition_penalty" in features:
        ids, used = _suffix("repetition_penalty", state, params)
        penalty = mx.where(used, params["repetition_penalty"], 1.0).astype(kind)[:, None]
        old = mx.take_along_axis(logits, ids, axis=-1)
        logits = mx.put_along_axis(logits, ids, mx.where(old < 0, old * penalty, old / penalty), axis=-1)
    if "presence_penalty" in features:
        ids, used = _suffix("presence_penalty", state, params)
        penalty = mx.where(used, params["presence_penalty"], 0.0).astype(kind)[:, None]
        old = mx.take_along_axis(logits, ids, axis=-1)
        logits = mx.put_along_axis(logits, ids, old - penalty, axis=-1)
    if "frequency_penalty" in features:
        inside = _ages(state["window"]) < _looked_at("frequency_penalty", state, params)[:, None]
        penalty = mx.where(inside, params["frequency_penalty"][:, None], 0.0).astype(kind)
        logits = logits.at[rows, state["window"]].subtract(penalty)
    if "min_tokens" in features:
        early = (state["generated"] < params["min_tokens"])[:, None]
        old = mx.take_along_axis(logits, params["eos_ids"], axis=-1)
        banned = mx.where(early, mx.array(-mx.inf, dtype=kind), old)
        logits = mx.put_along_axis(logits, params["eos_ids"], banned, axis=-1)
    return logits


def _ages(window: mx.array) -> mx.array:
    """``[1, width]``: how many tokens came after each column."""
    width = window.shape[1]
    return mx.arange(width - 1, -1, -1)[None]


def _looked_at(penalty: str, state: Arrays, params: Arrays) -> mx.array:
    """``[rows]``: how many of its last tokens a row's penalty looks at."""
    size = params[penalty.replace("penalty", "context_size")]
    return mx.minimum(size, params[f"{penalty}_prompt"] + state["generated"])


def _suffix(penalty: str, state: Arrays, params: Arrays) -> tuple[mx.array, mx.array]:
    """Ids ``[rows, width]`` of the tokens that each row's penalty looks at, and whether there are any."""
    window, count = state["window"], _looked_at(penalty, state, params)
    return mx.where(_ages(window) < count[:, None], window, window[:, -1:]), count > 0


def _normalised_as_mlx_lm(logits: mx.array) -> mx.array:
    """What mlx-lm takes the argmax of. In half precision normalising rounds, and may make two tokens equal."""
    if logits.dtype == mx.float32:
        return logits
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _logprobs(
    features: Features, logits: mx.array, tokens: mx.array, ids: mx.array | None, values: mx.array | None
) -> dict[str, mx.array]:
    wide = logits.astype(mx.float32)
    top = largest(wide)
    norm = top + mx.log(mass(wide, top))
    found = {"logprobs": (mx.take_along_axis(wide, tokens[:, None], axis=-1) - norm)[:, 0]}
    if "top_logprobs" in features:
        if ids is None or values is None:
            ids, values = best(logits, TOP_LOGPROBS)
        found["top_ids"] = ids[:, :TOP_LOGPROBS].astype(mx.int32)
        found["top_logprobs"] = values[:, :TOP_LOGPROBS].astype(mx.float32) - norm
    return found
