"""The parameters of a batch's rows as arrays: built when the rows change, never per step.

Arrays that grow with a row (the window of tokens for penalties) are as wide as a power of two, so that their shapes,
and with them compiled graphs, seldom change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence as Items
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import mlx.core as mx
import numpy as np

from jobs.params import PARAMETERS, Sampling
from worker.engine.sampling.filters import CANDIDATES, WIDE
from worker.engine.sampling.sampler import Features
from worker.engine.sampling.sizes import GrownSizes, power_of_two, rounded_rows
from worker.engine.sequence import PreparedLine, Sequence

COLDEST = 1e-6
"""Temperatures below it draw as this one does, which is the best token: in float32 they might become 0."""
UNLIMITED = 2**30
"""A context size that means everything; fits an int32."""
PENALTIES = {name: name.replace("penalty", "context_size") for name in PARAMETERS if name.endswith("_penalty")}
"""The penalties, each with the parameter that says how many tokens it looks at."""
SWITCHES = {name: row.default for name, row in PARAMETERS.items() if row.stage and row.switch is None}
"""The parameters that switch a part of the step on, with the values at which they are off."""
SWITCH_VALUES = attrgetter(*SWITCHES)
FILTERS = frozenset(name for name in SWITCHES if PARAMETERS[name].stage == "filter")
COMMON_FILTERS = frozenset({"top_p", "min_p", "top_k"})
"""Always computed together: each combination of features is a graph of its own."""
LONG_FILTERS = frozenset({"top_k", "xtc_probability"})
"""Filters that may leave more tokens than there are candidates, whatever the logits."""
FEW_MIN_P = 0.02
"""From here on min_p leaves few tokens in practice, each of them at least that part as likely as the best."""
MASS_FILTERS = frozenset({"top_p", "xtc_probability"})
"""Filters that need the probability mass of the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class BatchArray:
    """An array of the step with an entry per row, built where some row needs ``feature``. ``entry`` gives the entry of
    a row in a vocabulary of a size: a number, or several. Fewer than others have are filled up with ``fill`` (None:
    with their own first)."""

    feature: str
    kind: mx.Dtype
    entry: Callable[[Sequence, int], Any]
    fill: int | None = 0

    def build(self, name: str, rows: Items[Sequence], vocab_size: int, sizes: GrownSizes) -> mx.array:
        entries = [self.entry(row, vocab_size) for row in rows]
        if isinstance(entries[0], tuple):
            width = sizes.grown(name, power_of_two(max(1, *map(len, entries))))
            filled = ((row[0] if self.fill is None else self.fill, row) for row in entries)
            entries = [row + (fill,) * (width - len(row)) for fill, row in filled]
        elif self.kind == mx.int32:
            entries = [min(entry, UNLIMITED) for entry in entries]
        return mx.array(entries, dtype=self.kind)


NUMBERS = [name for name, row in PARAMETERS.items() if row.stage in ("logits", "filter") and row.kind != "bias"]
KINDS = {"int": mx.int32, "float": mx.float32, "bool": mx.bool_}


def _as_given(name: str) -> BatchArray:
    parameter, value = PARAMETERS[name], attrgetter(name)
    return BatchArray(parameter.switch or name, KINDS[parameter.kind], lambda row, _: value(row.sampling))


def _sizes(penalty: str) -> BatchArray:
    return BatchArray(penalty, mx.int32, lambda row, _: _context_size(row, penalty))


def _visible(penalty: str) -> BatchArray:
    return BatchArray(penalty, mx.int32, lambda row, _: _visible_prompt(row, penalty))


