"""Lines against the contract: every rule by example, and the parser against whatever comes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings, strategies as st

from jobs.errors import LineError
from jobs.lines.line import MAX_DEPTH, MAX_LINE_BYTES, CheckedLine, Defaults, Job, check_line, derived_seed
from jobs.params import PARAMETERS
from jobs.record import Choice, RunStats, result_record

CODES = {
    "invalid_json_line",
    "invalid_type",
    "out_of_range",
    "unknown_field",
    "missing_field",
    "conflicting_fields",
    "unsupported",
}
USER = [{"role": "user", "content": "hi"}]
NOTHING = Defaults({})


def check(line: Any) -> CheckedLine:
    return check_line(orjson.dumps(line))


def refused(raw: bytes | dict[str, Any]) -> LineError:
    """The error with which a line is refused."""
    with pytest.raises(LineError) as caught:
        check_line(raw if isinstance(raw, bytes) else orjson.dumps(raw))
    return caught.value


def job(line: dict[str, Any], **defaults: Any) -> Job:
    """The job of a line in a batch with these defaults."""
    return check(line).job(index=3, line=7, batch_id="b_1", defaults=Defaults({"model": "m", **defaults}))


# --- what is taken ---


def test_native_prompt_line_takes_the_tables_defaults() -> None:
    """A bare prompt is a text completion with the defaults of the contract and the default id."""
    made = job({"prompt": "once"})
    assert (made.id, made.prompt, made.messages, made.endpoint) == ("line-7", "once", None, None)
    assert (made.sampling.max_tokens, made.sampling.temperature) == (512, 0.0)


def test_native_messages_line_keeps_its_chat_fields() -> None:
    """Chat fields, metadata and the line's own model arrive untouched."""
    line = {
        "id": "a", "messages": USER, "system_prompt": "be kind", "prefill_response": "{", "model": "other",
        "adapter_path": "lora", "chat_template_kwargs": {"enable_thinking": False}, "metadata": {"k": [1, None]},
    }  # fmt: skip
    made = job(line)
    assert made.messages == tuple(USER)
    assert (made.system_prompt, made.prefill_response) == ("be kind", "{")
    assert made.chat_template_kwargs == {"enable_thinking": False}
    assert (made.id, made.model, made.adapter_path, made.metadata) == ("a", "other", "lora", {"k": [1, None]})


@pytest.mark.parametrize("envelope", [{}, {"method": "POST"}, {"url": "/v1/chat/completions"}])
def test_openai_line_may_leave_out_method_and_url(envelope: dict[str, str]) -> None:
    """The body decides what the endpoint is; OpenAI's defaults apply."""
    made = job({"custom_id": "a", **envelope, "body": {"messages": USER, "model": "x"}})
    assert (made.id, made.model, made.endpoint) == ("a", "x", "/v1/chat/completions")
    assert (made.sampling.temperature, made.sampling.top_p) == (1.0, 1.0)


def test_openai_completions_line() -> None:
    """A prompt in the body is a completion; integer logprobs mean as many alternatives."""
    made = job({"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x", "logprobs": 3}})
    assert made.endpoint == "/v1/completions"
    assert (made.sampling.logprobs, made.sampling.top_logprobs) == (True, 3)


def test_openai_body_takes_openai_names_and_ours() -> None:
    """max_completion_tokens means max_tokens; names of the table work in a body too."""
    made = job({"body": {"prompt": "x", "max_completion_tokens": 5, "min_p": 0.1}})
    assert (made.sampling.max_tokens, made.sampling.min_p) == (5, 0.1)


@pytest.mark.parametrize(
    "field", ["user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"]
)
def test_openai_fields_without_effect_are_accepted(field: str) -> None:
    """They change nothing about the text."""
    assert check({"body": {"prompt": "x", field: {"a": "b"} if field == "metadata" else "x"}}).endpoint


def test_null_counts_as_absent() -> None:
    """Exporters write null for what is not set."""
    assert job({"prompt": "x", "temperature": None, "id": None, "stop": None}).sampling.temperature == 0.0


