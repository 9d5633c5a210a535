"""Values that a parameter does not take, and what is to be written instead of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["instead"]

Habit = tuple[Callable[[Any], bool], str]


def _below(bound: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and value < bound


def _above(bound: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and value > bound


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, bool) and value in values


def _integer(value: Any) -> bool:
    return type(value) is int


HABITS: Mapping[str, tuple[Habit, ...]] = {
    "max_tokens": (
        (_below(0), "leave it out (512; on OpenAI lines to the context's end), or give more than the text may need"),
        (_is(0), "a line generates at least one token"),
    ),
    "min_tokens": ((_below(0), "0 is off"),),
    "temperature": ((_below(0), "0 is greedy"),),
    "top_p": (
        (_is(0), "for greedy give temperature 0"),
        (_below(0), "1 is off"),
        (_above(1), "it is a share: 0.9 for 90 percent; 1 is off"),
    ),
    "top_k": ((_below(0), "0 is off"),),
    "min_p": ((_above(1), "it is a share, such as 0.05; 0 is off"), (_below(0), "0 is off")),
    "min_tokens_to_keep": ((_below(1), "1 is off"),),
    "repetition_penalty": ((_is(0), "1 is off"), (_below(0), "below 1 rewards, 1 is off")),
    "repetition_context_size": ((_below(0), "0 is all"),),
    "presence_context_size": ((_below(0), "0 is all"),),
    "frequency_context_size": ((_below(0), "0 is all"),),
    "seed": ((_below(0), "leave it out: a seed is drawn and recorded"),),
    "n": ((_below(1), "1 is one text"), (_above(128), "write the line several times")),
    "logprobs": ((_integer, "for the k best give 'logprobs': true and 'top_logprobs': k"),),
    "stop": ((_is(None), "leave it out"),),
}


def instead(name: str, value: Any) -> str:
    """``: `` and what to write instead of ``value``, or nothing where the range of ``name`` says enough."""
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bool | list | dict):
        return ""
    return next((f": {words}" for applies, words in HABITS.get(name, ()) if applies(value)), "")


def _of_text(value: str) -> str:
    word = value[:20].strip().lower()
    if word in ("true", "false"):
        return ": without the quotes"
    try:
        float(word)
    except ValueError:
        return ""
    return ": without the quotes"
