"""The filters of templates: Jinja's own that are safe and always give the same, and a few for prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

from jinja2.filters import FILTERS

from jobs.templates.budget import Budget, BudgetError, fits, measured
from jobs.templates.values import json_of, text_of

_KEPT = (
    "abs batch capitalize center count d default dictsort first float format groupby indent int items last length "
    "list lower map max min reject rejectattr reverse round select selectattr slice sort sum title trim truncate "
    "unique upper urlencode wordcount wordwrap"
)
KEPT = _KEPT.split()
"""Of Jinja's filters these; others depend on chance, reach into objects, or make HTML."""
MOST_WIDTH = 10_000
"""Largest width, count or precision that a filter takes."""
SIZED = frozenset({"batch", "center", "indent", "round", "slice", "truncate", "wordwrap"})
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
         "bard": "assistant", "model": "assistant", "assistant": "assistant", "system": "system",
         "tool": "tool", "function_response": "tool", "observation": "tool"}  # fmt: skip
"""Who speaks in ShareGPT rows, as the roles of messages."""


def filters(budget: Budget, more: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """All filters of a template, each a step of ``budget``."""
    own: dict[str, Callable[..., Any]] = {
        "tojson": tojson, "fromjson": fromjson, "chat": chat, "join": join, "replace": replace, "string": text_of,
    }  # fmt: skip
    chosen = {name: FILTERS[name] for name in KEPT} | own | dict(more)
    return {name: _counted(name, function, budget) for name, function in chosen.items()}


def _counted(name: str, function: Callable[..., Any], budget: Budget) -> Callable[..., Any]:
    sized = name in SIZED

    @wraps(function)  # Jinja reads from the function's attributes whether it wants the environment
    def call(*given: Any, **named: Any) -> Any:
        budget.step()
        if sized:
            for size in (*given, *named.values()):
                if isinstance(size, int) and size > MOST_WIDTH:
                    raise BudgetError(f"gives the filter '{name}' {size}; at most {MOST_WIDTH} is taken")
        if name == "format":
            check_format(next((part for part in given if isinstance(part, str)), ""))
        if name in ("indent", "wordwrap"):
            _check_lines([part for part in (*given, *named.values()) if isinstance(part, str | int)])
        return function(*given, **named)

    return call


def _check_lines(given: Sequence[str | int]) -> None:
    """See that what is put before or between the lines of a text makes nothing huge: a text, and a width or a text.

    Raises:
        BudgetError: it does.
    """
    if not given or not isinstance(given[0], str):
        return
    text, *rest = given
    longest = max([len(part) if isinstance(part, str) else part for part in rest], default=1)
    texts = [part for part in rest if isinstance(part, str)]
    lines = len(str(text)) if texts else str(text).count("\n") + 1
    fits(len(str(text)) + lines * max(longest, 4))


def check_format(text: str) -> None:
    """See that no width in a printf format makes a huge text.

    Raises:
        BudgetError: one does.
    """
    digits = 0
    for character in text:
        digits = digits + 1 if character.isdigit() else 0
        if digits > len(str(MOST_WIDTH)) - 1 or character == "*":
            raise BudgetError("formats with a width that is too large")


def join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    """Texts in one, with ``separator`` between them, or an attribute of each."""
    parts = []
    size = 0
    for value in values:
        if attribute is not None:
            value = value.get(attribute) if isinstance(value, Mapping) else None
        parts.append(text_of(value))
        size += len(parts[-1]) + len(separator)
        fits(size)
    return text_of(separator).join(parts)


def replace(value: Any, old: str, new: str, count: int = -1) -> str:
    """The text with ``new`` in place of ``old``."""
    text = text_of(value)
    found = text.count(old) if count < 0 else min(text.count(old), count)
    fits(len(text) + found * len(new))
    return text.replace(old, new, count)


def tojson(value: Any, indent: int | None = None) -> str:
    """A value as JSON, as it is: nothing is escaped for HTML."""
    return json_of(value, indent=indent)


def fromjson(text: Any) -> Any:
    """The value of a text of JSON, for columns that hold it."""
    import orjson

    return measured(orjson.loads(text)) if isinstance(text, str) else text


def chat(turns: Any) -> list[dict[str, Any]]:
    """Messages of ShareGPT turns (``from``, ``value``), of messages, or of a JSON text of either."""
    turns = fromjson(turns)
    if not isinstance(turns, list | tuple):
        raise ValueError("is no list of turns or messages")
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError("holds a turn that is no object")
    if "role" in turn or "from" not in turn:
        return {name: value for name, value in turn.items() if value is not None}
    speaker = turn["from"]
    if (role := ROLES.get(str(speaker).lower())) is None:
        raise ValueError(f"has a turn from '{speaker!s:.40}', whom no role stands for")
    return {"role": role, "content": turn.get("value")}