@pytest.mark.parametrize(("alias", "name"), [("temp", "temperature"), ("max_new_tokens", "max_tokens")])
def test_aliases(alias: str, name: str) -> None:
    """Two names that other tools use are taken, but not beside the real one."""
    assert check({"prompt": "x", alias: 3}).fields[name] == 3
    assert refused({"prompt": "x", alias: 3, name: 3}).code == "conflicting_fields"


def test_parts_of_text_are_joined() -> None:
    """Content as a list of text parts is the text."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    line = check({"messages": [{"role": "user", "content": parts, "name": "me"}]})
    assert line.fields["messages"] == ({"role": "user", "content": "ab", "name": "me"},)


@pytest.mark.parametrize("name", ["a", "x" * 256, "ünï code", "a/b:c"])
def test_ids_of_1_to_256_printable_characters(name: str) -> None:
    """Any printable text is an id."""
    assert check({"id": name, "prompt": "x"}).id == name


def test_nul_in_a_prompt_is_text_like_any_other() -> None:
    """JSON can say it, so it arrives."""
    assert check_line(b'{"prompt":"a\\u0000b"}').fields["prompt"] == "a\x00b"


def test_response_format_text_is_taken() -> None:
    """It is what happens anyway."""
    assert check({"prompt": "x", "response_format": {"type": "text"}})


# --- what is refused ---


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"nope", "invalid_json_line", None),
        (b'{"prompt":"x"', "invalid_json_line", None),
        (b'{"prompt":"x"} {"prompt":"y"}', "invalid_json_line", None),
        (b'{"prompt":"x","temperature":NaN}', "invalid_json_line", None),
        (b'{"prompt":"x","temperature":Infinity}', "invalid_json_line", None),
        (b'{"prompt":"x","temperature":-Infinity}', "invalid_json_line", None),
        (b'{"prompt":"\\ud800"}', "invalid_json_line", None),
        (b'{"prompt":"a\x00b"}', "invalid_json_line", None),
        (b'{"prompt":"caf\xe9"}', "invalid_json_line", None),
        ('{"prompt":"x"}'.encode("utf-16"), "invalid_json_line", None),
        (b'{"prompt":"x","metadata":{"a":' + nested(100_000) + b"}}", "invalid_json_line", None),
        (b'{"prompt":"x","metadata":{"a":' + nested(1000) + b"}}", "out_of_range", "metadata"),
        (b'{"prompt":"x","temperature":' + nested(1000) + b"}", "invalid_type", "temperature"),
        (b'{"prompt":"x","stop":' + nested(1000) + b"}", "invalid_type", "stop"),
        (b'{"prompt":"x","logit_bias":{"1":' + nested(1000) + b"}}", "invalid_type", "logit_bias"),
        (b'{"prompt":"x","response_format":{"type":' + nested(1000) + b"}}", "unsupported", "response_format.type"),
        (b'{"method":' + nested(1000) + b',"body":{"prompt":"x"}}', "unsupported", "method"),
        (b'{"url":' + nested(1000) + b',"body":{"prompt":"x"}}', "unsupported", "url"),
        (b'{"messages":' + nested(1000) + b"}", "invalid_type", "messages[0]"),
        (b"[]", "invalid_type", None),
        (b'"text"', "invalid_type", None),
        (b"null", "invalid_type", None),
        (b"17", "invalid_type", None),
        (b"true", "invalid_type", None),
        (b"{}", "missing_field", "prompt"),
        (b'{"prompt":""}', "out_of_range", "prompt"),
        (b'{"prompt":["x"]}', "invalid_type", "prompt"),
        (b'{"prompt":"x","id":""}', "out_of_range", "id"),
        (b'{"prompt":"x","id":7}', "invalid_type", "id"),
        (b'{"prompt":"x","id":"a\\nb"}', "out_of_range", "id"),
        (b'{"prompt":"x","id":"' + b"y" * 257 + b'"}', "out_of_range", "id"),
        (b'{"prompt":"x","temprature":1}', "unknown_field", "temprature"),
        (b'{"prompt":"x","Temperature":1}', "unknown_field", "Temperature"),
        (b'{"prompt":"x","stream":true}', "unsupported", "stream"),
        (b'{"prompt":"x","tools":[{}]}', "missing_field", "tools[0].type"),
        (b'{"prompt":"x","best_of":2}', "unsupported", "best_of"),
        (b'{"prompt":"x","response_format":{"type":"xml"}}', "unsupported", "response_format.type"),
        (b'{"prompt":"x","response_format":"json"}', "invalid_type", "response_format"),
        (b'{"prompt":"x","metadata":[1]}', "invalid_type", "metadata"),
        (b'{"prompt":"x","model":5}', "invalid_type", "model"),
        (b'{"prompt":"x","top_logprobs":2}', "conflicting_fields", "top_logprobs"),
        (b'{"prompt":"x","top_logprobs":2,"logprobs":false}', "conflicting_fields", "top_logprobs"),
        (b'{"prompt":"x","messages":[{"role":"user","content":"a"}]}', "conflicting_fields", "messages"),
        (b'{"prompt":"x","system_prompt":"a"}', "conflicting_fields", "system_prompt"),
        (b'{"prompt":"x","prefill_response":"a"}', "conflicting_fields", "prefill_response"),
        (b'{"prompt":"x","chat_template_kwargs":{"a":1}}', "conflicting_fields", "chat_template_kwargs"),
        (b'{"messages":"hi"}', "invalid_type", "messages"),
        (b'{"messages":[]}', "out_of_range", "messages"),
        (b'{"messages":["hi"]}', "invalid_type", "messages[0]"),
        (b'{"messages":[{"content":"a"}]}', "missing_field", "messages[0].role"),
        (b'{"messages":[{"role":"bot","content":"a"}]}', "out_of_range", "messages[0].role"),
        (b'{"messages":[{"role":["user"],"content":"a"}]}', "out_of_range", "messages[0].role"),
        (b'{"messages":[{"role":"user"}]}', "missing_field", "messages[0].content"),
        (b'{"messages":[{"role":"user","content":5}]}', "invalid_type", "messages[0].content"),
        (b'{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}', "unsupported", "messages[0].content"),
        (b'{"messages":[{"role":"user","content":"a","x":1}]}', "unknown_field", "messages[0].x"),
        (b'{"messages":[{"role":"user","content":"a","tool_calls":[{}]}]}', "unsupported", "messages[0].tool_calls"),
        (b'{"id":"a","body":{"prompt":"x"}}', "unknown_field", "id"),
        (b'{"temperature":1,"body":{"prompt":"x"}}', "unknown_field", "temperature"),
        (b'{"custom_id":5,"body":{"prompt":"x"}}', "invalid_type", "custom_id"),
        (b'{"method":"GET","body":{"prompt":"x"}}', "unsupported", "method"),
        (b'{"url":"/v1/embeddings","body":{"prompt":"x"}}', "unsupported", "url"),
        (b'{"url":"/v1/chat/completions","body":{"prompt":"x"}}', "conflicting_fields", "url"),
        (b'{"url":"/v1/completions","body":{"messages":[{"role":"user","content":"a"}]}}', "conflicting_fields", "url"),
        (b'{"body":{"prompt":"x","stream":true}}', "unsupported", "stream"),
        (b'{"body":{"prompt":"x","tools":[{}]}}', "missing_field", "tools[0].type"),
        (b'{"body":{"prompt":"x","tool_choice":"any"}}', "out_of_range", "tool_choice"),
        (b'{"body":{"prompt":"x","echo":true}}', "unsupported", "echo"),
        (b'{"body":{"prompt":"x","suffix":"a"}}', "unsupported", "suffix"),
        (b'{"body":{"prompt":"x","best_of":2}}', "unsupported", "best_of"),
        (b'{"body":{"prompt":"x","max_tokens":1,"max_completion_tokens":2}}', "conflicting_fields", "max_tokens"),
        (b'{"body":{"prompt":"x","logprobs":21}}', "out_of_range", "top_logprobs"),
        (b'{"body":{}}', "missing_field", "prompt"),
        (b'{"body":"x"}', "invalid_type", "body"),
    ],
)  # fmt: skip
def test_lines_that_break_the_contract(raw: bytes, code: str, field: str | None) -> None:
    """Each rule has its code, and the error names the field."""
    error = refused(raw)
    assert (error.code, error.field) == (code, field)
    assert error.message


@pytest.mark.parametrize("name", ["echo", "suffix", "best_of"])
def test_nothing_unsupported_is_taken_in_either_format(name: str) -> None:
    """What would change the text is refused, never dropped."""
    assert refused({"prompt": "x", name: 2}).code == "unsupported"
    assert refused({"body": {"prompt": "x", name: 2}}).code == "unsupported"


def test_messages_name_the_remedy() -> None:
    """A typo gets a suggestion; bytes that are not UTF-8 are placed."""
    assert "did you mean 'temperature'" in refused({"prompt": "x", "temprature": 1}).message
    assert "metadata" in refused({"prompt": "x", "my_column": 1}).message
    assert "did you mean 'max_completion_tokens'" in refused({"body": {"max_completion_token": 1}}).message
    assert refused(b'{"prompt":"caf\xe9"}').message.endswith("byte 15 is not UTF-8; save the file as UTF-8")


def test_all_problems_of_a_line_are_found_at_once() -> None:
    """The first is the error, the others are beside it, in the order of the line's fields."""
    error = refused({"id": 7, "temperature": "hot", "max_tokens": 0, "num_predict": 5, "top_logprobs": 2})
    assert [(problem.code, problem.field) for problem in error.all_at(1)] == [
        ("invalid_type", "id"),
        ("invalid_type", "temperature"),
        ("out_of_range", "max_tokens"),
        ("unknown_field", "num_predict"),
        ("conflicting_fields", "top_logprobs"),
        ("missing_field", "prompt"),
    ]
    error = refused({"method": "GET", "url": "/v1/x", "body": {"prompt": "x", "temperature": -1, "stream": True}})
    assert [problem.field for problem in error.all_at(1)] == ["method", "url", "temperature", "stream"]


