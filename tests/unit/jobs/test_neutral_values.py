"""Fields that ask for nothing: taken wherever a line or a batch can say them, and what asks for something refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import CheckedLine, Defaults, Job, check_line

USER = [{"role": "user", "content": "hi"}]

NOTHING: list[tuple[str, Any]] = [
    *((name, empty) for name in ("tools", "functions", "audio", "prediction", "bad_words", "stop_token_ids",
                                 "guided_json", "structured_outputs", "options", "sampling_params", "extra_body",
                                 "images", "safety_settings", "prompt_logprobs", "reasoning_effort", "system")
      for empty in (None, [], {}, "")),
    ("stream", False), ("tool_choice", "none"), ("tool_choice", "auto"), ("function_call", "none"), ("echo", False),
    ("suffix", ""), ("best_of", 1), ("best_of", 1.0), ("modalities", ["text"]), ("parallel_tool_calls", True),
    ("response_format", {"type": "text"}), ("response_format", {}), ("response_format", "text"),
    ("truncation", "disabled"), ("verbosity", "medium"), ("reasoning_effort", "medium"),
    ("logit_bias", {}), ("logit_bias", []), ("stop", []), ("stop", ""), ("n", 1), ("top_k", -1), ("model", ""),
    ("adapter_path", ""), ("system_prompt", ""), ("chat_template_kwargs", {}), ("metadata", []),
    ("user", "me"), ("store", True), ("service_tier", "flex"), ("safety_identifier", "x"), ("prompt_cache_key", "x"),
    ("stream_options", {"include_usage": True}), ("use_beam_search", False), ("num_beams", 1), ("length_penalty", 1.0),
    ("skip_special_tokens", True), ("include_stop_str_in_output", False), ("mirostat", 0), ("tfs_z", 1),
    ("repetition_penalty", None), ("min_p", None), ("temprature", None),
]  # fmt: skip

SOMETHING: list[tuple[str, Any]] = [
    ("stream", True), ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}), ("echo", True), ("suffix", "x"),
    ("best_of", 2), ("modalities", ["text", "audio"]), ("prediction", {"type": "content", "content": "x"}),
    ("reasoning_effort", "low"), ("verbosity", "low"), ("truncation", "auto"), ("use_beam_search", True),
    ("num_beams", 4), ("mirostat", 2), ("format", "json"), ("response_mime_type", "application/json"),
    ("grammar", "root ::= a"), ("ebnf", "root ::= a"), ("stop_token_ids", [2]), ("prompt_logprobs", 1),
    ("skip_special_tokens", False), ("include_stop_str_in_output", True), ("web_search_options", {"a": 1}),
]  # fmt: skip


def check(line: dict[str, Any]) -> CheckedLine:
    return check_line(orjson.dumps(line))


def job(line: dict[str, Any], **defaults: Any) -> Job:
    return check(line).job(index=0, line=1, batch_id="b_1", defaults=Defaults({"model": "m", **defaults}))


def plain(made: Job) -> Any:
    """What a job asks of a model."""
    return (made.model, made.adapter_path, made.prompt, made.messages, made.system_prompt, made.chat_template_kwargs,
            made.metadata, made.sampling)  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NOTHING, ids=lambda item: str(item)[:20])
def test_what_asks_for_nothing_is_taken_in_both_formats_and_as_a_default(name: str, value: Any) -> None:
    """The line is the one without the field."""
    for native in ({"prompt": "x"}, {"messages": USER}):
        assert plain(job({**native, name: value})) == plain(job(native))
        assert plain(job({"body": {**native, name: value}})) == plain(job({"body": native}))
    if name not in ("metadata", "model"):
        assert plain(job({"prompt": "x"}, **{name: value})) == plain(job({"prompt": "x"}))


@pytest.mark.parametrize(("name", "value"), SOMETHING, ids=lambda item: str(item)[:20])
def test_what_would_change_the_text_is_refused_in_both_formats_with_what_to_do(name: str, value: Any) -> None:
    """Never ignored, and never with a shrug."""
    for line in ({"prompt": "x", name: value}, {"body": {"prompt": "x", name: value}}):
        with pytest.raises(LineError) as caught:
            check(line)
        assert (caught.value.code, caught.value.field) == ("unsupported", name)
        assert len(caught.value.message) > len("is not supported: remove it")


def test_best_of_as_many_as_there_are_asks_for_nothing() -> None:
    """All of them are given."""
    assert job({"prompt": "x", "n": 3, "best_of": 3}).sampling.n == 3


def test_off_is_the_lines_own_word() -> None:
    """Where the batch gives a default, a line that says "off" in other tools' words has it off; null leaves it."""
    given = {"top_k": 40, "stop": ["END"], "system_prompt": "be kind", "adapter_path": "lora", "logit_bias": {"5": 1}}
    off = {"top_k": -1, "stop": "", "system_prompt": "", "adapter_path": "", "logit_bias": []}
    made = job({"messages": USER, **off}, **given)
    assert (made.sampling.top_k, made.sampling.stop, made.sampling.logit_bias) == (0, (), {})
    assert (made.system_prompt, made.adapter_path) == (None, None)
    kept = job({"messages": USER, **dict.fromkeys(off)}, **given)
    assert (kept.sampling.top_k, kept.system_prompt, kept.adapter_path) == (40, "be kind", "lora")


