"""The parameters of a batch's rows as arrays: built when the rows change, never per step.

Arrays that grow with a row (the window of tokens for penalties) are as wide as a power of two, so that their shapes,
and with them compiled graphs, seldom change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence as Items
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from jobs.params import Sampling
from worker.engine.sampling.sampler import CANDIDATES, Features
from worker.engine.sequence import Sequence

__all__ = ["COLDEST", "BatchArrays", "build", "build_ahead", "draw_key", "path_of"]

COLDEST = 1e-6
"""Temperatures below it draw as this one does, which is the best token: in float32 they might become 0."""
UNLIMITED = 2**30
"""A context size of a penalty that means everything; fits an int32."""


@dataclass(slots=True)
class BatchArrays:
    """What the sampler takes for one set of rows. ``steps_left`` is how many steps the window is wide enough for."""

    features: Features
    params: dict[str, mx.array]
    state: dict[str, mx.array]
    steps_left: float


def build(slots: Items[Sequence | None], vocab_size: int, *, ahead: int = 0) -> BatchArrays:
    """The arrays of a batch's slots. The window is wide enough for ``ahead`` steps after the next.

    An idle slot (None) asks for nothing, and gets whatever token comes cheapest.
    """
    features = features_of([row for row in slots if row is not None], vocab_size)
    idle = Sequence(None, 0, (0,), Sampling(), 0, frozenset(), limit=1)
    rows = [idle if row is None else row for row in slots]
    state = {"generated": _ints(len(row.tokens) for row in rows)}
    steps_left = math.inf
    if features.window:
        width = _power_of_two(max(_looks_back(row, ahead) for row in rows))
        state["window"] = _window(rows, width)
        steps_left = min(_window_steps(row, width) for row in rows)
    return BatchArrays(features, _params(rows, features, vocab_size), state, steps_left)


def build_ahead(row: Sequence, inputs: mx.array, vocab_size: int) -> BatchArrays:
    """The arrays for several steps of one row at once, whose inputs ``[steps]`` are known or guessed: entry i stands
    for the row when it has read the first i + 1 of them."""
    steps = inputs.shape[0]
    arrays = build([row] * steps, vocab_size, ahead=steps - 1)
    arrays.state["generated"] = arrays.state["generated"] + mx.arange(steps)
    if "window" in arrays.state:
        width = arrays.state["window"].shape[1]
        history = mx.concatenate([arrays.state["window"][0], inputs[1:]])
        arrays.state["window"] = mx.stack([history[step : step + width] for step in range(steps)])
    return arrays


def path_of(sampling: Sampling, vocab_size: int, *, full: bool = False) -> str:
    """How a row draws: ``greedy``, ``dense``, ``candidates`` or ``full``. It depends on nothing but the row.

    ``full`` says that the candidates did not cover this row's filters before.
    """
    top_k = sampling.top_k if sampling.top_k < vocab_size else 0
    cuts = sampling.top_p < 1.0 or sampling.min_p > 0.0
    if sampling.greedy:
        return "greedy"
    if not cuts and not top_k and not sampling.xtc_probability:
        return "dense"
    if vocab_size <= CANDIDATES:
        return "candidates"
    # Some filters can never be covered: no need to find out in the middle of a text.
    hopeless = not 0 < top_k <= CANDIDATES and (
        not cuts or (sampling.top_p == 1.0 and sampling.min_tokens_to_keep >= CANDIDATES)
    )
    return "full" if full or hopeless else "candidates"


def draw_key(seed: int) -> tuple[int, int]:
    """The two 32-bit words of a seed's random key: a hash, so that neighbouring seeds share no draws."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=8, person=b"draw").digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def features_of(rows: Items[Sequence], vocab_size: int) -> Features:
    """What the rows need of the sampler, together."""
    samplings = [row.sampling for row in rows]
    paths = {path_of(row.sampling, vocab_size, full=row.full) for row in rows}
    return Features(
        bias=any(item.logit_bias for item in samplings),
        repetition=any(item.repetition_penalty != 1.0 for item in samplings),
        presence=any(item.presence_penalty != 0.0 for item in samplings),
        frequency=any(item.frequency_penalty != 0.0 for item in samplings),
        min_tokens=any(_bans_eos(row) for row in rows),
        greedy="greedy" in paths,
        dense="dense" in paths,
        candidates="candidates" in paths,
        full="full" in paths,
        xtc=any(item.xtc_probability > 0.0 and not item.greedy for item in samplings),
        mass=any(_needs_mass(row, vocab_size) for row in rows),
        logprobs=any(item.logprobs for item in samplings),
        top_logprobs=any(item.top_logprobs for item in samplings),
    )


def _bans_eos(row: Sequence) -> bool:
    return row.sampling.min_tokens > 0 and bool(row.eos) and not row.sampling.ignore_eos


def _needs_mass(row: Sequence, vocab_size: int) -> bool:
    if path_of(row.sampling, vocab_size, full=row.full) != "candidates":
        return False
    return row.sampling.top_p < 1.0 or row.sampling.xtc_probability > 0.0


def _params(rows: Items[Sequence], features: Features, vocab_size: int) -> dict[str, mx.array]:
    samplings = [row.sampling for row in rows]
    params: dict[str, mx.array] = {}
    if features.bias:
        biases = [item.logit_bias for item in samplings]
        params["bias_ids"] = _table((tuple(bias) for bias in biases), mx.int32)
        params["bias_values"] = _table((tuple(bias.values()) for bias in biases), mx.float32)
    if features.window:
        params |= _penalties(rows, features)
    if features.min_tokens:
        params["min_tokens"] = _ints(row.sampling.min_tokens if _bans_eos(row) else 0 for row in rows)
        params["eos_ids"] = _table((_repeated(sorted(row.eos)) for row in rows), mx.int32, repeat=True)
    if features.draws:
        params |= _draws(rows, features, vocab_size)
    return params