def test_a_line_of_nothing_but_mistakes_ends() -> None:
    """A hostile line costs no more than its first mistakes."""
    assert len(refused({"prompt": "x", **{f"column_{n}": 1 for n in range(100_000)}}).all_at(1)) <= 21


def test_a_problem_is_not_said_twice_in_other_words() -> None:
    """A wrong value is no missing one, and conflicts with nothing."""
    assert refused({"prompt": 5}).also == ()
    assert refused({"prompt": "x", "logprobs": "yes", "top_logprobs": 2}).also == ()
    assert refused({"body": {"messages": 5}, "url": "/v1/chat/completions"}).also == ()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"prompt":"x","temperature":NaN}', "JSON has no NaN and no Infinity: leave the field out"),
        (b'{"prompt":"x","temperature":-Infinity}', "JSON has no NaN and no Infinity: leave the field out"),
        (b"{'prompt': 'x'}", "names and texts have double quotes in JSON"),
        (b"Once upon a time", 'a line is an object, such as {"prompt": "..."}'),
    ],
)
def test_what_is_no_json_says_why(raw: bytes, said: str) -> None:
    """What people write in place of JSON is named."""
    assert said in refused(raw).message


def test_lines_up_to_the_limit_are_taken_and_longer_ones_refused() -> None:
    """10 MB are a line like any other; past 16 MiB it is out_of_range, before it is parsed."""
    assert len(check_line(b'{"prompt":"' + b"x" * 10_000_000 + b'"}').fields["prompt"]) == 10_000_000
    error = refused(b"x" * (MAX_LINE_BYTES + 1))
    assert (error.code, error.field) == ("out_of_range", None)
    assert str(MAX_LINE_BYTES) in error.message


