"""Tools in messages: calls that an assistant made, answers to them, and what is refused with which remedy."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import check_line

USER = {"role": "user", "content": "How warm is it in Bonn?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 21}'}


def messages_of(*messages: Any, **fields: Any) -> tuple[dict[str, Any], ...]:
    """The messages as templates get them."""
    checked: tuple[dict[str, Any], ...] = check_line(orjson.dumps({"messages": messages, **fields})).fields["messages"]
    return checked


def refused(*messages: Any, **fields: Any) -> LineError:
    with pytest.raises(LineError) as caught:
        messages_of(*messages, **fields)
    return caught.value


def calling(arguments: Any) -> dict[str, Any]:
    """An assistant's message with one call of these arguments."""
    return {"role": "assistant", "content": "", "tool_calls": [function(arguments=arguments)]}


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", **fields}}


def test_a_conversation_with_tools_reaches_the_template() -> None:
    """Calls, answers with the id and the name of what they answer, and the answer to it all."""
    named = {**ANSWER, "name": "weather"}
    assert messages_of(USER, CALLING, named) == (
        USER,
        CALLING,
        {"role": "tool", "content": '{"celsius": 21}', "name": "weather", "tool_call_id": "call_1"},
    )


@pytest.mark.parametrize("arguments", ['{"city": "Bonn"}', ' {"city":"Bonn"}\n', {"city": "Bonn"}])
def test_arguments_are_text_or_an_object(arguments: Any) -> None:
    """APIs return the text, data sets have the object: templates get the object."""
    (_, message) = messages_of(USER, calling(arguments))
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}


@pytest.mark.parametrize("arguments", [None, "", " ", {}, "{}"])
def test_a_call_without_arguments_has_none(arguments: Any) -> None:
    """However an API writes it."""
    (_, message) = messages_of(USER, calling(arguments))
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
def test_a_message_of_calls_alone_has_no_content(content: dict[str, Any]) -> None:
    """OpenAI's is null; templates read an empty text."""
    (_, message, _) = messages_of(USER, {"role": "assistant", **content, "tool_calls": [CALL]}, ANSWER)
    assert message == CALLING


def test_a_returned_message_is_a_message() -> None:
    """As OpenAI, its client and vLLM return it, and Ollama's calls with their place."""
    returned = {
        "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "reasoning_content": "They want the weather.", "parsed": None,
        "tool_calls": [
            {
                "id": "call_1", "type": "function", "index": 0,
                "function": {
                    "name": "weather", "arguments": '{"city":"Bonn"}', "parsed_arguments": {"city": "Bonn"}, "index": 0,
                },
            }
        ],
    }  # fmt: skip
    (_, message, _) = messages_of(USER, returned, ANSWER)
    assert message == {**CALLING, "reasoning_content": "They want the weather."}


@pytest.mark.parametrize(
    ("call", "code", "field", "remedy"),
    [
        (5, "invalid_type", "", "must be an object"),
        ({"id": "x"}, "missing_field", ".function", "a call needs the function"),
        ({"name": "weather", "arguments": {}}, "missing_field", ".function", "are in 'function': write {"),
        ({**CALL, "type": "custom"}, "unsupported", ".type", "must be 'function'"),
        ({**CALL, "id": 5}, "invalid_type", ".id", "must be a string"),
        ({**CALL, "args": {}}, "unknown_field", ".args", "remove it"),
        ({"function": "weather"}, "invalid_type", ".function", "must be an object"),
        ({"function": {"arguments": "{}"}}, "missing_field", ".function.name", "the name of a function"),
        ({"function": {"name": 5}}, "invalid_type", ".function.name", "the name of a function"),
        (function(argumentes={}), "unknown_field", ".function.argumentes", "did you mean 'arguments'?"),
        (function(arguments="{'city': 'Bonn'}"), "invalid_type", ".function.arguments", "json.dumps()"),
        (function(arguments='{"city":'), "invalid_type", ".function.arguments", "is not JSON text"),
        (function(arguments="[1]"), "invalid_type", ".function.arguments", "of an object, not of an array"),
        (function(arguments=[1]), "invalid_type", ".function.arguments", "an object, or its JSON text"),
        (function(arguments="[" * 9000), "invalid_type", ".function.arguments", "is not JSON text"),
        (function(arguments='{"a":' * 99 + "1" + "}" * 99), "out_of_range", ".function.arguments", "nested deeper"),
    ],
)
def test_a_call_that_is_none_is_refused_with_the_remedy(call: Any, code: str, field: str, remedy: str) -> None:
    """The error names the message, the call and the field, and says what to write."""
    error = refused(USER, {"role": "assistant", "tool_calls": [CALL, call]})
    assert (error.code, error.field) == (code, f"messages[1].tool_calls[1]{field}")
    assert remedy in error.message