def _penalties(rows: Items[Sequence], features: Features) -> dict[str, mx.array]:
    samplings = [row.sampling for row in rows]
    params = {"prompt_tokens": _ints(len(row.prompt) for row in rows)}
    if features.repetition:
        params["repetition"] = _floats(item.repetition_penalty for item in samplings)
        params["repetition_size"] = _ints(item.repetition_context_size or UNLIMITED for item in samplings)
    if features.presence:
        params["presence"] = _floats(item.presence_penalty for item in samplings)
        params["presence_size"] = _ints(item.presence_context_size or UNLIMITED for item in samplings)
        params["presence_prompt"] = mx.array([item.presence_context_size is not None for item in samplings])
    if features.frequency:
        params["frequency"] = _floats(item.frequency_penalty for item in samplings)
        params["frequency_size"] = _ints(item.frequency_context_size or UNLIMITED for item in samplings)
        params["frequency_prompt"] = mx.array([item.frequency_context_size is not None for item in samplings])
    return params


def _draws(rows: Items[Sequence], features: Features, vocab_size: int) -> dict[str, mx.array]:
    samplings = [row.sampling for row in rows]
    paths = [path_of(row.sampling, vocab_size, full=row.full) for row in rows]
    params = {
        "keys": mx.array(np.array([draw_key(row.seed) for row in rows], dtype=np.uint32)),
        "temperature": _floats(1.0 if item.greedy else max(item.temperature, COLDEST) for item in samplings),
    }
    if features.dense:
        params["dense"] = mx.array([path == "dense" for path in paths])
    if features.candidates or features.full:
        params["top_p"] = _floats(item.top_p for item in samplings)
        params["log_min_p"] = _floats(math.log(item.min_p) if item.min_p else -math.inf for item in samplings)
        params["min_tokens_to_keep"] = _ints(min(item.min_tokens_to_keep, UNLIMITED) for item in samplings)
        params["top_k"] = _ints(item.top_k if item.top_k < vocab_size else 0 for item in samplings)
    if features.xtc:
        params["xtc_probability"] = _floats(item.xtc_probability for item in samplings)
        params["xtc_threshold"] = _floats(item.xtc_threshold for item in samplings)
        params["xtc_exempt"] = _table((row.xtc_exempt for row in rows), mx.int32, empty=-1)
    if features.candidates:
        params["candidates"] = mx.array([path == "candidates" for path in paths])
    if features.full:
        full = [index for index, path in enumerate(paths) if path == "full"]
        params["full_rows"] = _ints(full + full[-1:] * (_power_of_two(len(full)) - len(full)))
    return params


def _views(row: Sequence) -> list[tuple[int, int]]:
    """Of each penalty of the row that is on: its context size, and how much of the prompt it may see."""
    item, prompt = row.sampling, len(row.prompt)
    views = []
    if item.repetition_penalty != 1.0:
        views.append((item.repetition_context_size or UNLIMITED, prompt))
    if item.presence_penalty != 0.0:
        views.append((item.presence_context_size or UNLIMITED, 0 if item.presence_context_size is None else prompt))
    if item.frequency_penalty != 0.0:
        views.append((item.frequency_context_size or UNLIMITED, 0 if item.frequency_context_size is None else prompt))
    return views


def _looks_back(row: Sequence, ahead: int) -> int:
    """How many of its last tokens the row's penalties look at after ``ahead`` new ones; at least 1."""
    return max((min(size, prompt + len(row.tokens) + ahead) for size, prompt in _views(row)), default=1) or 1


def _window_steps(row: Sequence, width: int) -> float:
    """For how many steps, this one included, a window of ``width`` holds all that the row's penalties look at."""
    steps = [width - prompt - len(row.tokens) + 1 for size, prompt in _views(row) if size > width]
    return min(steps, default=math.inf)


def _window(rows: Items[Sequence], width: int) -> mx.array:
    """``[rows, width]``: each row's last tokens, the newest in the last column; zeros where a row is shorter."""
    window = np.zeros((len(rows), width), dtype=np.int32)
    for index, row in enumerate(rows):
        past = _tail(row, width)
        window[index, width - len(past) :] = past
    return mx.array(window)


def _tail(row: Sequence, count: int) -> list[int]:
    if count <= len(row.tokens):
        return row.tokens[len(row.tokens) - count :]
    return [*row.prompt[max(0, len(row.prompt) + len(row.tokens) - count) :], *row.tokens]


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _floats(values: Iterable[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)


def _ints(values: Iterable[int]) -> mx.array:
    return mx.array([min(value, UNLIMITED) for value in values], dtype=mx.int32)


def _repeated(ids: list[int]) -> tuple[int, ...]:
    return tuple(ids) or (0,)


def _table(lists: Iterable[Items[float]], kind: mx.Dtype, *, empty: int = 0, repeat: bool = False) -> mx.array:
    """Lists of different lengths as one array, filled up with ``empty`` or each with its first element."""
    items = list(lists)
    width = _power_of_two(max(1, *(len(item) for item in items)))
    filled = [[*item, *([item[0] if repeat else empty] * (width - len(item)))] for item in items]
    return mx.array(filled, dtype=kind)
