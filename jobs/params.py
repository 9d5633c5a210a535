"""The one table of generation parameters: names, types, ranges, defaults and meaning.

Validation, the command-line flags, ``--defaults`` files, the table in docs/lines.md and the effective values in
each record are all read from the fields of :class:`Sampling`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from jobs.errors import LineError
from jobs.lines.refused_values import instead

__all__ = [
    "ALIASES",
    "OPENAI_DEFAULTS",
    "PARAMETERS",
    "SHOWN_NAME",
    "Parameter",
    "Sampling",
    "check_parameter",
    "did_you_mean",
    "shown",
]

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
    unless ``open_low``. ``default_text`` is how the default is shown where its value does not say it.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    default_text: str | None = None

    @property
    def range_text(self) -> str:
        """The type and range as a person reads them: ``int 1..2147483648``, ``float (0, 1]``."""
        if self.kind == "strings":
            return (
                "string or list of strings" if self.high is None else f"string or list of at most {_number(self.high)}"
            )
        text = "object: token id -> float" if self.kind == "bias" else self.kind
        if self.kind == "bias" or (self.low is None and self.high is None):
            return f"{text} {_number(self.low)}..{_number(self.high)}" if self.kind == "bias" else text
        low = "" if self.low is None else _number(self.low)
        if self.high is None:
            return f"{text} {'>' if self.open_low else '>='} {low}"
        if self.open_low:
            return f"{text} ({low}, {_number(self.high)}]"
        return f"{text} {low}..{_number(self.high)}"

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
    )
    """None: as many as the context has room for."""
    min_tokens: int = _param("int", 0, "EOS and stop strings cannot end the text before this many tokens", low=0)
    temperature: float = _param(
        "float",
        0.0,
        "0 is greedy; applied after the filters, as in mlx-lm",
        low=0,
        high=100,
        default_text="0.0 (1.0 on OpenAI lines)",
    )
    do_sample: bool = _param("bool", True, "false is greedy whatever temperature says")
    top_p: float = _param("float", 1.0, "nucleus on the untempered distribution", low=0, high=1, open_low=True)
    top_k: int = _param("int", 0, "keep the k most likely tokens; 0, or more than the vocabulary, is off", low=0)
    min_p: float = _param("float", 0.0, "drop tokens below this share of the top token's probability", low=0, high=1)
    min_tokens_to_keep: int = _param("int", 1, "how many tokens min_p must leave", low=1)
    xtc_probability: float = _param(
        "float",
        0.0,
        "chance per step to cut all but the least likely of the tokens above xtc_threshold; newline and EOS exempt",
        low=0,
        high=1,
    )
    xtc_threshold: float = _param("float", 0.1, "probability a token must reach to be cut by XTC", low=0, high=0.5)
    repetition_penalty: float = _param(
        "float", 1.0, "multiplicative, sign-aware, over prompt and output; 1 is off", low=0, open_low=True
    )
    repetition_context_size: int = _param(
        "int", 20, "repetition_penalty looks at the last N tokens of prompt and output; 0 is all", low=0
    )
    presence_penalty: float = _param("float", 0.0, "subtracted once from each token of the output; negative rewards")
    frequency_penalty: float = _param("float", 0.0, "subtracted for each occurrence in the output; negative rewards")
    presence_context_size: int | None = _param(
        "int",
        None,
        "when given, presence_penalty looks at the last N tokens of prompt and output; 0 is all",
        low=0,
        default_text="absent (output only)",
    )
    frequency_context_size: int | None = _param(
        "int",
        None,
        "when given, frequency_penalty looks at the last N tokens of prompt and output; 0 is all",
        low=0,
        default_text="absent (output only)",
    )
    logit_bias: dict[int, float] = _param(
        "bias", {}, "added to the logits of these token ids", low=-100, high=100, default_text="{}"
    )
    stop: tuple[str, ...] = _param(
        "strings",
        (),
        "ends the text; matched on the answer's text however it was tokenised, and removed from it",
        high=MAX_STOP_STRINGS,
        default_text="[]",
    )
    stop_in_reasoning: bool = _param("bool", False, "stop strings look at what the model thinks, too")
    extra_eos_tokens: tuple[str, ...] = _param(
        "strings", (), "tokens of the model that end the text as EOS does", default_text="[]"
    )
    ignore_eos: bool = _param("bool", False, "go on past EOS, for benchmarks and fixed-length data")
    seed: int | None = _param(
        "int",
        None,
        "same model, line and seed give the same draws whatever shares the batch",
        low=0,
        high=MAX_SEED,
        default_text="drawn and recorded",
    )
    n: int = _param("int", 1, "completions of one prompt; the prompt is computed once", low=1, high=128)
    logprobs: bool = _param(
        "bool", False, "log-probability of each new token, after bias and penalties, before the filters"
    )
    top_logprobs: int = _param("int", 0, "and of the k most likely tokens", low=0, high=20)

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


def check_parameter(name: str, value: Any) -> Any:
    """The checked and normalised value of parameter ``name``.

    Raises:
        LineError: ``invalid_type`` or ``out_of_range``, naming the field, the range and the value.
    """
    return CHECKS[name](value)


def shown(value: Any) -> str:
    """A value from JSON as messages show it, in 40 characters at most."""
    if isinstance(value, dict | list):
        # Not what is in it: that can be nested deeper than repr() goes, and have megabytes.
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _wrong_type(row: Parameter, wanted: str, value: Any) -> LineError:
    return LineError("invalid_type", row.name, f"must be {wanted}, not {shown(value)}{instead(row.name, value)}")


def _outside(row: Parameter, value: Any) -> LineError:
    message = f"must be {row.range_text}, not {shown(value)}{instead(row.name, value)}"
    return LineError("out_of_range", row.name, message)


def _int_check(row: Parameter) -> Callable[[Any], int]:
    low = -math.inf if row.low is None else row.low
    high = math.inf if row.high is None else row.high

    def check(value: Any) -> int:
        if type(value) is not int:
            if type(value) is not float or not value.is_integer():
                raise _wrong_type(row, "an integer", value)
            value = int(value)
        if not low <= value <= high:
            raise _outside(row, value)
        return cast("int", value)

    return check


def _float_check(row: Parameter) -> Callable[[Any], float]:
    low = -math.inf if row.low is None else row.low
    high = math.inf if row.high is None else row.high

    def check(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise _wrong_type(row, "a number", value)
        if type(value) is int and abs(value) > MAX_SEED:
            raise _outside(row, value)
        if not low <= value <= high or (row.open_low and value == low) or not math.isfinite(value):
            raise _outside(row, value)
        return float(value)

    return check


def _bool_check(row: Parameter) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if type(value) is not bool:
            raise _wrong_type(row, "true or false", value)
        return value

    return check


def _strings_check(row: Parameter) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise _wrong_type(row, "a string or a list of strings", value)
        for item in items:
            if not isinstance(item, str):
                raise LineError("invalid_type", row.name, f"must hold strings alone, not {shown(item)}")
        if not all(items):
            raise LineError("out_of_range", row.name, "must not hold an empty string")
        if row.high is not None and len(items) > row.high:
            raise LineError("out_of_range", row.name, f"must hold at most {int(row.high)} strings, not {len(items)}")
        return tuple(items)

    return check


def _bias_check(row: Parameter) -> Callable[[Any], dict[int, float]]:
    number = _float_check(row)

    def check(value: Any) -> dict[int, float]:
        if not isinstance(value, dict):
            raise _wrong_type(row, "an object of token ids and numbers", value)
        checked = {}
        for key, bias in value.items():
            token = str(key).removesuffix(".0")
            if not token.isascii() or not token.isdigit() or len(token) > 10:
                raise LineError("invalid_type", row.name, f"keys must be token ids, not {shown(key)}")
            checked[int(token)] = number(bias)
        return checked

    return check


_CHECKS_BY_KIND: Mapping[str, Callable[[Parameter], Callable[[Any], Any]]] = {
    "int": _int_check,
    "float": _float_check,
    "bool": _bool_check,
    "strings": _strings_check,
    "bias": _bias_check,
}

CHECKS: Mapping[str, Callable[[Any], Any]] = {name: _CHECKS_BY_KIND[row.kind](row) for name, row in PARAMETERS.items()}
