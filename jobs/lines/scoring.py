"""Fields of lines whose texts are there already and are to be judged: ``prompt_logprobs``, ``continuation``, ``echo``,
and prompts in the forms of OpenAI's completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs.errors import LineError
from jobs.lines.guided import CONSTRAINTS
from jobs.lines.values import check_flag, check_text, json_kind
from jobs.params import PARAMETERS, shown

Prompt = str | tuple[int, ...]
"""A text as it stands, or the ids of its tokens."""

MOST_PROMPTS = 1024
"""Prompts of one line: its record holds all their texts."""
MOST_TOP = 20
LARGEST_TOKEN = 2**31 - 1


def check_prompt(value: Any) -> str | tuple[Prompt, ...]:
    """The prompt of a line, or its prompts where it gives a list: of token ids, which is one prompt, or of prompts.

    Raises:
        LineError: naming what is wrong with which of them.
    """
    if not isinstance(value, list):
        return check_text("prompt", value)
    if not value:
        raise LineError("out_of_range", "prompt", "must not be empty")
    if type(value[0]) in (int, float):
        return (_token_ids("prompt", value),)
    if len(value) > MOST_PROMPTS:
        message = f"must hold at most {MOST_PROMPTS} prompts, not {len(value)}: write more lines"
        raise LineError("out_of_range", "prompt", message)
    return tuple(_one_of_several(f"prompt[{place}]", item) for place, item in enumerate(value))


def _one_of_several(where: str, item: Any) -> Prompt:
    if isinstance(item, str):
        return check_text(where, item)
    if isinstance(item, list) and item and type(item[0]) in (int, float):
        return _token_ids(where, item)
    if isinstance(item, list) and not item:
        raise LineError("out_of_range", where, "must not be empty")
    kind = "an array that holds something else" if isinstance(item, list) else json_kind(item)
    raise LineError("invalid_type", where, f"must be a string or an array of token ids, not {kind}")


def _token_ids(where: str, ids: list[Any]) -> tuple[int, ...]:
    """Ids of tokens, some of which may be whole floats."""
    for place, token in enumerate(ids):
        if type(token) is not int and not (isinstance(token, float) and token.is_integer()):
            kind = shown(token) if isinstance(token, (bool, float)) else json_kind(token)
            raise LineError("invalid_type", f"{where}[{place}]", f"must be the id of a token, not {kind}")
        if not 0 <= token <= LARGEST_TOKEN:
            message = f"must be the id of a token, 0..{LARGEST_TOKEN}, not {shown(token)}"
            raise LineError("out_of_range", f"{where}[{place}]", message)
    return tuple(map(int, ids))


def _check_top(value: Any) -> int:
    name = "prompt_logprobs"
    if isinstance(value, bool):
        remedy = "0 for the prompt's own tokens, k for the k best besides" if value else "leave it out"
        raise LineError("invalid_type", name, f"must be an integer, not {shown(value)}: write {remedy}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise LineError("invalid_type", name, f"must be an integer, not {shown(value)}")
    if not 0 <= value <= MOST_TOP:
        remedy = ": leave it out for none" if value < 0 else ""
        raise LineError("out_of_range", name, f"must be int 0..{MOST_TOP}, not {shown(value)}{remedy}")
    return value


def checked_max_tokens(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The check of ``max_tokens``, which may also be 0; :func:`check_together` says whether it makes sense there."""
    return lambda value: 0 if type(value) in (int, float) and value == 0 else check(value)


SCORING_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "prompt_logprobs": _check_top,
    "continuation": partial(check_text, "continuation"),
    "echo": partial(check_flag, "echo"),
}
"""Of each field of scoring the function that takes a value and gives it normalised."""

SCORING_FIELDS = frozenset(SCORING_CHECKS)
_OF_TEXTS = ("n", "stop", "min_tokens", "thinking_budget", *CONSTRAINTS)
"""What asks for something about a text that is generated."""


def unfit_beside_scoring(given: Mapping[str, Any]) -> list[str]:
    """A batch's defaults that a line with these fields does not take."""
    if "continuation" in given:
        return ["echo", "max_tokens", "tool_choice", *_OF_TEXTS]
    return []


def check_together(fields: Mapping[str, Any]) -> None:
    """See whether fields of scoring make sense beside the others.

    Raises:
        LineError: they do not.
    """
    if fields.get("echo") and "messages" in fields:
        message = "goes with 'prompt', not with 'messages': 'prompt_logprobs' scores what the template makes of them"
        raise LineError("conflicting_fields", "echo", message)
    if "continuation" in fields:
        _check_continuation(fields)
    elif fields.get("max_tokens") == 0 and "prompt_logprobs" not in fields and not fields.get("echo"):
        row = PARAMETERS["max_tokens"]
        remedy = "0 goes with 'prompt_logprobs', 'echo' or 'continuation', which judge texts that are there"
        raise LineError("out_of_range", "max_tokens", f"must be {row.range_text}, not 0: {row.zero}; {remedy}")


def _check_continuation(fields: Mapping[str, Any]) -> None:
    if fields.get("max_tokens"):
        message = "nothing is generated where a 'continuation' is scored: remove it"
        raise LineError("conflicting_fields", "max_tokens", message)
    if fields.get("echo"):
        raise LineError("conflicting_fields", "echo", "a 'continuation' has its own scores: remove it")
    prompts = fields.get("prompt", "")
    if not isinstance(prompts, str) and (len(prompts) > 1 or not isinstance(prompts[0], str)):
        message = "is text that follows one text: give both as one list of ids with 'prompt_logprobs', or one line each"
        raise LineError("conflicting_fields", "continuation", message)
    if fields.get("tool_choice", "auto") not in ("auto", "none"):
        message = "forces a call, and a 'continuation' is only scored: write 'auto', and the call into the continuation"
        raise LineError("conflicting_fields", "tool_choice", message)
    for name in _OF_TEXTS:
        off = PARAMETERS[name].default if name in PARAMETERS else {"type": "text"}
        if fields.get(name) not in (None, (), off):
            message = f"says how to generate, and a 'continuation' is only scored: remove '{name}'"
            raise LineError("conflicting_fields", name, message)
