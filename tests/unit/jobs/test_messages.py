"""Messages as users, servers and other tools write them: what is taken, and what is refused with which remedy."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import CheckedLine, Defaults, Job, check_line

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


def opening_of(made: Job) -> str | None:
    """The text that the model goes on with."""
    return None if made.turn is None else made.turn["content"]


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
        {"reasoning_details": []},
        {"provider_specific_fields": {}},
    ],
)
def test_what_apis_put_into_messages_they_return(returned: dict[str, Any]) -> None:
    """What asks for nothing is taken, and templates do not see it."""
    assert job([USER, {**ANSWER, **returned}, USER]).messages == (USER, ANSWER, USER)


def test_all_fields_of_a_message_that_are_not_ours_are_named_at_once() -> None:
    """So that one look at the file is enough."""
    error = refused([{"from": "human", "value": "a"}])
    assert [part.field for part in (error, *error.also)] == ["messages[0].from", "messages[0].value"]


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
        ({"role": "function", "content": "a"}, "out_of_range", "role", "write 'tool', with the id of the call"),
        ({**ANSWER, "function_call": {"name": "f"}}, "unsupported", "function_call", "write 'tool_calls': ["),
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


# --- an assistant's message last ---


@pytest.mark.parametrize(
    ("fields", "opening"),
    [
        ({}, None),
        ({"continue_final_message": False}, None),
        ({"add_generation_prompt": True}, None),
        ({"continue_final_message": True}, "hello"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "hello"),
        ({"prefill_response": "Well,"}, "Well,"),
    ],
)
def test_what_the_turn_begins_with(fields: dict[str, Any], opening: str | None) -> None:
    """The answer goes on from prefill_response, from the last message if that is to be continued, or from nothing."""
    assert opening_of(job([USER, ANSWER], **fields)) == opening


def test_openai_lines_may_have_the_last_message_continued() -> None:
    """Both formats take what vLLM takes."""
    body = {"messages": [USER, ANSWER], "continue_final_message": True, "add_generation_prompt": False}
    line = check_line(orjson.dumps({"custom_id": "a", "body": body}))
    made = line.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))
    assert (opening_of(made), made.history) == ("hello", (USER,))


@pytest.mark.parametrize(
    ("messages", "fields", "field", "part"),
    [
        ([USER], {"continue_final_message": True}, "continue_final_message", "of role 'user'"),
        (
            [USER, ANSWER],
            {"continue_final_message": True, "prefill_response": "a"},
            "continue_final_message",
            "one of them",
        ),
        (
            [USER, ANSWER],
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
            "leave it out",
        ),
        ([USER], {"add_generation_prompt": False}, "add_generation_prompt", "'continue_final_message': true"),
    ],
)
def test_what_contradicts_continuing_is_refused(
    messages: list[Any], fields: dict[str, Any], field: str, part: str
) -> None:
    """What vLLM refuses together is refused, with what to write."""
    error = refused(messages, **fields)
    assert (error.code, error.field) == ("conflicting_fields", field)
    assert part in error.message


@pytest.mark.parametrize("field", ["continue_final_message", "add_generation_prompt"])
def test_continuing_is_said_by_true_or_false(field: str) -> None:
    """A string is neither."""
    assert refused([USER, ANSWER], **{field: "yes"}).code == "invalid_type"


def test_continuing_asks_for_nothing_of_a_plain_prompt_unless_true() -> None:
    """false, as frameworks write every field, is no reason to refuse a completion."""
    assert check_line(b'{"prompt":"a","continue_final_message":false,"add_generation_prompt":true}').fields["prompt"]
    with pytest.raises(LineError, match="chat template"):
        check_line(b'{"prompt":"a","continue_final_message":true}')


@pytest.mark.parametrize(
    ("messages", "fields", "defaults", "begins"),
    [
        ([USER], {}, {}, False),
        ([USER, ANSWER], {}, {}, True),
        ([USER, ANSWER], {"prefill_response": "a"}, {}, True),
        ([USER, ANSWER], {"continue_final_message": True}, {}, False),
        ([USER, ANSWER], {}, {"continue_final_message": True}, False),
        ([USER, ANSWER], {"continue_final_message": False}, {"continue_final_message": True}, True),
    ],
)
def test_a_new_turn_after_the_assistants_is_noticed(
    messages: list[Any], fields: dict[str, Any], defaults: dict[str, Any], begins: bool
) -> None:
    """A last message of the assistant's that nobody asked to be continued is something to be told of."""
    assert checked(messages, **fields).begins_after_answer(Defaults(defaults)) is begins


def test_a_plain_prompt_begins_after_nobodys_answer() -> None:
    """Only messages have an assistant."""
    assert check_line(b'{"prompt":"a"}').begins_after_answer(Defaults({})) is False


# --- kind H: what the batch says and the line says ---


def test_template_arguments_of_batch_and_line_merge_by_key() -> None:
    """A line that sets one argument keeps the batch's others; its own win."""
    batch = {"chat_template_kwargs": {"enable_thinking": False, "date": "today"}}
    made = job([USER], batch, chat_template_kwargs={"enable_thinking": True})
    assert made.chat_template_kwargs == {"enable_thinking": True, "date": "today"}
    assert job([USER], batch, chat_template_kwargs={}).chat_template_kwargs == batch["chat_template_kwargs"]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_batchs_system_prompt_is_for_lines_without_a_system_message(role: str) -> None:
    """A line that has one keeps it alone; a line's own system_prompt stands before it."""
    own = {"role": role, "content": "be brief"}
    assert job([own, USER], {"system_prompt": "be kind"}).history == (own, USER)
    assert [message["content"] for message in job([USER], {"system_prompt": "be kind"}).history] == ["be kind", "hi"]
    both = job([own, USER], {"system_prompt": "be kind"}, system_prompt="be true").history
    assert [message["content"] for message in both] == ["be true", "be brief", "hi"]


def test_of_the_batchs_defaults_a_line_takes_what_fits_its_last_message() -> None:
    """Continuing by default is for lines that end with an answer; a line's own way of continuing wins."""
    continuing = {"continue_final_message": True}
    assert opening_of(job([USER], continuing)) is None
    assert opening_of(job([USER, ANSWER], continuing)) == "hello"
    assert opening_of(job([USER, ANSWER], continuing, prefill_response="So")) == "So"
    assert opening_of(job([USER, ANSWER], {"prefill_response": "So"}, continue_final_message=True)) == "hello"
