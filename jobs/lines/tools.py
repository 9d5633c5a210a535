"""Tools that a line gives to the model, and what it says about calling them; shapes and names are OpenAI's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs.errors import LineError
from jobs.lines.guided import CONSTRAINTS, FREE, check_function_name
from jobs.lines.values import check_flag, check_object, json_kind
from jobs.params import SHOWN_NAME, did_you_mean, shown

MOST_TOOLS = 128
CHOICES = ("none", "auto", "required")
TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
NEEDS_TOOLS = "needs 'tools': there are none to call"


def check_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools, each as ``{"type": "function", "function": {...}}``.

    Raises:
        LineError: naming the tool, the field and the remedy.
    """
    if not isinstance(value, list | tuple):
        raise LineError("invalid_type", "tools", f"must be an array of tools, not {json_kind(value)}")
    if len(value) > MOST_TOOLS:
        raise LineError("out_of_range", "tools", f"must hold at most {MOST_TOOLS} tools, not {len(value)}")
    tools = tuple(_check_tool(f"tools[{number}]", tool) for number, tool in enumerate(value))
    seen: dict[str, int] = {}
    for number, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in seen:
            message = f"{shown(name)} is the name of tools[{seen[name]}] already; names are unique"
            raise LineError("conflicting_fields", f"tools[{number}].function.name", message)
        seen[name] = number
    return tools


def _check_tool(where: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise LineError("invalid_type", where, f"must be an object, not {json_kind(tool)}")
    if "input_schema" in tool or ("name" in tool and "function" not in tool):
        message = 'is not OpenAI\'s: write {"type": "function", "function": {"name", "description", "parameters"}}'
        raise LineError("missing_field", f"{where}.function", message)
    kind = tool.get("type")
    if kind is None:
        raise LineError("missing_field", f"{where}.type", "must be 'function'")
    if kind != "function":
        raise LineError(
            "unsupported", f"{where}.type", f"must be 'function', not {shown(kind)}: only functions are called"
        )
    _known(where, tool, ("type", "function"))
    function = tool.get("function")
    if not isinstance(function, dict):
        code = "missing_field" if function is None else "invalid_type"
        raise LineError(code, f"{where}.function", "must be an object with 'name' and 'parameters'")
    return {"type": "function", "function": _check_function(f"{where}.function", function)}


def _check_function(where: str, function: Mapping[str, Any]) -> dict[str, Any]:
    _known(where, function, FUNCTION_FIELDS)
    given = {key: value for key, value in function.items() if value is not None}
    if "name" not in given:
        raise LineError("missing_field", f"{where}.name", "a function needs a name")
    check_function_name(f"{where}.name", given["name"])
    description = given.get("description")
    if description is not None and not isinstance(description, str):
        raise LineError("invalid_type", f"{where}.description", f"must be a string, not {json_kind(description)}")
    check_flag(f"{where}.strict", given.get("strict", False))
    parameters = check_object(f"{where}.parameters", given.get("parameters", {}))
    if parameters.get("type", "object") != "object":
        message = (
            f"must be 'object', not {shown(parameters['type'])}: arguments are an object, whose 'properties' they are"
        )
        raise LineError("invalid_schema", f"{where}.parameters.type", message)
    return given


def _known(where: str, item: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key, value in item.items():
        if key not in known and value is not None:
            hint = did_you_mean(key, known) or f"; known are {', '.join(known)}"
            raise LineError("unknown_field", f"{where}.{key[:SHOWN_NAME]}", f"is not known here{hint}")


def check_tool_choice(value: Any) -> str | dict[str, Any]:
    """``none``, ``auto``, ``required``, or the one function as ``{"type": "function", "function": {"name": ...}}``."""
    wanted = 'must be \'none\', \'auto\', \'required\' or {"type": "function", "function": {"name": ...}}'
    if isinstance(value, str):
        if value not in CHOICES:
            remedy = "; write 'required'" if value == "any" else ""
            raise LineError("out_of_range", "tool_choice", f"{wanted}, not {shown(value)}{remedy}")
        return value
    if not isinstance(value, dict):
        raise LineError("invalid_type", "tool_choice", f"{wanted}, not {json_kind(value)}")
    if value.get("type") != "function":
        raise LineError("unsupported", "tool_choice.type", f"must be 'function', not {shown(value.get('type'))}")
    _known("tool_choice", value, ("type", "function"))
    function = value.get("function")
    if not isinstance(function, dict) or "name" not in function:
        raise LineError("missing_field", "tool_choice.function.name", "names the function that is to be called")
    name = check_function_name("tool_choice.function.name", function["name"])
    return {"type": "function", "function": {"name": name}}


def check_calls_together(fields: Mapping[str, Any]) -> None:
    """See that what a line says about tools goes together, and with its constraint.

    Raises:
        LineError: ``conflicting_fields`` or ``missing_field``, with what to write instead.
    """
    tools, choice = fields.get("tools", ()), fields.get("tool_choice", "auto")
    if tools and fields.get("prompt") is not None:
        message = "goes with 'messages', not with 'prompt': 'tools' needs the chat template"
        raise LineError("conflicting_fields", "tools", message)
    if not tools:
        if choice not in ("none", "auto"):
            raise LineError("missing_field", "tools", f"'tool_choice' {NEEDS_TOOLS}")
        return
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        name = choice["function"]["name"]
        hint = did_you_mean(name, names) or f"; they are {', '.join(names)[:200]}"
        raise LineError("conflicting_fields", "tool_choice.function.name", f"{shown(name)} is none of 'tools'{hint}")
    constraint = next((name for name in CONSTRAINTS if name in fields and fields[name] != FREE), None)
    if constraint is not None and choice != "none":
        message = "leaves no room for calls of 'tools'; give 'tool_choice': 'none', or one of both"
        raise LineError("conflicting_fields", constraint, message)


def unfit_tools(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a batch's defaults that a line with these fields has no use for: a prompt is no chat, and a choice
    was made among the batch's own tools."""
    if "messages" not in fields or fields.get("tools") == ():
        return TOOL_FIELDS
    return ("tools", "tool_choice") if "tools" in fields else ()


TOOL_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "tools": check_tools,
    "tool_choice": check_tool_choice,
    "parallel_tool_calls": partial(check_flag, "parallel_tool_calls"),
}
"""The fields of this module, with what checks each and gives its value."""
