"""The messages of a chat line: their roles, their contents, and what APIs put into messages that they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.errors import MOST_PROBLEMS, LineError, raise_all
from jobs.lines.tool_messages import SHAPE, check_answers, check_call_id, check_calls
from jobs.params import SHOWN_NAME, did_you_mean, shown

ROLES = ("system", "developer", "user", "assistant", "tool")
FOREIGN_ROLES: Mapping[str, str] = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "function": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
"""Other tools' names of roles, to ours."""

FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names of an assistant's earlier reasoning. The first is the one that templates read; servers return any of them."""
EMPTY_FIELDS = frozenset(
    {
        "function_call", "audio", "refusal", "annotations", "images", "prefix", "reasoning_details",
        "provider_specific_fields", "cache_control",
    }
)  # fmt: skip
"""What APIs put into messages they return. Nothing is asked for by one that is empty; others would be."""
FOREIGN_FIELDS: Mapping[str, str] = {
    "from": "write 'role'",
    "value": "write 'content'",
    "text": "write 'content'",
    "prefix": "to have the last message continued, give the line 'continue_final_message': true",
    "refusal": "put the text into 'content'",
    "function_call": f"write 'tool_calls': [{SHAPE}]",
}
"""What to do with fields that mean something."""
CHAT_FIELDS = ("system_prompt", "prefill_response", "chat_template_kwargs", "continue_final_message")
"""Fields of a line that are nothing without messages."""
TEXT_PARTS = ("text", "input_text", "output_text")
TOOL_PARTS: Mapping[str, str] = {
    "tool_use": f"a call is in 'tool_calls' of an assistant's message: [{SHAPE}]",
    "tool_result": "the answer to a call is the 'content' of a message of role 'tool', with the call's 'tool_call_id'",
}
"""Parts of Anthropic's that are fields here."""


def check_messages(value: Any) -> tuple[dict[str, Any], ...]:
    """The messages with what templates read of them: ``role``, ``content`` as one string, perhaps ``name``,
    ``reasoning_content``, ``tool_calls`` (see :func:`jobs.lines.tool_messages.check_calls`) and ``tool_call_id``.

    Raises:
        LineError: naming the message, the field and the remedy.
    """
    if not isinstance(value, list):
        raise LineError("invalid_type", "messages", f"must be an array of messages, not {shown(value)}")
    if not value:
        raise LineError("out_of_range", "messages", "must hold at least one message")
    checked: list[dict[str, Any]] = []
    problems: list[LineError] = []
    for number, item in enumerate(value):
        try:
            checked.append(_check_message(f"messages[{number}]", item))
        except LineError as error:
            problems.append(error)
            if len(problems) >= MOST_PROBLEMS:
                break
    raise_all(problems)
    check_answers(checked)
    return tuple(checked)