def test_nesting_up_to_the_limit_is_taken() -> None:
    """The metadata itself is one of the levels; what is beside it in the line does not count."""
    inside = MAX_DEPTH - 1
    assert check_line(b'{"prompt":"x","metadata":{"a":' + nested(inside) + b"}}")
    assert refused(b'{"prompt":"x","metadata":{"a":' + nested(inside + 1) + b"}}").code == "out_of_range"
    assert check_line(
        b'{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":' + nested(inside) + b"}}"
    )
    assert check({"prompt": "x", "metadata": {"flat": [[] for _ in range(1000)]}})


@pytest.mark.parametrize(
    "where", ["{%s: 1}", '{"body": {"prompt": "x"}, %s: 1}', '{"messages": [{"role": "user", %s: 1}]}']
)
def test_endless_names_are_cut_in_errors(where: str) -> None:
    """A megabyte as a field's name is refused fast, and does not come back as a megabyte."""
    error = refused((where % ('"' + "temperature" * 100_000 + '"')).encode())
    assert error.code == "unknown_field"
    assert len(error.field or "") < 100


@pytest.mark.parametrize("spelling", ["P", "P/", "./P", "./P/", ".//P", "././P", "P/.", "P//"])
def test_paths_to_one_folder_are_one_model(spelling: str) -> None:
    """In a line, as the batch's model, and as an adapter."""
    assert job({"prompt": "x", "model": spelling}).model == "P"
    assert Defaults({"model": spelling}).model == "P"
    assert job({"prompt": "x", "adapter_path": spelling}).adapter_path == "P"


