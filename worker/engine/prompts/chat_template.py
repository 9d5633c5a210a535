"""A model's chat template: messages to text, each message with a trace in it. No MLX."""

from __future__ import annotations

import functools
from typing import Any

import orjson

from jobs.errors import LineError
from worker.engine.prompts.call_forms import CallForm, form_for

SET_HERE = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "padding"),
        *("return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize"),
        *("tokenizer_kwargs", "tools", "truncation"),
    }
)
"""Arguments of what applies templates that are not for the template, and no line's to set."""
SHAPES = 512
"""Of the last kinds of conversations it is known what the template leaves out."""
SHOWN = 300
"""Characters of what a template says of messages: it may repeat them all."""
Message = dict[str, Any]
Tools = tuple[dict[str, Any], ...]
Place = tuple[int, int | None]
"""A message, and which of its calls."""
Shape = tuple[str, bool, int]
"""The role of a message, whether it says anything, and how many calls it has."""


class ChatTemplate:
    """Applies the chat template of one tokenizer. May be used from several threads at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._swallowed = functools.lru_cache(SHAPES)(self._find_swallowed)
        self._knows = functools.cache(self._ask_role)
        self._form = functools.cache(self._find_form)
        self._thinking_name = "thinking" if _reads_thinking(source_of(tokenizer)) else None

    def known(self, messages: list[Message]) -> list[Message]:
        """The messages as the template knows them: ``developer`` is the newer name of ``system``, and calls of tools
        are in the form that it wants.

        Raises:
            LineError: ``unsupported`` when it does not know calls of tools.
        """
        if any(message["role"] == "developer" for message in messages) and not self._knows("developer"):
            messages = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
        if self._thinking_name is not None:
            messages = [self._thinking(one) if "reasoning_content" in one else one for one in messages]
        if not any("tool_calls" in message for message in messages):
            return messages
        form = self._form()
        if form is None:
            message = "holds calls of tools, and the model's chat template does not show them; write them as text"
            raise LineError("unsupported", "messages", message)
        return form.apply(messages)

    def _thinking(self, message: Message) -> Message:
        return {**message, "thinking": message["reasoning_content"]}

    def render(self, messages: list[Message], kwargs: dict[str, Any], *, continues: bool, tools: Tools = ()) -> str:
        """The text of the prompt; it ends with a new turn of the assistant, or within the last message.

        Raises:
            LineError: ``unsupported`` when there is no template, or it refuses the messages.
        """
        if not self._tokenizer.has_chat_template:
            raise LineError("unsupported", "messages", "the model has no chat template: use 'prompt'")
        if clash := SET_HERE & kwargs.keys():
            remedy = "; give the line 'tools'" if min(clash) == "tools" else ""
            raise LineError("unsupported", f"chat_template_kwargs.{min(clash)}", f"is not the line's to set{remedy}")
        try:
            return self._apply(messages, kwargs, continues=continues, tools=tools)
        except Exception as error:  # templates are the model's own code, some of it Python
            message = f"the model's chat template refuses them: {str(error)[:SHOWN]}"
            raise LineError("unsupported", "messages", message) from error

    def check_tools(
        self, messages: list[Message], kwargs: dict[str, Any], text: str, *, continues: bool, tools: Tools
    ) -> None:
        """See that the template shows the model the tools of a prompt, which is ``text``.

        Raises:
            LineError: ``unsupported`` when it does not, naming the tool that it leaves out.
        """
        try:
            known = self._apply(messages, kwargs, continues=continues) != text
        except Exception:  # it takes such messages with tools only
            known = True
        if not known:
            message = "the model's chat template knows no tools: it would never see them; describe them in a message"
            raise LineError("unsupported", "tools", message)
        for place, tool in enumerate(tools):
            if tool["function"]["name"] not in text:
                message = "would be lost: the model's chat template leaves it out"
                raise LineError("unsupported", f"tools[{place}]", message)

    def left_out(
        self, messages: list[Message], kwargs: dict[str, Any], text: str, *, continues: bool, tools: Tools = ()
    ) -> Place | None:
        """Which message, or which of a message's calls, the template leaves out of ``text``, if any: saying something
        else there changes nothing.

        That is tried only of those that it leaves out of a conversation of the same roles.
        """
        shape = tuple(map(_shape, messages))
        options = orjson.dumps(kwargs, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        for index, call in self._swallowed(shape, options, continues, bool(tools)):
            other = [*messages[:index], _changed(messages[index], index, call), *messages[index + 1 :]]
            try:
                if self._apply(other, kwargs, continues=continues, tools=tools) == text:
                    return index, call
            except Exception:  # it looked at the message, and did not like the other one
                continue
        return None

    def _find_swallowed(
        self, shapes: tuple[Shape, ...], options: bytes, continues: bool, tools: bool
    ) -> tuple[Place, ...]:
        """The places of a conversation of messages of these shapes that leave no trace in its text."""
        places: list[Place] = [(index, None) for index, (_, said, _) in enumerate(shapes) if said]
        places += [(index, call) for index, (_, _, calls) in enumerate(shapes) for call in range(calls)]
        messages: list[Message] = [
            {"role": role, "content": _sentinel(index) if said else ""}
            | ({"tool_calls": [_call(_name(index, call)) for call in range(calls)]} if calls else {})
            for index, (role, said, calls) in enumerate(shapes)
        ]
        try:
            known = self.known(messages)
            text = self._apply(known, orjson.loads(options), continues=continues, tools=(_TOOL,) if tools else ())
        except Exception:  # it wants contents of some form
            return ()
        traces = {place: _sentinel(place[0]) if place[1] is None else _name(*place) for place in places}
        return tuple(place for place in places if traces[place] not in text)

    def _find_form(self) -> CallForm | None:
        return form_for(lambda messages, tools: self._apply(messages, {}, continues=False, tools=tuple(tools)))

    def _ask_role(self, role: str) -> bool:
        """Whether a role means something to the template: it is treated otherwise than one that nobody knows."""
        texts = []
        for name in (role, "nobody"):
            messages = [{"role": name, "content": _sentinel(0)}, {"role": "user", "content": _sentinel(1)}]
            try:
                texts.append(self._apply(messages, {}, continues=False))
            except Exception:
                texts.append("")
        known, unknown = texts
        return _sentinel(0) in known and known.replace(role, "nobody") != unknown

    def _apply(self, messages: list[Message], kwargs: dict[str, Any], *, continues: bool, tools: Tools = ()) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            continue_final_message=continues,
            add_generation_prompt=not continues,
            **({"tools": [*tools]} if tools else {}),
            **kwargs,
        )
        return text


def source_of(tokenizer: Any) -> str:
    """The source of a tokenizer's templates; empty where they are Python."""
    template = getattr(tokenizer, "chat_template", None)
    return "\0".join(template.values()) if isinstance(template, dict) else template or ""


def _reads_thinking(source: str) -> bool:
    """Whether a template knows an assistant's reasoning by its other name."""
    return "reasoning_content" not in source and (".thinking" in source or "['thinking']" in source)


def _sentinel(index: int) -> str:
    """A word that no template writes itself."""
    return f"qx{index}zj"


def _name(index: int, call: int | None) -> str:
    """The name of a call that nobody makes."""
    return f"qx{index}c{call}zj"


def _call(name: str) -> dict[str, Any]:
    return {"id": "call_qidzj", "type": "function", "function": {"name": name, "arguments": {}}}


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "qtoolzj",
        "description": "a",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}},
    },
}
"""A tool for conversations that are tried."""


def _shape(message: Message) -> Shape:
    return message["role"], bool((message["content"] or "").strip()), len(message.get("tool_calls", ()))


def _changed(message: Message, index: int, call: int | None) -> Message:
    """The message, saying something else, or calling something else in one of its calls."""
    if call is None:
        return {**message, "content": _sentinel(index)}
    calls = [*message["tool_calls"]]
    calls[call] = {**calls[call], "function": {**calls[call]["function"], "name": _name(index, call)}}
    return {**message, "tool_calls": calls}