def _check_message(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise LineError("invalid_type", where, f"must be an object, not {shown(item)}")
    if len(item) == 2 and item.get("role") in ROLES and type(item.get("content")) is str:
        return {"role": item["role"], "content": item["content"]}  # most messages: not to be looked at for long
    _check_names(where, item)
    role = _role(f"{where}.role", item.get("role"))
    reasoning = _reasoning(where, role, item)
    calls = check_calls(f"{where}.tool_calls", role, item.get("tool_calls"))
    said = item.get("content")
    content = "" if said is None and (reasoning or calls) else _content(f"{where}.content", role, said)
    message: dict[str, Any] = {"role": role, "content": content}
    if (name := item.get("name")) not in (None, ""):
        if not isinstance(name, str):
            raise LineError("invalid_type", f"{where}.name", f"must be a string, not {shown(name)}")
        message["name"] = name
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    if (answered := check_call_id(f"{where}.tool_call_id", role, item.get("tool_call_id"))) is not None:
        message["tool_call_id"] = answered
    return message


def _check_names(where: str, item: Mapping[str, Any]) -> None:
    """Refuse all fields at once that are not of a message, or that ask for something."""
    problems: list[LineError] = []
    for key, value in item.items():
        try:
            _check_field(where, key, value)
        except LineError as error:
            problems.append(error)
            if len(problems) >= MOST_PROBLEMS:
                break
    raise_all(problems)


def _check_field(where: str, key: str, value: Any) -> None:
    """Refuse a field that is not of a message, or that asks for something."""
    if key in FIELDS or key in REASONING_FIELDS or value is None:
        return
    if (key == "id" and isinstance(value, str)) or (key == "type" and value == "message") or key == "parsed":
        return  # "parsed" is the content once more, as OpenAI's client reads it
    if key in EMPTY_FIELDS and value in ("", [], {}, False):
        return
    field, remedy = f"{where}.{key[:SHOWN_NAME]}", FOREIGN_FIELDS.get(key)
    if key in EMPTY_FIELDS:
        raise LineError("unsupported", field, f"is not supported; {remedy or 'remove it'}")
    hint = f"; {remedy}" if remedy else did_you_mean(key, (*FIELDS, *REASONING_FIELDS)) or "; remove it"
    raise LineError("unknown_field", field, f"is not a field of a message{hint}")


def _role(where: str, role: Any) -> str:
    wanted = f"must be one of {', '.join(ROLES)}"
    if role is None:
        raise LineError("missing_field", where, wanted)
    if not isinstance(role, str) or role not in ROLES:
        known = role.lower() if isinstance(role, str) else ""
        ours = FOREIGN_ROLES.get(known, known if known in ROLES else None)
        remedy = f"; write '{ours}'" if ours else ""
        if ours == "tool":
            remedy += ", with the id of the call that it answers as 'tool_call_id'"
        raise LineError("out_of_range", where, f"{wanted}, not {shown(role)}{remedy}")
    return role


def _reasoning(where: str, role: str, item: Mapping[str, Any]) -> str:
    """What the assistant thought before it answered; empty where the message has none."""
    given: dict[str, str] = {}
    for name in REASONING_FIELDS:
        value = item.get(name)
        if value is None or value == "":
            continue
        field = f"{where}.{name}"
        if not isinstance(value, str):
            raise LineError("invalid_type", field, f"must be a string, not {shown(value)}")
        if role != "assistant":
            raise LineError("unsupported", field, f"is of an assistant's messages, not of a message of role '{role}'")
        if given and value not in given.values():
            message = f"differs from '{next(iter(given))}', which means the same; give one of them"
            raise LineError("conflicting_fields", field, message)
        given[name] = value
    return next(iter(given.values()), "")


def _content(where: str, role: str, content: Any) -> str:
    if content is None:
        raise LineError("missing_field", where, "a message needs 'content'")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        remedy = "; write what the tool gave as JSON text" if role == "tool" else ""
        raise LineError("invalid_type", where, f"must be a string, not {shown(content)}{remedy}")
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            message = "only parts of type 'text' are supported"
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in TOOL_PARTS:
                message += f"; {TOOL_PARTS[kind]}"
            raise LineError("unsupported", where, message)
        parts.append(part["text"])
    return "".join(parts)


def check_continuing(fields: Mapping[str, Any]) -> None:
    """See that what a line says about its last message goes together.

    Raises:
        LineError: ``conflicting_fields`` or ``unsupported``, with what to write instead.
    """
    continues, opens = fields.get("continue_final_message", False), fields.get("add_generation_prompt")
    if opens is not None and opens == continues:
        message = "true begins a new turn, which 'continue_final_message': true does not; leave it out"
        if not opens:
            message = "false goes with 'continue_final_message': true, to have the last message continued; leave it out"
        raise LineError("conflicting_fields", "add_generation_prompt", message)
    if not continues:
        return
    if fields.get("prefill_response"):
        message = "continues the last message, and 'prefill_response' a new one; give one of them"
        raise LineError("conflicting_fields", "continue_final_message", message)
    if "messages" in fields and (role := fields["messages"][-1]["role"]) != "assistant":
        message = f"continues an assistant's message, and the last one is of role '{role}'"
        raise LineError("conflicting_fields", "continue_final_message", message)
    if "messages" in fields and "tool_calls" in fields["messages"][-1]:
        message = "continues a text, and the last message ends with calls; add the tools' answers, or leave it out"
        raise LineError("conflicting_fields", "continue_final_message", message)


def unfit_defaults(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a batch's defaults that a line with these messages has no use for."""
    messages = fields["messages"]
    unfit = []
    if any(message["role"] in ("system", "developer") for message in messages):
        unfit.append("system_prompt")
    if messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1] or fields.get("prefill_response"):
        unfit.append("continue_final_message")
    if fields.get("continue_final_message"):
        unfit.append("prefill_response")
    return unfit