@pytest.mark.parametrize(
    "name", ["org/name", "org/name@rev", "../P", "/a/P", "~/P", "a/../P", ".", "/", "..", ".hidden"]
)
def test_other_names_of_models_are_left_alone(name: str) -> None:
    """Names on a hub, and paths that lead elsewhere."""
    assert job({"prompt": "x", "model": name}).model == name


def test_a_batchs_model_may_take_the_place_of_the_lines_own() -> None:
    """override_model is a word of the batch's, not of a line's; it needs a model."""
    line = {"prompt": "x", "model": "gpt-4o-mini"}
    assert job(line).model == "gpt-4o-mini"
    assert job(line, override_model=True).model == "m"
    assert job({"body": line}, override_model=True).model == "m"
    assert job(line, override_model=False).model == "gpt-4o-mini"
    assert refused({**line, "override_model": True}).code == "unknown_field"
    with pytest.raises(LineError, match="--model"):
        Defaults({"override_model": True})
    with pytest.raises(LineError, match="must be true or false"):
        Defaults({"model": "m", "override_model": "yes"})


# --- whatever comes ---

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from([*PARAMETERS, "temp", "prompt", "messages", "system_prompt", "id", "custom_id", "body",
                               "url", "method", "model", "metadata", "logprobs", "response_format", "tools", "options",
                               "topP", "best_of", "stream", "text", "question", "instruction", "params", "adapter_path",
                               "tool_choice", "suffix", "modalities", "max_completion_tokens",
                               "chat_template_kwargs"])  # fmt: skip
messages = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "x"]), json_values | st.just("user"), max_size=4),
    max_size=3,
)


def outcome(raw: bytes) -> Job | LineError:
    """The job of a line, or the error with which it is refused; anything else is raised."""
    try:
        return check_line(raw).job(index=0, line=1, batch_id="b_1", defaults=Defaults({"model": "m"}))
    except LineError as error:
        return error


def survives(raw: bytes) -> None:
    """Check a line: refused with a code of the contract, or good to the end, which is a record."""
    made = outcome(raw)
    if isinstance(made, LineError):
        assert made.code in CODES
        assert made.message
        return
    record = result_record(
        made, [Choice(0, "text", "eos")] * made.sampling.n, RunStats(1, 1, 0, 0.0, 0.0, 0.0, 0.0), batch_id="b_1",
        model_revision=None, worker="w", attempt=1, created_at=0.0, finished_at=0.0,
    )  # fmt: skip
    assert orjson.loads(record)["id"] == made.id


@given(st.binary(max_size=200))
@example(b"\xff\xfe\x00")
@example(b"\xef\xbb\xbf{}")
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_checked_without_an_accident(raw: bytes) -> None:
    """Nothing but LineError comes out of the parser."""
    survives(raw)


