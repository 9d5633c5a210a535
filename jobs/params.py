"""The one table of generation parameters: names, types, ranges, defaults and meaning.

Validation, the command-line flags, ``--defaults`` files, the table in docs/lines.md and the effective values in
each record are all read from the fields of :class:`Sampling`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

MAX_STOP_STRINGS = 16
MAX_SEED = 2**64 - 1
LONGEST_GUESS = 80
SHOWN_NAME = 80
"""Of a name that a line gives, messages show so many characters: it may have megabytes."""
CLOSE = 0.8
"""How alike two names must be (0..1) for one to be taken for a slip of the other."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of the table.

    ``kind`` is one of ``int``, ``float``, ``bool``, ``strings``, ``bias``; ``low`` and ``high`` are inclusive
    unless ``open_low``. ``default_text`` is how the default is shown where its value does not say it. ``off`` are what
    other tools write for the default. The rest is what to write instead of a value that is too low or too high, of a
    zero, a number, or null.

    ``stage`` is where a sampling step reads the parameter: ``logits`` (changes them for all that follows), ``filter``
    (which tokens may be drawn) or ``report`` (what the record shows); None: nowhere, or in a way of its own. A
    parameter with a stage is off at its default; ``switch`` names the one that switches it on, if that is another.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    default_text: str | None = None
    off: tuple[Any, ...] = ()
    below: str = ""
    above: str = ""
    zero: str = ""
    number: str = ""
    null: str = ""
    stage: str | None = None
    switch: str | None = None

    @property
    def range_text(self) -> str:
        """The type and range as a person reads them: ``int 1..2147483648``, ``float (0, 1]``."""
        low, high = _number(self.low), _number(self.high)
        if self.kind == "strings":
            return "string or list of " + (f"at most {high}" if high else "strings")
        text = "object: token id -> float" if self.kind == "bias" else self.kind
        if not low and not high:
            return text
        if not high:
            return f"{text} {'>' if self.open_low else '>='} {low}"
        return f"{text} ({low}, {high}]" if self.open_low else f"{text} {low}..{high}"

    @property
    def shown_default(self) -> str:
        if self.default_text is not None:
            return self.default_text
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == MAX_SEED:
        return "2^64-1"
    return str(int(value)) if float(value).is_integer() else str(value)


def _param(kind: str, default: Any, meaning: str, **bounds: Any) -> Any:
    info = {"kind": kind, "meaning": meaning, **bounds}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=info)
    return field(default=default, metadata=info)


