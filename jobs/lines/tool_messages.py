"""Tools in messages: the calls that an assistant's message made, and the messages that answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson

from jobs.errors import MOST_PROBLEMS, LineError, raise_all
from jobs.lines.values import check_object, json_kind
from jobs.params import SHOWN_NAME, did_you_mean, shown

CALL_FIELDS = ("id", "type", "function")
FUNCTION_FIELDS = ("name", "arguments")
LEFT_OUT = frozenset({"index", "parsed_arguments"})
"""What APIs and their clients put into calls besides. Nothing of it is new."""
SHAPE = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
SHOWN_IDS = 3


def check_calls(where: str, role: str, value: Any) -> list[dict[str, Any]]:
    """The calls of a message, ``where`` being their field: each ``{"id"?, "type": "function", "function": {"name",
    "arguments"}}``, with the arguments as an object, as templates want them. None where there is no call.

    Raises:
        LineError: naming the call, the field and the remedy.
    """
    if value in (None, "", [], {}, False):
        return []
    if role != "assistant":
        raise LineError("unsupported", where, f"is of an assistant's messages, not of a message of role '{role}'")
    if not isinstance(value, list):
        raise LineError("invalid_type", where, f"must be an array of calls, not {json_kind(value)}: [{SHAPE}]")
    calls: list[dict[str, Any]] = []
    problems: list[LineError] = []
    for number, call in enumerate(value):
        try:
            calls.append(_check_call(f"{where}[{number}]", call))
        except LineError as error:
            problems.append(error)
            if len(problems) >= MOST_PROBLEMS:
                break
    raise_all(problems)
    return calls


def check_call_id(where: str, role: str, value: Any) -> str | None:
    """The id of the call that a message answers.

    Raises:
        LineError: it is no string, or the message is not a tool's.
    """
    if value in (None, "", [], {}, False):
        return None
    if role != "tool":
        raise LineError("unsupported", where, f"is of messages of role 'tool', not of role '{role}'; remove it")
    if not isinstance(value, str):
        raise LineError("invalid_type", where, f"must be a string, the id of a call, not {shown(value)}")
    return value


def check_answers(messages: Iterable[Mapping[str, Any]]) -> None:
    """See that messages of tools answer calls that were made before them, where both have ids.

    Raises:
        LineError: ``conflicting_fields``, with the ids of the calls.
    """
    problems: list[LineError] = []
    known: dict[str, None] = {}
    for number, message in enumerate(messages):
        known |= dict.fromkeys(call["id"] for call in message.get("tool_calls", ()) if "id" in call)
        answered = message.get("tool_call_id")
        if answered is None or not known or answered in known:
            continue
        ids = ", ".join(shown(one) for one in list(known)[-SHOWN_IDS:])
        text = f"{shown(answered)} is the id of no call before it; the last ones are {ids}"
        problems.append(LineError("conflicting_fields", f"messages[{number}].tool_call_id", text))
        if len(problems) >= MOST_PROBLEMS:
            break
    raise_all(problems)


def _check_call(where: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise LineError("invalid_type", where, f"must be an object, not {json_kind(call)}: {SHAPE}")
    kind = call.get("type")
    if kind not in (None, "function"):
        raise LineError("unsupported", f"{where}.type", f"must be 'function', not {shown(kind)}")
    function = call.get("function")
    if function is None and "name" in call:
        message = f"a call's name and arguments are in 'function': write {SHAPE}"
        raise LineError("missing_field", f"{where}.function", message)
    problems = list(islice(_unknown(where, call, CALL_FIELDS), MOST_PROBLEMS))
    checked: dict[str, Any] = {}
    try:
        if (call_id := call.get("id")) not in (None, ""):
            if not isinstance(call_id, str):
                raise LineError("invalid_type", f"{where}.id", f"must be a string, not {shown(call_id)}")
            checked["id"] = call_id
        checked |= {"type": "function", "function": _check_function(f"{where}.function", function)}
    except LineError as error:
        problems.append(error)
    raise_all(problems)
    return checked


def _check_function(where: str, function: Any) -> dict[str, Any]:
    if function is None:
        raise LineError("missing_field", where, f"a call needs the function that it calls: {SHAPE}")
    if not isinstance(function, dict):
        raise LineError("invalid_type", where, f"must be an object, not {json_kind(function)}: {SHAPE}")
    problems = list(islice(_unknown(where, function, FUNCTION_FIELDS), MOST_PROBLEMS))
    name, arguments = function.get("name"), {}
    if not isinstance(name, str) or not name:
        code = "missing_field" if name in (None, "") else "invalid_type"
        problems.append(LineError(code, f"{where}.name", f"must be the name of a function, not {shown(name)}"))
    try:
        arguments = _check_arguments(f"{where}.arguments", function.get("arguments"))
    except LineError as error:
        problems.append(error)
    raise_all(problems)
    return {"name": name, "arguments": arguments}


def _check_arguments(where: str, arguments: Any) -> dict[str, Any]:
    """Arguments as an object, whether written as one or as its JSON text; a call may have none."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if not isinstance(arguments, str):
        if not isinstance(arguments, dict):
            message = f"must be an object, or its JSON text, not {json_kind(arguments)}"
            raise LineError("invalid_type", where, message)
        return check_object(where, arguments)
    try:
        read = orjson.loads(arguments)
    except orjson.JSONDecodeError as error:
        message = f"is not JSON text: {error.msg} at column {error.colno}; write it as json.dumps() does, or an object"
        raise LineError("invalid_type", where, message) from None
    if not isinstance(read, dict):
        message = f"must be the JSON text of an object, not of {json_kind(read)}"
        raise LineError("invalid_type", where, message)
    return check_object(where, read)


def _unknown(where: str, fields: Mapping[str, Any], known: Sequence[str]) -> Iterator[LineError]:
    for key, value in fields.items():
        if key in known or key in LEFT_OUT or value is None:
            continue
        hint = did_you_mean(key, known) or "; remove it"
        yield LineError("unknown_field", f"{where}.{key[:SHOWN_NAME]}", f"is not a field of a call{hint}")