@given(json_values)
@settings(max_examples=100, deadline=None)
def test_any_json_is_checked_without_an_accident(value: Any) -> None:
    """Nothing but LineError comes out of the checks, and the code is one of the contract's."""
    survives(orjson.dumps(value))


@given(st.dictionaries(field_names, json_values | messages, max_size=6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_values_in_known_fields_are_checked_without_an_accident(fields: dict[str, Any], openai: bool) -> None:
    """Wrong types in right places, in both formats: refused, or good enough to become a record."""
    survives(orjson.dumps({"body": fields} if openai else {"prompt": "x", **fields}))


# --- defaults ---


def test_line_wins_over_the_batch_and_the_batch_over_the_table() -> None:
    """Precedence: the line, the batch's defaults, the table."""
    made = job({"prompt": "x", "temperature": 0.5}, temperature=0.9, max_tokens=7)
    assert (made.sampling.temperature, made.sampling.max_tokens, made.sampling.top_p) == (0.5, 7, 1.0)


def test_batch_wins_over_openais_defaults() -> None:
    """A flag of submit reaches OpenAI lines too."""
    assert job({"body": {"prompt": "x"}}, temperature=0.3).sampling.temperature == 0.3


def test_chat_defaults_do_not_touch_plain_prompts() -> None:
    """--system-prompt on a mixed file is for the lines that have messages."""
    assert job({"prompt": "x"}, system_prompt="be kind").system_prompt is None
    assert job({"messages": USER}, system_prompt="be kind").system_prompt == "be kind"


def test_line_without_logprobs_drops_the_batchs_top_logprobs() -> None:
    """The line's own word is final."""
    made = job({"prompt": "x", "logprobs": False}, logprobs=True, top_logprobs=3)
    assert (made.sampling.logprobs, made.sampling.top_logprobs) == (False, 0)


def test_line_without_any_model_is_refused() -> None:
    """Neither the line nor the batch names one: missing_field, with the remedy."""
    with pytest.raises(LineError) as caught:
        check({"prompt": "x"}).job(index=0, line=1, batch_id="b_1", defaults=NOTHING)
    assert (caught.value.code, caught.value.field) == ("missing_field", "model")
    assert "--model" in caught.value.message


@pytest.mark.parametrize(("name", "value"), [("prompt", "x"), ("messages", USER), ("metadata", {}), ("temprature", 1)])
def test_defaults_take_parameters_only(name: str, value: Any) -> None:
    """What belongs to a line cannot be said for all of them."""
    with pytest.raises(LineError) as caught:
        Defaults({name: value})
    assert (caught.value.code, caught.value.field) == ("unknown_field", name)


def test_defaults_survive_the_way_through_redis() -> None:
    """Checked defaults, written as JSON and checked again, are the same."""
    defaults = Defaults({"model": "m", "stop": "a", "logit_bias": {"5": 1}, "temp": 1})
    stored = orjson.loads(orjson.dumps(dict(defaults.fields), option=orjson.OPT_NON_STR_KEYS))
    assert Defaults(stored).fields == defaults.fields


def test_missing_seed_is_drawn_once_per_batch_and_line() -> None:
    """The same line of the same batch gets the same seed in every attempt; others get others."""
    assert job({"prompt": "x"}).sampling.seed == derived_seed("b_1", 3)
    assert len({derived_seed(batch, index) for batch in ("b_1", "b_2") for index in range(100)}) == 200
    assert job({"prompt": "x", "seed": 0}).sampling.seed == 0


def test_a_rate_needs_more_than_one_step() -> None:
    """A text that came all at once, as with a draft model that was right, has no tokens per second."""
    assert RunStats(5, 40, 0, 0.1, 0.1, 2.0, 0.0).stats()["tokens_per_second"] == 20.0
    assert RunStats(5, 4, 0, 0.1, 0.1, 2e-5, 0.0).stats()["tokens_per_second"] is None
    assert RunStats(5, 1, 0, 0.1, 0.1, 0.0, 0.0).stats()["tokens_per_second"] is None