ARRAYS: Mapping[str, BatchArray] = {
    **{name: _as_given(name) for name in NUMBERS},
    # What the step takes otherwise than lines give it.
    **{size: _sizes(penalty) for penalty, size in PENALTIES.items()},
    **{f"{penalty}_prompt": _visible(penalty) for penalty in PENALTIES},
    "bias_ids": BatchArray("logit_bias", mx.int32, lambda row, _: tuple(row.sampling.logit_bias)),
    "bias_values": BatchArray("logit_bias", mx.float32, lambda row, _: tuple(row.sampling.logit_bias.values())),
    "min_tokens": BatchArray("min_tokens", mx.int32, lambda row, _: row.sampling.min_tokens if _bans_eos(row) else 0),
    "eos_ids": BatchArray("min_tokens", mx.int32, lambda row, _: tuple(sorted(row.line.eos)) or (0,), fill=None),
    "keys": BatchArray("draws", mx.uint32, lambda row, _: draw_key(row.seed)),
    "temperature": BatchArray("draws", mx.float32, lambda row, _: _temperature(row.sampling)),
    "min_p": BatchArray("min_p", mx.float32, lambda row, _: _log(row.sampling.min_p)),
    "top_k": BatchArray("top_k", mx.int32, lambda row, vocab_size: _top_k(row.sampling, vocab_size)),
    "xtc_exempt": BatchArray("xtc_probability", mx.int32, lambda row, _: row.line.xtc_exempt, fill=-1),
}
"""The arrays with an entry per row, but for the masks of the paths. A parameter of the table with a stage is here as
lines give it; ``min_p`` is in logarithms, as what it is compared with."""

COSTLY_PATHS = {"wide": "wide_rows", "full": "full_rows"}
"""Features that do not linger: a sort for no row costs more than a graph. With the arrays that have their rows."""


@dataclass(slots=True)
class BatchArrays:
    """What the sampler takes for one set of rows, for the next ``steps_left`` steps."""

    features: Features
    params: dict[str, mx.array]
    state: dict[str, mx.array]
    steps_left: float

    @property
    def rows(self) -> int:
        """Rows of the arrays, idle ones included."""
        return int(self.state["generated"].shape[0])


def build(
    slots: Items[Sequence | None], vocab_size: int, *, ahead: int = 0, sizes: GrownSizes | None = None
) -> BatchArrays:
    """The arrays of a batch's slots. The window is wide enough for ``ahead`` steps after the next.

    An idle slot (None) asks for nothing, and gets whatever token comes cheapest. With ``sizes`` arrays seldom change
    their shapes: there may be idle rows after the slots, wider arrays and more features than are needed. None of these
    changes a row's tokens.
    """
    if sizes is None:
        sizes = GrownSizes()
    else:
        slots = [*slots, *[None] * (rounded_rows(len(slots)) - len(slots))]
    idle = Sequence(PreparedLine(None, (0,), Sampling(), frozenset()), choice=0, seed=0, limit=1)
    rows = [idle if row is None else row for row in slots]
    used = [_in_use(row) for row in rows]
    paths = [_path_of(row, names, vocab_size) for row, names in zip(rows, used, strict=True)]
    needs = zip(slots, used, paths, strict=True)
    features = _features_of((names, path) for row, names, path in needs if row is not None)
    features = sizes.grown_set(features)
    params = {
        name: array.build(name, rows, vocab_size, sizes) for name, array in ARRAYS.items() if array.feature in features
    } | _path_arrays(features, paths, [row.full > 0 for row in rows])
    features |= {name for name, array in COSTLY_PATHS.items() if array in params}
    state = {"generated": mx.array([len(row.tokens) for row in rows], dtype=mx.int32)}
    steps_left = min((row.full for row in rows if row.full), default=math.inf)
    if "window" in features:
        views = [_views(row, names) for row, names in zip(rows, used, strict=True)]
        needed = max(min(size, seen + ahead) for row in views for size, seen in (*row, (1, 1)))
        width = sizes.grown("window width", power_of_two(needed))
        state["window"] = _window(rows, width)
        # For so many steps, this one included, the window holds all that the rows' penalties look at.
        room = (width - seen + 1 for row in views for size, seen in row if size > width)
        steps_left = min(steps_left, min(room, default=math.inf))
    return BatchArrays(features, params, state, steps_left)


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


def _path_arrays(features: Features, paths: Items[str], full: Items[bool]) -> dict[str, mx.array]:
    """Which rows take which of the paths in use; ``full`` are those whose vocabulary is sorted besides."""
    arrays = {name: mx.array([path == name for path in paths]) for name in features & {"dense", "candidates"}}
    if wide := _padded([index for index, path in enumerate(paths) if path == "wide"]):
        arrays["wide_rows"] = mx.array(wide, dtype=mx.int32)
    wanted = [path == "full" or (path in ("candidates", "wide") and full[index]) for index, path in enumerate(paths)]
    if chosen := _padded([index for index, sort in enumerate(wanted) if sort]):
        arrays["full_rows"] = mx.array(chosen, dtype=mx.int32)
        arrays["never_covered"] = mx.array([paths[index] == "full" for index in chosen])
    return arrays


