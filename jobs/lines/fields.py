"""The fields of a line, or of a batch's defaults: from what was written to values under canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs.errors import MOST_PROBLEMS, LineError
from jobs.lines.foreign_names import ABSENT, asks_for_nothing, foreign_field, is_column, meant_by_nothing
from jobs.lines.guided import CONSTRAINTS, GUIDED_CHECKS, check_one_constraint
from jobs.lines.messages import CHAT_FIELDS, check_continuing, check_messages
from jobs.lines.parameters import CHECKS
from jobs.lines.tools import TOOL_CHECKS
from jobs.lines.values import check_flag, check_name, check_object, check_text
from jobs.params import ALIASES, SHOWN_NAME, did_you_mean

_ALONE = frozenset({"prompt", "top_logprobs", "continue_final_message", "add_generation_prompt", *CONSTRAINTS})
"""Fields that do not go with each other one."""


def gather(data: Mapping[str, Any], problems: list[LineError], *, openai: bool = False) -> dict[str, Any]:
    """The fields of ``data`` that are right, under canonical names; what is wrong is added to ``problems``.

    Nulls, and what else asks for nothing, count as absent.
    """
    checked: dict[str, Any] = {}
    wrong: set[str] = set()
    for key, value in data.items():
        if value is None:
            continue
        known = _CHECKS_BY_KEY.get(key)
        if known is None:
            if not asks_for_nothing(key, value, data):
                problems.append(_unknown(key, value, data, openai=openai))
        elif known[0] in checked:
            message = f"says '{known[0]}' a second time; give one of them"
            problems.append(LineError("conflicting_fields", key, message))
        else:
            name, check = known
            try:
                checked[name] = check(value)
                continue
            except LineError as error:
                meant = meant_by_nothing(name, value, data, error)
            if isinstance(meant, LineError):
                problems.append(meant)
                wrong.add(name)
            elif meant is not ABSENT:
                checked[name] = meant
        if len(problems) >= MOST_PROBLEMS:
            break
    if not _ALONE.isdisjoint(checked):
        _check_together(checked, wrong, problems)
    checked.pop("add_generation_prompt", None)
    return checked


def lacks_prompt(fields: Mapping[str, Any]) -> bool:
    """Whether a line with these fields, whatever is in them, has nothing to be continued or answered."""
    return fields.get("prompt") is None and fields.get("messages") is None


def no_prompt() -> LineError:
    return LineError("missing_field", "prompt", "a line needs 'prompt' or 'messages'")


def _unknown(key: str, value: Any, fields: Mapping[str, Any], *, openai: bool) -> LineError:
    own = "; put your own data into 'metadata'"
    field = key[:SHOWN_NAME]
    if is_column(key, value, fields):
        return LineError("unknown_field", field, f"is not a field of a line{own}")
    if openai and key in ("custom_id", "id", "method", "url"):
        own_name = " as 'custom_id'" if key == "id" else ""
        return LineError("unknown_field", field, f"goes beside 'body'{own_name}, not into it")
    if (found := foreign_field(key, value, _CHECKS_BY_KEY)) is not None:
        code, message = found
        return LineError(code, field, message)
    known = (*_CHECKS_BY_KEY, "max_completion_tokens") if openai else (*_CHECKS_BY_KEY, "id")
    return LineError("unknown_field", field, f"is not a field of a line{did_you_mean(key, known) or own}")


def _check_together(fields: Mapping[str, Any], wrong: set[str], problems: list[LineError]) -> None:
    """Find fields that exclude each other."""
    if "prompt" in fields:
        for name in ("messages", *CHAT_FIELDS):
            if fields.get(name):
                message = f"goes with 'messages', not with 'prompt': '{name}' needs the chat template"
                if name == "messages":
                    message = "a line has either 'prompt' or 'messages', not both"
                problems.append(LineError("conflicting_fields", name, message))
    if fields.get("top_logprobs") and not fields.get("logprobs") and "logprobs" not in wrong:
        problems.append(LineError("conflicting_fields", "top_logprobs", "needs 'logprobs': true"))
    for check in (check_continuing, check_one_constraint):
        try:
            check(fields)
        except LineError as error:
            problems.append(error)


def _check_prompt(value: Any) -> str:
    if isinstance(value, list):
        raise LineError("invalid_type", "prompt", "must be a string, not an array; one line for each prompt")
    return check_text("prompt", value)


_FIELD_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "prompt": _check_prompt,
    "messages": check_messages,
    "metadata": partial(check_object, "metadata"),
    "chat_template_kwargs": partial(check_object, "chat_template_kwargs"),
    **GUIDED_CHECKS,
    **TOOL_CHECKS,
    **{name: partial(check_text, name) for name in ("system_prompt", "prefill_response")},
    **{name: partial(check_flag, name) for name in ("continue_final_message", "add_generation_prompt")},
    **{name: partial(check_name, name) for name in ("model", "adapter_path")},
}

_CHECKS_BY_KEY: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    **{name: (name, check) for name, check in (*_FIELD_CHECKS.items(), *CHECKS.items())},
    **{alias: (name, CHECKS[name]) for alias, name in ALIASES.items()},
}
"""For each key that a line may give: the field it means, and its check."""
