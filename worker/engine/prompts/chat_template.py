"""A model's chat template: messages to text, each message with a trace in it. No MLX."""

from __future__ import annotations

import functools
from typing import Any

import orjson

from jobs.errors import LineError

SET_HERE = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "padding"),
        *("return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize"),
        *("tokenizer_kwargs", "truncation"),
    }
)
"""Arguments of what applies templates that are not for the template, and no line's to set."""
SHAPES = 512
"""Of the last kinds of conversations it is known what the template leaves out."""
SHOWN = 300
"""Characters of what a template says of messages: it may repeat them all."""
Message = dict[str, Any]


class ChatTemplate:
    """Applies the chat template of one tokenizer. May be used from several threads at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._swallowed = functools.lru_cache(SHAPES)(self._find_swallowed)
        self._knows = functools.cache(self._ask_role)

    def known(self, messages: list[Message]) -> list[Message]:
        """The messages under roles that the template knows: ``developer`` is the newer name of ``system``."""
        if not any(message["role"] == "developer" for message in messages) or self._knows("developer"):
            return messages
        return [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]

    def render(self, messages: list[Message], kwargs: dict[str, Any], *, continues: bool) -> str:
        """The text of the prompt; it ends with a new turn of the assistant, or within the last message.

        Raises:
            LineError: ``unsupported`` when there is no template, or it refuses the messages.
        """
        if not self._tokenizer.has_chat_template:
            raise LineError("unsupported", "messages", "the model has no chat template: use 'prompt'")
        if clash := SET_HERE & kwargs.keys():
            raise LineError("unsupported", f"chat_template_kwargs.{min(clash)}", "is not the line's to set")
        try:
            return self._apply(messages, kwargs, continues=continues)
        except Exception as error:  # templates are the model's own code, some of it Python
            message = f"the model's chat template refuses them: {str(error)[:SHOWN]}"
            raise LineError("unsupported", "messages", message) from error

    def left_out(self, messages: list[Message], kwargs: dict[str, Any], text: str, *, continues: bool) -> int | None:
        """Which message the template leaves out of ``text``, if any: saying something else there changes nothing.

        That is tried only of those that it leaves out of a conversation of the same roles.
        """
        roles = tuple(message["role"] for message in messages)
        options = orjson.dumps(kwargs, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        for index in self._swallowed(roles, options, continues):
            if not messages[index]["content"].strip():
                continue
            other = [*messages[:index], {**messages[index], "content": _sentinel(index)}, *messages[index + 1 :]]
            try:
                if self._apply(other, kwargs, continues=continues) == text:
                    return index
            except Exception:  # it looked at the message, and did not like the other one
                continue
        return None

    def _find_swallowed(self, roles: tuple[str, ...], options: bytes, continues: bool) -> tuple[int, ...]:
        """The places of a conversation of these roles that leave no trace in its text."""
        messages = [{"role": role, "content": _sentinel(index)} for index, role in enumerate(roles)]
        try:
            text = self._apply(messages, orjson.loads(options), continues=continues)
        except Exception:  # it wants contents of some form
            return ()
        return tuple(index for index in range(len(roles)) if _sentinel(index) not in text)

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

    def _apply(self, messages: list[Message], kwargs: dict[str, Any], *, continues: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            continue_final_message=continues,
            add_generation_prompt=not continues,
            **kwargs,
        )
        return text


def source_of(tokenizer: Any) -> str:
    """The source of a tokenizer's templates; empty where they are Python."""
    template = getattr(tokenizer, "chat_template", None)
    return "\0".join(template.values()) if isinstance(template, dict) else template or ""


def _sentinel(index: int) -> str:
    """A word that no template writes itself."""
    return f"qx{index}zj"
