"""Calls of tools in messages, in the form that a chat template wants them in. No MLX.

Templates differ in what they do with a call: some want its arguments as an object and some as text, and some take no
ids but those of nine letters and digits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Render = Callable[[list[Message], list[dict[str, Any]]], str]
"""The text of a prompt, of messages and tools. It may raise anything."""

ID_LENGTH = 9
KEY, VALUE, NAME = "qkeyzj", "qvalzj", "qnamezj"
"""Words that no template writes itself."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How messages with calls are written for one template: ``text``: the arguments are their JSON text;
    ``short``: ids are nine letters and digits."""

    text: bool = False
    short: bool = False

    def apply(self, messages: list[Message]) -> list[Message]:
        """The messages in this form. Those without calls and answers to calls are left as they are."""
        if self == CallForm() or not any("tool_calls" in one or one["role"] == "tool" for one in messages):
            return messages
        return list(self._formed(messages))

    def _formed(self, messages: list[Message]) -> Iterator[Message]:
        waiting: list[str] = []
        for place, message in enumerate(messages):
            formed = dict(message)
            if "tool_calls" in message:
                calls = [self._call(call, f"{place}:{number}") for number, call in enumerate(message["tool_calls"])]
                waiting = [call["id"] for call in calls if "id" in call]
                formed["tool_calls"] = calls
            elif message["role"] == "tool" and self.short:
                known = message.get("tool_call_id")
                formed["tool_call_id"] = _short(known) if known else (waiting.pop(0) if waiting else _short("none"))
            yield formed

    def _call(self, call: dict[str, Any], place: str) -> dict[str, Any]:
        function, formed = call["function"], dict(call)
        if self.text:
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            formed["function"] = {**function, "arguments": arguments}
        if self.short:
            formed["id"] = _short(call.get("id") or place)
        return formed


def form_for(render: Render) -> CallForm | None:
    """The form of calls that a template writes down whole, the plainest of those; None where it takes none."""
    for text, short in sorted(itertools.product((False, True), repeat=2), key=sum):
        form = CallForm(text, short)
        if _kept(render, form):
            return form
    return None


def _kept(render: Render, form: CallForm) -> bool:
    call = {"id": "call_qidzj", "type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}}
    messages: list[Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "b", "name": NAME, "tool_call_id": "call_qidzj"},
    ]
    parameters = {"type": "object", "properties": {KEY: {"type": "string", "description": "a"}}}
    tool = {"type": "function", "function": {"name": "other", "description": "a", "parameters": parameters}}
    try:
        text = render(form.apply(messages), [tool])
    except Exception:  # of templates, which are the model's own code
        return False
    # Neither text within text, nor an object as Python writes it.
    mangled = f'\\"{KEY}' in text or f"{{'{KEY}'" in text
    return NAME in text and VALUE in text and not mangled


def _short(known: str) -> str:
    """An id of nine letters and digits; one that is such already stays as it is."""
    if len(known) == ID_LENGTH and known.isascii() and known.isalnum():
        return known
    return hashlib.blake2b(known.encode(), digest_size=8).hexdigest()[:ID_LENGTH]