def test_all_that_is_wrong_with_calls_is_said_at_once() -> None:
    """So that one look at the file is enough; of a thousand bad calls some are named."""
    calls = [{"function": {"arguments": "x"}}, {"function": {"name": "f", "args": 1}}]
    error = refused(USER, {"role": "assistant", "tool_calls": calls})
    assert [part.field for part in (error, *error.also)] == [
        "messages[1].tool_calls[0].function.name",
        "messages[1].tool_calls[0].function.arguments",
        "messages[1].tool_calls[1].function.args",
    ]
    many = refused(USER, {"role": "assistant", "tool_calls": [{}] * 1000})
    assert 1 < len(many.also) < 100


@pytest.mark.parametrize(
    ("messages", "code", "field", "remedy"),
    [
        ([{**USER, "tool_calls": [CALL]}], "unsupported", "messages[0].tool_calls", "an assistant's messages"),
        ([{**USER, "tool_call_id": "x"}], "unsupported", "messages[0].tool_call_id", "of role 'tool'"),
        ([USER, {**ANSWER, "tool_call_id": 5}], "invalid_type", "messages[1].tool_call_id", "the id of a call"),
        ([USER, {"role": "assistant", "tool_calls": {}}], "missing_field", "messages[1].content", "needs 'content'"),
        ([USER, {"role": "assistant", "tool_calls": CALL}], "invalid_type", "messages[1].tool_calls", "an array"),
        ([USER, CALLING, {**ANSWER, "content": {"a": 1}}], "invalid_type", "messages[2].content", "as JSON text"),
        ([USER, CALLING, {**ANSWER, "content": None}], "missing_field", "messages[2].content", "needs 'content'"),
        (
            [USER, CALLING, {**ANSWER, "tool_call_id": "call_2"}],
            "conflicting_fields", "messages[2].tool_call_id", "the last ones are 'call_1'",
        ),
        (
            [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}],
            "unsupported", "messages[0].content", "in 'tool_calls' of an assistant's message",
        ),
        (
            [{"role": "user", "content": [{"type": "tool_result", "content": "a"}]}],
            "unsupported", "messages[0].content", "a message of role 'tool'",
        ),
    ],
)  # fmt: skip
def test_tools_in_the_wrong_place_are_refused(messages: list[Any], code: str, field: str, remedy: str) -> None:
    """What is another API's, or answers nothing, is refused with what to write."""
    error = refused(*messages)
    assert (error.code, error.field) == (code, field)
    assert remedy in error.message


def test_answers_need_no_ids() -> None:
    """Data sets often have none, and conversations may begin after the call."""
    bare = {"role": "tool", "content": "21"}
    without_id = {key: value for key, value in CALL.items() if key != "id"}
    assert messages_of(USER, CALLING, bare)[2] == bare
    assert messages_of(USER, {**CALLING, "tool_calls": [without_id]}, ANSWER)[2] == ANSWER
    assert messages_of(ANSWER, USER)[0] == ANSWER


def test_a_message_of_calls_is_not_continued() -> None:
    """The line's own wish is refused, and the batch's is for other lines."""
    error = refused(USER, CALLING, continue_final_message=True)
    assert (error.code, error.field) == ("conflicting_fields", "continue_final_message")
