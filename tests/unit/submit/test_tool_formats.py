"""Tool calls, constraints and token ids in the formats of results, from records as workers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import LineError, RefusedError
from jobs.lines.line import Defaults, Job, check_line
from jobs.record import Choice
from jobs.store.store import Store
from submit.results.destination import Destination
from submit.results.follow import write_results
from submit.results.formats import renderer
from submit.results.read import ordered_records
from submit.results.summary import Tally
from tests.pool import make_batch, work

USER = {"role": "user", "content": "How warm is it in Bonn?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}}


def call(number: int = 1, arguments: str = '{"city": "Bonn"}') -> dict[str, Any]:
    """A call as records have it."""
    return {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def written(store: Store, batch_id: str, fmt: str, tally: Tally | None = None) -> list[dict[str, Any]]:
    """All lines of a batch's results in a format."""
    render = renderer(Destination(fmt=fmt), store, store.batch(batch_id))
    data = b""
    for record in ordered_records(store.connection, batch_id):
        data += render(record)
        if tally is not None:
            tally.add(record)
    return [orjson.loads(line) for line in data.splitlines()]


def answered(store: Store, line: dict[str, Any], *choices: Choice) -> str:
    """A batch of one line, which was answered so."""
    batch_id = make_batch(store, [line])
    work(store, batch_id, answer=lambda job: choices)
    return batch_id


def test_calls_lie_where_openai_has_them(store: Store) -> None:
    """In the message, with the reason tool_calls, and null as the content of a message of calls alone."""
    line = {"messages": [USER], "tools": [TOOL], "n": 3}
    batch_id = answered(
        store,
        line,
        Choice(0, "\n", "eos", tool_calls=[call(1), call(2)], reasoning="hm"),
        Choice(1, "I look.", "eos", tool_calls=[call(3)]),
        Choice(2, "Warm.", "eos", tool_calls=[]),
    )
    (envelope,) = written(store, batch_id, "openai")
    choices = envelope["response"]["body"]["choices"]
    assert [choice["message"] for choice in choices] == [
        {
            "role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm",
            "tool_calls": [call(1), call(2)],
        },
        {"role": "assistant", "content": "I look.", "refusal": None, "tool_calls": [call(3)]},
        {"role": "assistant", "content": "Warm.", "refusal": None},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "tool_calls", "stop"]


@pytest.mark.parametrize(("stop", "reason"), [("eos", "tool_calls"), ("max_tokens", "length"), ("cancelled", None)])
def test_a_text_that_was_cut_is_not_finished_by_its_calls(store: Store, stop: str, reason: str | None) -> None:
    """Whoever runs the calls sees that there may have been more."""
    batch_id = answered(store, {"messages": [USER], "tools": [TOOL]}, Choice(0, "", stop, tool_calls=[call()]))
    (record,) = written(store, batch_id, "native")
    assert (record["stop_reason"], record["finish_reason"]) == (stop, reason)


def test_what_openai_has_no_field_for_stands_where_vllm_has_it(store: Store) -> None:
    """A chat's prompt tokens beside its choices, a completion's in each choice, as vLLM has them; each choice says
    whether it is valid, and why a call is still in its text."""
    choice = Choice(0, "<tool_call>", "eos", valid=True, tool_call_error="no JSON", token_ids=[5, 6])
    batch_id = make_batch(store, [{"messages": [USER]}, {"prompt": "a"}])
    work(store, batch_id, answer=lambda job: [choice])
    records = list(ordered_records(store.connection, batch_id))
    chat, text = (renderer(Destination(fmt="openai"), store, store.batch(batch_id))(with_prompt(r)) for r in records)
    shown = {"valid": True, "tool_call_error": "no JSON", "token_ids": [5, 6]}
    body = orjson.loads(chat)["response"]["body"]
    assert body["prompt_token_ids"] == [1, 2, 3]
    assert shown.items() <= body["choices"][0].items()
    assert "prompt_token_ids" not in body["choices"][0]
    body = orjson.loads(text)["response"]["body"]
    assert "prompt_token_ids" not in body
    assert {**shown, "prompt_token_ids": [1, 2, 3]}.items() <= body["choices"][0].items()


def with_prompt(record: Any) -> Any:
    """A record with the tokens of its prompt, as those of lines with return_token_ids."""
    raw = orjson.dumps({**orjson.loads(record.raw), "prompt_token_ids": [1, 2, 3]})
    return type(record)(record.index, raw, record.shard)