def _padded(indices: list[int]) -> list[int]:
    """The indices, the last of them several times, so that their number is a power of two (or 0)."""
    return indices + indices[-1:] * (power_of_two(len(indices)) - len(indices))


def _path_of(row: Sequence, used: frozenset[str], vocab_size: int) -> str:
    """How a row draws: ``greedy``, ``dense``, ``candidates``, ``wide`` or ``full``. Its parameters alone decide."""
    sampling, filters = row.sampling, used & FILTERS
    top_k = _top_k(sampling, vocab_size)
    if not top_k:
        filters -= {"top_k"}
    if sampling.greedy:
        return "greedy"
    if not filters:
        return "dense"
    few = 0 < top_k <= CANDIDATES or sampling.min_p >= FEW_MIN_P
    if vocab_size <= CANDIDATES or (few and sampling.min_tokens_to_keep < CANDIDATES):
        return "candidates"
    # Some filters can never be covered: no need to find out in the middle of a text.
    cutting = filters - LONG_FILTERS
    cut_too_few = not cutting or (cutting == {"min_p"} and sampling.min_tokens_to_keep >= WIDE)
    hopeless = cut_too_few and not 0 < top_k <= WIDE
    return "full" if hopeless else "wide"


def draw_key(seed: int) -> tuple[int, int]:
    """The two 32-bit words of a seed's random key: a hash, so that neighbouring seeds share no draws."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=8, person=b"draw").digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _features_of(rows: Iterable[tuple[frozenset[str], str]]) -> Features:
    """What rows need of the sampler together, given the parameters that each uses and its path."""
    features: set[str] = set()
    for used, path in rows:
        features |= ({path} - COSTLY_PATHS.keys()) | (used - FILTERS)
        if path != "greedy":
            features.add("draws")
        if path == "candidates" or path in COSTLY_PATHS:
            features |= COMMON_FILTERS | (used & FILTERS)
        if path == "candidates" and used & MASS_FILTERS:
            features.add("mass")
    if not features.isdisjoint(PENALTIES):
        features.add("window")
    return frozenset(features)


def _in_use(row: Sequence) -> frozenset[str]:
    """The parameters of the row that are not off."""
    values = SWITCH_VALUES(row.sampling)
    used = frozenset(
        [name for name, off, value in zip(SWITCHES, SWITCHES.values(), values, strict=True) if value != off]
    )
    used = used if _bans_eos(row) else used - {"min_tokens"}
    return used if row.line.guide is None else used | {"guided"}


def _bans_eos(row: Sequence) -> bool:
    """Whether the step keeps the row from ending; where a constraint says when it may, it does that too."""
    return row.sampling.min_tokens > 0 and bool(row.line.eos) and not (row.sampling.ignore_eos or row.line.constrained)


def _temperature(sampling: Sampling) -> float:
    return 1.0 if sampling.greedy else max(sampling.temperature, COLDEST)


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


def _top_k(sampling: Sampling, vocab_size: int) -> int:
    return sampling.top_k if sampling.top_k < vocab_size else 0


def _context_size(row: Sequence, penalty: str) -> int:
    """How many tokens a penalty of the row looks at, at most."""
    return getattr(row.sampling, PENALTIES[penalty]) or UNLIMITED


def _visible_prompt(row: Sequence, penalty: str) -> int:
    """How many tokens of the prompt a penalty may look at: without a context size it looks at the output only."""
    return 0 if getattr(row.sampling, PENALTIES[penalty]) is None else len(row.prompt)


def _views(row: Sequence, used: frozenset[str]) -> list[tuple[int, int]]:
    """Of each penalty in use: its context size, and how many tokens there are that it may look at."""
    written = len(row.tokens)
    on = [penalty for penalty in PENALTIES if penalty in used]
    return [(_context_size(row, penalty), _visible_prompt(row, penalty) + written) for penalty in on]


def _window(rows: Items[Sequence], width: int) -> mx.array:
    """``[rows, width]``: each row's last tokens, the newest in the last column; zeros where a row is shorter."""
    window = np.zeros((len(rows), width), dtype=np.int32)
    for index, row in enumerate(rows):
        past = row.tokens[-width:]
        if len(past) < width:
            past = [*row.prompt[max(0, len(row.prompt) + len(past) - width) :], *past]
        window[index, width - len(past) :] = past
    return mx.array(window)