_logits = functools.partial(_param, stage="logits")
_filter = functools.partial(_param, stage="filter")
_report = functools.partial(_param, stage="report")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Effective generation parameters of one line; each field's metadata is its row of the table."""

    max_tokens: int | None = _param(
        "int",
        512,
        "most new tokens",
        low=1,
        high=2**31,
        default_text="512 (on OpenAI lines to the context's end)",
        below="leave it out (512; on OpenAI lines to the context's end), or give more than the text may need",
        zero="a line generates at least one token",
    )
    """None: as many as the context has room for."""
    min_tokens: int = _logits(
        "int", 0, "EOS and stop strings cannot end the text before this many tokens", low=0, below="0 is off"
    )
    temperature: float = _param(
        "float",
        0.0,
        "0 is greedy; applied after the filters, as in mlx-lm",
        low=0,
        high=100,
        default_text="0.0 (1.0 on OpenAI lines)",
        below="0 is greedy",
    )
    do_sample: bool = _param("bool", True, "false is greedy whatever temperature says")
    top_p: float = _filter(
        "float",
        1.0,
        "nucleus on the untempered distribution",
        low=0,
        high=1,
        open_low=True,
        below="1 is off",
        zero="for greedy give temperature 0",
        above="it is a share: 0.9 for 90 percent; 1 is off",
    )
    top_k: int = _filter(
        "int",
        0,
        "keep the k most likely tokens; 0, or more than the vocabulary, is off",
        low=0,
        off=(-1,),
        below="0 is off",
    )
    min_p: float = _filter(
        "float",
        0.0,
        "drop tokens below this share of the top token's probability",
        low=0,
        high=1,
        below="0 is off",
        above="it is a share, such as 0.05; 0 is off",
    )
    min_tokens_to_keep: int = _filter(
        "int", 1, "how many tokens min_p must leave", low=1, below="1 is off", switch="min_p"
    )
    xtc_probability: float = _filter(
        "float",
        0.0,
        "chance per step to cut all but the least likely of the tokens above xtc_threshold; newline and EOS exempt",
        low=0,
        high=1,
    )
    xtc_threshold: float = _filter(
        "float", 0.1, "probability a token must reach to be cut by XTC", low=0, high=0.5, switch="xtc_probability"
    )
    repetition_penalty: float = _logits(
        "float",
        1.0,
        "multiplicative, sign-aware, over prompt and output; 1 is off",
        low=0,
        open_low=True,
        below="below 1 rewards, 1 is off",
        zero="1 is off",
    )
    repetition_context_size: int = _logits(
        "int",
        20,
        "repetition_penalty looks at the last N tokens of prompt and output; 0 is all",
        low=0,
        below="0 is all",
        switch="repetition_penalty",
    )
    presence_penalty: float = _logits("float", 0.0, "subtracted once from each token of the output; negative rewards")
    frequency_penalty: float = _logits("float", 0.0, "subtracted for each occurrence in the output; negative rewards")
    presence_context_size: int | None = _logits(
        "int",
        None,
        "when given, presence_penalty looks at the last N tokens of prompt and output; 0 is all",
        low=0,
        default_text="absent (output only)",
        below="0 is all",
        switch="presence_penalty",
    )
    frequency_context_size: int | None = _logits(
        "int",
        None,
        "when given, frequency_penalty looks at the last N tokens of prompt and output; 0 is all",
        low=0,
        default_text="absent (output only)",
        below="0 is all",
        switch="frequency_penalty",
    )
    logit_bias: dict[int, float] = _logits(
        "bias", {}, "added to the logits of these token ids", low=-100, high=100, default_text="{}", off=("", [])
    )
    stop: tuple[str, ...] = _param(
        "strings",
        (),
        "ends the text; matched on the answer's text however it was tokenised, and removed from it",
        high=MAX_STOP_STRINGS,
        default_text="[]",
        off=("", {}),
        null="leave it out",
    )
    stop_in_reasoning: bool = _param("bool", False, "stop strings look at what the model thinks, too")
    extra_eos_tokens: tuple[str, ...] = _param(
        "strings", (), "tokens of the model that end the text as EOS does", default_text="[]", off=("", {})
    )
    ignore_eos: bool = _param("bool", False, "go on past EOS, for benchmarks and fixed-length data")
    seed: int | None = _param(
        "int",
        None,
        "same model, line and seed give the same draws whatever shares the batch",
        low=0,
        high=MAX_SEED,
        default_text="drawn and recorded",
        below="leave it out: a seed is drawn and recorded",
    )
    n: int = _param(
        "int",
        1,
        "completions of one prompt; the prompt is computed once",
        low=1,
        high=128,
        below="1 is one text",
        above="write the line several times",
    )
    logprobs: bool = _report(
        "bool",
        False,
        "log-probability of each new token, after bias and penalties, before the filters",
        number="for the k best give 'logprobs': true and 'top_logprobs': k",
    )
    top_logprobs: int = _report("int", 0, "and of the k most likely tokens", low=0, high=20)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or not self.do_sample

    def as_dict(self) -> dict[str, Any]:
        """The values as they are written into records: JSON types only, all fields."""
        return {name: _plain(getattr(self, name)) for name in PARAMETERS}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return value


def _row(item: dataclasses.Field[Any]) -> Parameter:
    default = {} if item.default is dataclasses.MISSING else item.default
    return Parameter(name=item.name, default=default, **cast("dict[str, Any]", dict(item.metadata)))


PARAMETERS: Mapping[str, Parameter] = {item.name: _row(item) for item in dataclasses.fields(Sampling)}

ALIASES: Mapping[str, str] = {"temp": "temperature", "max_new_tokens": "max_tokens"}
"""Other names under which native and OpenAI lines may give a parameter."""

OPENAI_DEFAULTS: Mapping[str, Any] = {"max_tokens": None, "temperature": 1.0, "top_p": 1.0}
"""What an OpenAI line gets where neither it nor the batch says anything and the table differs."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where a known name is close, else nothing."""
    if len(name) > LONGEST_GUESS:
        return ""  # comparing takes time that grows with the name, which may have megabytes
    close = _closest(name, tuple(known))
    return f"; did you mean '{close}'?" if close is not None else ""


@functools.lru_cache(maxsize=256)  # files have the same wrong name in each line, and comparing takes long
def _closest(name: str, known: tuple[str, ...]) -> str | None:
    spelled = {other.replace("-", "_"): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), spelled, n=1, cutoff=CLOSE)
    return spelled[close[0]] if close else None


def shown(value: Any) -> str:
    """A value from JSON as messages show it, in 40 characters at most."""
    if isinstance(value, dict | list):
        # Not what is in it: that can be nested deeper than repr() goes, and have megabytes.
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