def test_the_three_files_of_openais_format(store: Store, tmp_path: Path) -> None:
    """Requests with tools and response formats in, responses and errors out, each line in one of both; and what came
    out goes into the next request as it is."""

    def answer(job: Job) -> list[Choice]:
        if job.id == "shaped":
            return [Choice(0, "{}", "eos", valid=True)]
        if job.id == "called":
            return [Choice(0, "", "eos", tool_calls=[call()])]
        raise LineError("internal_error", None, "no")

    bodies: dict[str, dict[str, Any]] = {
        "shaped": {"messages": [USER], "response_format": SCHEMA},
        "called": {"messages": [USER], "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        "failed": {"messages": [USER], "tools": [TOOL]},
    }
    requests = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in bodies.items()
    ]
    batch_id = make_batch(store, requests)
    work(store, batch_id, answer=answer)
    out, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    _, tally = write_results(store, batch_id, Destination(out, errors, "openai"))
    shaped, called = map(orjson.loads, out.read_bytes().splitlines())
    (failed,) = map(orjson.loads, errors.read_bytes().splitlines())
    assert tally.written == 2
    assert [each["custom_id"] for each in (shaped, called, failed)] == list(bodies)
    assert failed["response"]["status_code"] == 500
    assert orjson.loads(shaped["response"]["body"]["choices"][0]["message"]["content"]) == {}
    returned = called["response"]["body"]["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": returned["tool_calls"][0]["id"], "content": '{"celsius": 21}'}
    again = {**requests[1], "body": {**bodies["called"], "messages": [USER, returned, result]}}
    job = check_line(orjson.dumps(again)).job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))
    object_call = {**call(), "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    assert job.messages == (USER, {"role": "assistant", "content": "", "tool_calls": [object_call]}, result)


def test_chat_training_data_keeps_calls_and_tools(store: Store) -> None:
    """The whole conversation with its tools; arguments are objects wherever they stand."""
    object_call = {**call(7), "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call(7)]},
        {"role": "tool", "tool_call_id": "call_7", "content": "21", "name": "weather"},
    ]
    batch_id = answered(store, {"messages": history, "tools": [TOOL]}, Choice(0, "", "eos", tool_calls=[call(8)]))
    (example,) = written(store, batch_id, "chat")
    assert example == {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [object_call]},
            {"role": "tool", "content": "21", "name": "weather", "tool_call_id": "call_7"},
            {"role": "assistant", "content": "", "tool_calls": [{**object_call, "id": "call_8"}]},
        ],
        "tools": [TOOL],
    }
    (line,) = written(store, answered(store, example, Choice(0, "Mild.", "eos")), "chat")  # it is a line again
    assert line["messages"] == [*example["messages"], {"role": "assistant", "content": "Mild."}]


def test_a_turn_that_the_line_began_keeps_its_calls(store: Store) -> None:
    """The text before the call is the beginning and what the model wrote."""
    line = {"messages": [USER], "tools": [TOOL], "prefill_response": "I"}
    batch_id = answered(store, line, Choice(0, " look.", "eos", tool_calls=[call()]))
    (example,) = written(store, batch_id, "chat")
    answer = example["messages"][-1]
    assert (answer["content"], len(answer["tool_calls"])) == ("I look.", 1)


@pytest.mark.parametrize("fmt", ["chat", "completions"])
def test_nothing_is_learned_from_what_is_not_valid(store: Store, fmt: str) -> None:
    """Texts that their constraint refuses, and calls that cannot be read, stay out and are counted; --keep-cut is for
    texts that are good as far as they go."""
    answers = [
        Choice(0, '{"a": 1}', "eos", valid=True),
        Choice(1, '{"a": ', "max_tokens", valid=False),
        Choice(2, '{"a"', "stop_string", valid=False),
        Choice(3, "<tool_call>{", "eos", tool_call_error="no JSON"),
        Choice(4, "", "eos"),
    ]
    batch_id = answered(store, {"messages": [USER], "n": len(answers), "max_tokens": 9}, *answers)
    tally = Tally(Destination(fmt=fmt, keep_cut=True))
    (kept,) = written(store, batch_id, fmt, tally)
    assert '{"a": 1}' in (kept["completion"] if fmt == "completions" else kept["messages"][-1]["content"])
    assert tally.written == 1
    assert tally.notes({}) == [
        "2 texts are not valid (cut by: 1 max_tokens, 1 stop_string)",
        "1 text has a tool call that cannot be read: see tool_call_error",
        "left out of the training data: 1 empty, 2 not valid, 1 with a tool call that cannot be read",
    ]


def test_a_call_without_a_text_is_no_empty_answer(store: Store) -> None:
    """It is learned from, and nobody is told that the line gave no answer."""
    batch_id = answered(
        store, {"messages": [USER], "tools": [TOOL]}, Choice(0, "", "eos", reasoning="hm", tool_calls=[call()])
    )
    tally = Tally(Destination(fmt="chat"))
    assert len(written(store, batch_id, "chat", tally)) == 1
    assert (tally.written, tally.notes({})) == (1, [])


def test_completions_refuse_tools(store: Store) -> None:
    """Neither the tools nor the call would be in the data; the message names the line and the remedy."""
    batch_id = answered(store, {"id": "t", "messages": [USER], "tools": [TOOL]}, Choice(0, "Mild.", "eos"))
    with pytest.raises(RefusedError, match=r"line 1 \('t'\) has tools, .*--format chat"):
        written(store, batch_id, "completions")


def test_records_say_with_what_a_line_was_guided(store: Store) -> None:
    """The kind of the constraint and the names of the tools stand among the effective values, not the whole of them;
    lines without any have no such values."""
    lines: list[dict[str, Any]] = [
        {"messages": [USER], "response_format": SCHEMA, "thinking_budget": 64},
        {"messages": [USER], "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"messages": [USER], "guided_choice": ["a", "b"]},
        {"messages": [USER]},
    ]
    batch_id = make_batch(store, lines)
    work(store, batch_id, answer=lambda job: [Choice(0, "a", "eos")])
    plain = set(written(store, batch_id, "native")[-1]["sampling"])
    given = [
        {name: value for name, value in record["sampling"].items() if name not in plain}
        for record in written(store, batch_id, "native")
    ]
    assert given == [
        {"constraint": "json", "thinking_budget": 64},
        {"tools": ["weather"], "tool_choice": "required", "parallel_tool_calls": False},
        {"constraint": "choice"},
        {},
    ]
