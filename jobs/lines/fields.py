"""The fields of a line, or of a batch's defaults: from what was written to values under canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs.errors import MOST_PROBLEMS, LineError
from jobs.expectations.expect import check_expect, check_re_ask
from jobs.lines.foreign_names import ABSENT, asks_for_nothing, foreign_field, is_column, meant_by_nothing
from jobs.lines.guided import CONSTRAINTS, GUIDED_CHECKS, check_one_constraint
from jobs.lines.messages import CHAT_FIELDS, check_continuing, check_messages
from jobs.lines.parameters import CHECKS
from jobs.lines.scoring import SCORING_CHECKS, SCORING_FIELDS, check_prompt, check_together, checked_max_tokens
from jobs.lines.tools import TOOL_CHECKS
from jobs.lines.values import check_flag, check_name, check_object, check_text
from jobs.params import ALIASES, SHOWN_NAME, did_you_mean

_ALONE = frozenset({"prompt", "top_logprobs", "continue_final_message", "add_generation_prompt", "max_tokens"}).union(
    CONSTRAINTS, SCORING_FIELDS
)
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
    if "prompt" in fields and not openai:
        own += ", or make lines of the rows of a table: --prompt '{{ prompt }}'"
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
    for check in (check_continuing, check_one_constraint, check_together):
        try:
            check(fields)
        except LineError as error:
            problems.append(error)


_FIELD_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "prompt": check_prompt,
    "messages": check_messages,
    "metadata": partial(check_object, "metadata"),
    "chat_template_kwargs": partial(check_object, "chat_template_kwargs"),
    **GUIDED_CHECKS,
    **TOOL_CHECKS,
    "expect": check_expect,
    "re_ask": check_re_ask,
    **{name: partial(check_text, name) for name in ("system_prompt", "prefill_response")},
    **{name: partial(check_flag, name) for name in ("continue_final_message", "add_generation_prompt")},
    **{name: partial(check_name, name) for name in ("model", "adapter_path")},
    **SCORING_CHECKS,
}
_PARAMETER_CHECKS = {**CHECKS, "max_tokens": checked_max_tokens(CHECKS["max_tokens"])}

_CHECKS_BY_KEY: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    **{name: (name, check) for name, check in (*_FIELD_CHECKS.items(), *_PARAMETER_CHECKS.items())},
    **{alias: (name, _PARAMETER_CHECKS[name]) for alias, name in ALIASES.items()},
}
"""For each key that a line may give: the field it means, and its check."""


def is_field(name: str) -> bool:
    """Whether a line may have a field of this name, or alias."""
    return name in _CHECKS_BY_KEY
