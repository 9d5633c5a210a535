"""Messages as users, servers and other tools write them: what is taken, and what is refused with which remedy."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.line import CheckedLine, Defaults, Job, check_line

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


def checked(messages: list[Any], **fields: Any) -> CheckedLine:
    return check_line(orjson.dumps({"messages": messages, **fields}))


def refused(messages: list[Any], **fields: Any) -> LineError:
    """The error with which a line of these messages is refused."""
    with pytest.raises(LineError) as caught:
        checked(messages, **fields)
    return caught.value


def job(messages: list[Any], defaults: dict[str, Any] | None = None, **fields: Any) -> Job:
    batch = Defaults({"model": "m", **(defaults or {})})
    return checked(messages, **fields).job(index=0, line=1, batch_id="b", defaults=batch)


# --- kind K: what servers and our own output put into messages ---


def test_own_output_is_input() -> None:
    """A line of --format chat is a line of prompts: the answer and what was thought before it are messages."""
    made = job([USER, {**ANSWER, "reasoning_content": "They greet me."}])
    assert made.messages == (USER, {**ANSWER, "reasoning_content": "They greet me."})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_earlier_reasoning_goes_by_one_name(name: str) -> None:
    """Servers call an answer's reasoning differently; templates read it under one name."""
    made = job([USER, {**ANSWER, name: "hm", "reasoning_content": "hm"}, USER])
    assert made.messages is not None
    assert made.messages[1] == {**ANSWER, "reasoning_content": "hm"}


@pytest.mark.parametrize(
    "returned",
    [
        {"id": "msg_1"},
        {"refusal": None},
        {"annotations": []},
        {"audio": None},
        {"function_call": None},
        {"tool_calls": None},
        {"tool_calls": []},
        {"reasoning_content": None},
        {"reasoning": ""},
        {"name": ""},
        {"prefix": False},
        {"type": "message"},
    ],
)
def test_what_apis_put_into_messages_they_return(returned: dict[str, Any]) -> None:
    """What asks for nothing is taken, and templates do not see it."""
    assert job([USER, {**ANSWER, **returned}, USER]).messages == (USER, ANSWER, USER)


def test_parts_of_text_by_any_apis_name_are_text() -> None:
    """The parts of a content are joined, those of OpenAI's other API too."""
    parts = [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "output_text", "text": "c"}]
    assert job([{"role": "user", "content": parts}]).messages == ({"role": "user", "content": "abc"},)


@pytest.mark.parametrize(
    ("message", "code", "field", "remedy"),
    [
        ({"role": "human", "content": "a"}, "out_of_range", "role", "write 'user'"),
        ({"role": "gpt", "content": "a"}, "out_of_range", "role", "write 'assistant'"),
        ({"role": "model", "content": "a"}, "out_of_range", "role", "write 'assistant'"),
        ({"role": "bot", "content": "a"}, "out_of_range", "role", "write 'assistant'"),
        ({"role": "User", "content": "a"}, "out_of_range", "role", "write 'user'"),
        ({"from": "human", "value": "a"}, "unknown_field", "from", "write 'role'"),
        ({"role": "user", "text": "a"}, "unknown_field", "text", "write 'content'"),
        ({"role": "user", "contnet": "a"}, "unknown_field", "contnet", "did you mean 'content'?"),
        ({"role": "user", "content": "a", "zzz": "b"}, "unknown_field", "zzz", "remove it"),
        ({**ANSWER, "tool_calls": [{"id": "x"}]}, "unsupported", "tool_calls", "remove it"),
        ({"role": "tool", "content": "a", "tool_call_id": "x"}, "unsupported", "tool_call_id", "remove it"),
        ({"role": "assistant", "refusal": "No."}, "unsupported", "refusal", "put the text into 'content'"),
        ({**ANSWER, "prefix": True}, "unsupported", "prefix", "'continue_final_message': true"),
        ({**USER, "reasoning_content": "hm"}, "unsupported", "reasoning_content", "an assistant's messages"),
        ({**ANSWER, "reasoning": 5}, "invalid_type", "reasoning", "must be a string"),
        ({**ANSWER, "reasoning": "a", "thinking": "b"}, "conflicting_fields", "thinking", "differs from 'reasoning'"),
        ({"role": "assistant", "content": None}, "missing_field", "content", "needs 'content'"),
        ({"role": "user", "content": [{"type": ["text"], "text": "a"}]}, "unsupported", "content", "type 'text'"),
    ],
)
def test_what_would_change_the_prompt_is_refused_with_the_remedy(
    message: dict[str, Any], code: str, field: str, remedy: str
) -> None:
    """Other tools' names and fields are not guessed at: the error says what to write instead."""
    error = refused([message])
    assert (error.code, error.field) == (code, f"messages[0].{field}")
    assert remedy in error.message


def test_an_answer_cut_within_its_thought_is_a_message() -> None:
    """Servers return null as the content of an answer that is all reasoning."""
    made = job([USER, {"role": "assistant", "content": None, "reasoning": "hm"}, USER])
    assert made.messages is not None
    assert made.messages[1] == {"role": "assistant", "content": "", "reasoning_content": "hm"}