def test_an_empty_prompt_beside_messages_is_none() -> None:
    """As exporters write both columns; alone it is nothing to continue."""
    assert job({"prompt": "", "messages": USER}).prompt is None
    assert job({"prompt": "x", "messages": []}).messages is None
    with pytest.raises(LineError, match="must not be empty"):
        check({"prompt": "", "messages": []})


@pytest.mark.parametrize(
    "url",
    ["/chat/completions", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions", "/v1/chat/completions/",
     "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", "", None],
)  # fmt: skip
def test_urls_of_the_same_endpoint_are_the_same(url: str | None) -> None:
    """Azure's have no version, proxies have a host; records have the one name."""
    line = check({"custom_id": "a", "method": "post", "url": url, "error": None, "body": {"messages": USER}})
    assert line.endpoint == "/v1/chat/completions"


def test_urls_of_completions_are_told_from_those_of_chats() -> None:
    """Both end alike."""
    assert check({"url": "/completions", "body": {"prompt": "x"}}).endpoint == "/v1/completions"
    with pytest.raises(LineError, match="takes 'messages'"):
        check({"url": "/chat/completions", "body": {"prompt": "x"}})


@pytest.mark.parametrize(("url", "said"), [("/v1/responses", "'messages'"), ("/v1/embeddings", "nothing is embedded")])
def test_other_urls_say_what_there_is(url: str, said: str) -> None:
    """An endpoint that is not served is named with what is near to it."""
    with pytest.raises(LineError, match=said):
        check({"url": url, "body": {"messages": USER}})


def test_integers_may_be_written_as_whole_floats() -> None:
    """As tools do that know no others; they are recorded as integers."""
    sampling = job({"prompt": "x", "max_tokens": 20.0, "seed": 7.0, "logit_bias": {"5.0": 1}}).sampling
    assert (sampling.max_tokens, sampling.seed, sampling.logit_bias) == (20, 7, {5: 1.0})
    assert all(type(value) is int for value in (sampling.max_tokens, sampling.seed))
    completion = job({"body": {"prompt": "x", "logprobs": 3.0}}).sampling
    assert (completion.logprobs, completion.top_logprobs) == (True, 3)
    with pytest.raises(LineError, match=r"must be an integer, not 20\.5"):
        check({"prompt": "x", "max_tokens": 20.5})


@pytest.mark.parametrize("given", [{}, {"max_tokens": None}, {"max_completion_tokens": None}])
def test_openai_lines_without_max_tokens_go_to_the_contexts_end(given: dict[str, Any]) -> None:
    """As at OpenAI; the batch's own word comes first, and native lines have the table's 512."""
    assert job({"body": {"messages": USER, **given}}).sampling.max_tokens is None
    assert job({"body": {"messages": USER, **given}}, max_tokens=7).sampling.max_tokens == 7
    assert job({"messages": USER, "max_tokens": None}).sampling.max_tokens == 512
