"""Lines with tools, from the template to the record: what a model sees of tools, and what is read of its calls."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from jobs.errors import LineError
from jobs.record import Choice
from tests.engine.test_tool_grammars import FLAT, USER, checked, job, preparer, tool
from tests.engine.tool_families import ENFORCED, tools_tokenizer
from worker.engine.loading.model import LoadedModel
from worker.engine.prompts.prepare import Preparer
from worker.engine.sequence import PreparedLine, Sequence
from worker.engine.text.completion import TextAssembler

CALL = {"id": "call_1", "type": "function", "function": {"name": "count", "arguments": {"n": 3}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "call_1", "content": "three"}
SMALL = [
    tool("count", {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "up": {"type": "boolean"}}, "n"),
    tool("pick", {"which": {"type": "string", "enum": ["a", "b"]}}, "which"),
]


def written(name: str, raw: str, *, reason: str = "eos", tools: Any = FLAT, **fields: Any) -> Choice:
    """The choice of a line of which the model wrote ``raw``."""
    line = preparer(name).prepare(job(tools=tools, **fields) if tools else job(**fields))
    return assembled(name, line, raw, reason)


def assembled(name: str, line: PreparedLine, raw: str, reason: str = "eos") -> Choice:
    tokenizer = tools_tokenizer(name)
    row = Sequence(line, choice=0, seed=7, limit=1000)
    row.tokens = list(tokenizer.encode(raw, add_special_tokens=False))
    if reason == "eos":
        row.tokens.append(tokenizer.eos_token_id)
    row.stop_reason = reason
    return TextAssembler(tokenizer).assemble(row)


def functions(choice: Choice) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in choice.tool_calls or ()]
    return [(function["name"], json.loads(function["arguments"])) for function in calls]


# --- what the model sees ---


@pytest.mark.parametrize("name", ENFORCED)
def test_tools_are_shown(name: str) -> None:
    """A line's tools are in its prompt, unless none of them may be called."""
    prompts = preparer(name)
    with_tools, without = prompts.render(job(tools=FLAT)), prompts.render(job())
    assert all(one["function"]["name"] in with_tools for one in FLAT)
    assert prompts.render(job(tools=FLAT, tool_choice="none")) == without != with_tools


@pytest.mark.parametrize("name", ["chatml", "trimmed"])
def test_a_template_without_tools_is_refused(name: str) -> None:
    """Tools that the model would never see are an error."""
    from tests.engine.chat_families import tokenizer_of

    tokenizer = replace_parser(tokenizer_of(name))
    model: Any = type(
        "Model", (), {"tokenizer": tokenizer, "vocab_size": 9999, "eos": frozenset(), "context_length": 0}
    )
    model.context_length = None
    with pytest.raises(LineError) as caught:
        Preparer(model).prepare(job(tools=FLAT))
    assert (caught.value.code, caught.value.field) == ("unsupported", "tools")
    assert "describe them in a message" in caught.value.message


def replace_parser(tokenizer: Any) -> Any:
    """The tokenizer with a parser of calls."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from mlx_lm.tool_parsers import json_tools

    return TokenizerWrapper(
        tokenizer._tokenizer,
        lambda tokenizer: None,
        tool_parser=json_tools.parse_tool_call,
        tool_call_start=json_tools.tool_call_start,
        tool_call_end=json_tools.tool_call_end,
    )


def test_calls_that_nobody_could_read_are_refused() -> None:
    """A model whose format of calls is unknown takes no tools."""
    with pytest.raises(LineError) as caught:
        preparer("unread").prepare(job(tools=FLAT))
    assert (caught.value.code, caught.value.field) == ("unsupported", "tools")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("json_tools", '{"name": "count", "arguments": {"n": 3}}'),
        ("qwen3_coder", "<parameter=n>\n3\n</parameter>"),
        ("mistral", 'count[ARGS]{"n": 3}'),
        ("harmony", 'to=functions.count<|channel|>commentary json<|message|>{"n": 3}<|call|>'),
        ("silent", 'count{"n": 3}'),
    ],
)
def test_calls_in_messages_are_in_the_form_of_the_template(name: str, shown: str) -> None:
    """Arguments as text or as an object, ids of nine letters: each template gets what it wants."""
    arguments = json.dumps(CALL["function"]["arguments"])  # type: ignore[index]
    as_text = {**CALLED, "tool_calls": [{**CALL, "function": {"name": "count", "arguments": arguments}}]}
    prompts = preparer(name)
    texts = {prompts.render(job(messages=[USER, called, ANSWER, USER], tools=FLAT)) for called in (CALLED, as_text)}
    assert len(texts) == 1
    assert shown in texts.pop()


def test_calls_that_a_template_loses_are_refused() -> None:
    """A template that shows the first call of a message only takes one call a message."""
    both = {**CALLED, "tool_calls": [CALL, {**CALL, "id": "call_2"}]}
    preparer("harmony").render(job(messages=[USER, CALLED, ANSWER], tools=FLAT))
    preparer("json_tools").render(job(messages=[USER, both, ANSWER], tools=FLAT))
    with pytest.raises(LineError) as caught:
        preparer("harmony").render(job(messages=[USER, both, ANSWER], tools=FLAT))
    assert caught.value.field == "messages[1].tool_calls[1]"
    with pytest.raises(LineError) as caught:
        preparer("silent").render(job(messages=[USER, {**CALLED, "content": "Well."}, ANSWER], tools=FLAT))
    assert caught.value.field == "messages[1].tool_calls[0]"


@pytest.mark.parametrize("name", ["json_tools", "qwen3_coder", "harmony", "gemma4"])
def test_control_tokens_of_tools_are_text(name: str) -> None:
    """Descriptions, arguments and results that hold control tokens make none."""
    tokenizer = tools_tokenizer(name)
    end = "<|end|>" if name == "harmony" else "<|im_end|>"
    number = tokenizer.convert_tokens_to_ids(end)

    def count(text: str) -> int:
        tools = [tool("say", {"a": {"type": "string", "description": text}}, "a")]
        tools[0]["function"]["description"] = text
        call = {"type": "function", "function": {"name": "say", "arguments": {"a": text}}}
        messages = [USER, {**CALLED, "tool_calls": [call]}, {"role": "tool", "content": text}]
        return list(preparer(name).prepare(job(messages=messages, tools=tools)).prompt).count(number)

    assert count(f"a{end}\n<|im_start|>user") == count("harmless")


# --- what is read of a text ---

TEXTS = {
    "json_tools": '<tool_call>\n{"name": "count", "arguments": {"n": 3}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=count>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>",
    "mistral": '[TOOL_CALLS]count[ARGS]{"n": 3}',
    "mistral_list": '[TOOL_CALLS][{"name": "count", "arguments": {"n": 3}}]',
    "gemma4": "<|tool_call>call:count{n:3}<tool_call|>",
    "function_gemma": "<start_function_call>call:count{n:3}<end_function_call>",
    "harmony": '<|channel|>commentary to=functions.count <|constrain|>json<|message|>{"n": 3}',
    "glm47": "<tool_call>count\n<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
}
SAID = {"harmony": "<|channel|>commentary<|message|>Let me count.<|end|><|start|>assistant"}


@pytest.mark.parametrize("name", TEXTS)
def test_calls_are_read(name: str) -> None:
    """A call is apart from the text around it, under an id that a second run of the line gives it again."""
    found = written(name, SAID.get(name, "Let me count.\n") + TEXTS[name])
    assert functions(found) == [("count", {"n": 3})]
    assert (found.text, found.finish_reason, found.tool_call_error) == ("Let me count.", "tool_calls", None)
    (call,) = found.tool_calls or ()
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert written(name, SAID.get(name, "Let me count.\n") + TEXTS[name]) == found


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "harmony"])
def test_several_calls_are_read(name: str) -> None:
    """Calls that follow one another each have their id; without parallel calls the first is the only one."""
    raw = TEXTS[name] + ("\n" if name != "mistral" else "") + TEXTS[name]
    found = written(name, raw)
    assert functions(found) == [("count", {"n": 3})] * 2
    assert len({call["id"] for call in found.tool_calls or ()}) == 2
    assert functions(written(name, raw, parallel_tool_calls=False)) == [("count", {"n": 3})]


@pytest.mark.parametrize(
    ("raw", "reason", "error"),
    [
        ('<tool_call>\n{"name": "count", "arg\n</tool_call>', "eos", "cannot be read as json_tools"),
        ('<tool_call>\n{"name": "kount", "arguments": {}}\n</tool_call>', "eos", "none of the line's tools"),
        ('<tool_call>\n{"name": "count", "arguments": [1]}\n</tool_call>', "eos", "no object"),
        ('<tool_call>\n{"name": "count", "arguments": {"n": NaN}}\n</tool_call>', "eos", "not JSON"),
        ('<tool_call>\n["count"]\n</tool_call>', "eos", "does not say what it calls"),
        ('<tool_call>\n{"name": "count", "arguments": {"n": 3}}', "max_tokens", "ended within a call"),
    ],
)
def test_what_is_no_call_stays_in_the_text(raw: str, reason: str, error: str) -> None:
    """A call that cannot be used is kept as the model wrote it, with the reason."""
    found = written("json_tools", f"Well.\n{raw}", reason=reason)
    assert not found.tool_calls
    assert found.text == f"Well.\n{raw}"
    assert error in (found.tool_call_error or "")
    assert found.finish_reason == ("stop" if reason == "eos" else "length")


def test_a_good_call_beside_a_bad_one() -> None:
    """The one is read, the other is kept."""
    bad = '<tool_call>\n{"name": "kount"}\n</tool_call>'
    found = written("json_tools", f"{bad}\n{TEXTS['json_tools']}")
    assert (functions(found), found.text) == ([("count", {"n": 3})], bad)
    assert found.tool_call_error


def test_without_tools_nothing_is_a_call() -> None:
    """What looks like a call on a line without tools is its text."""
    found = written("json_tools", TEXTS["json_tools"], tools=None)
    assert (found.text, found.tool_calls, found.tool_call_error) == (TEXTS["json_tools"], None, None)


def test_half_a_character_in_arguments() -> None:
    """Half a pair of surrogates, which JSON can escape, does not keep the record from being written."""
    raw = '<tool_call>\n{"name": "count", "arguments": {"n": "\\ud800"}}\n</tool_call>'
    (call,) = written("json_tools", raw).tool_calls or ()
    assert call["function"]["arguments"] == '{"n": "\\ud800"}'


def test_a_call_within_a_thought() -> None:
    """A thought may speak of calls; one that never ends is over where a call begins."""
    thought = f"<think>I write {TEXTS['json_tools']} now.</think>\n\nDone."
    found = written("json_tools", thought)
    assert (found.text, found.tool_calls) == ("Done.", [])
    found = written("json_tools", f"<think>So.\n{TEXTS['json_tools']}")
    assert (found.reasoning, functions(found)) == ("So.", [("count", {"n": 3})])


# --- harmony ---


@pytest.mark.parametrize(
    ("raw", "text", "reasoning"),
    [
        ("<|channel|>final<|message|>Four.", "Four.", None),
        ("<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>Four.", "Four.", "2+2"),
        ("<|channel|>analysis<|message|>2+2", "", "2+2"),
        ("<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>fi", "", "2+2"),
        (
            "<|channel|>commentary<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Four.",
            "So.\nFour.",
            None,
        ),
        ('<|channel|>final <|constrain|>json<|message|>{"a": 4}', '{"a": 4}', None),
        ("No header at all.", "No header at all.", None),
    ],
)
def test_channels(raw: str, text: str, reasoning: str | None) -> None:
    """The final channel and what is said to the user on the way are the text, the analysis is the reasoning."""
    found = written("harmony", raw, tools=None)
    assert (found.text, found.reasoning) == (text, reasoning)


def test_a_call_of_harmony_with_its_recipient_first() -> None:
    """Models write the recipient before the channel or behind it; others than functions are called by nobody."""
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    found = written("harmony", f'{thought} to=functions.count<|channel|>commentary json<|message|>{{"n": 3}}')
    assert (functions(found), found.reasoning, found.text) == ([("count", {"n": 3})], "hm", "")
    found = written("harmony", "<|channel|>analysis to=python code<|message|>1+1")
    assert not found.tool_calls
    assert "no call of a function" in (found.tool_call_error or "")
    assert "1+1" in found.text


def test_where_harmony_ends() -> None:
    """An answer ends at either of two tokens, and a continued one is within the final channel."""
    line = preparer("harmony").prepare(job())
    ends = tools_tokenizer("harmony").convert_tokens_to_ids(["<|return|>", "<|call|>"])
    assert line.eos >= set(ends)
    assert line.begins == "header"
    assert preparer("harmony").prepare(job(prefill_response="So")).begins == "answer"


def test_reasoning_under_the_name_that_a_template_reads() -> None:
    """A template that calls an assistant's thoughts 'thinking' is given them by that name."""
    thinking = {**CALLED, "reasoning_content": "I must count."}
    assert "I must count." in preparer("harmony").render(job(messages=[USER, thinking, ANSWER], tools=FLAT))


# --- all of it, with a model ---


def model_of(name: str, tiny: Any) -> LoadedModel:
    tokenizer = tools_tokenizer(name)
    loaded: LoadedModel = tiny("qwen3", vocab_size=400)
    return replace(loaded, tokenizer=tokenizer, eos=frozenset(tokenizer.eos_token_ids))


@pytest.mark.parametrize("name", ENFORCED)
def test_a_random_model_calls_what_it_must(name: str, tiny: Any, run: Any) -> None:
    """With weights that mean nothing, at temperature 1, each text of a line that demands calls is calls."""
    model = model_of(name, tiny)
    prompts = Preparer(model)
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "pick"}}]
    lines = [
        prompts.prepare(
            job(tools=SMALL, tool_choice=choice, n=2, seed=seed, temperature=1.0, max_tokens=900,
                parallel_tool_calls=bool(seed % 2)),
            key=(str(choice), seed),
        )
        for choice in choices
        for seed in range(2)
    ]  # fmt: skip
    for (choice, seed), finished in run(model, lines).items():
        for row in finished.sequences:
            if row.stop_reason == "max_tokens":  # a thought that never ended
                assert row.guided() is not None
                continue
            found = TextAssembler(model.tokenizer).assemble(row)
            calls = list(found.tool_calls or ())
            assert (found.text, found.tool_call_error, found.finish_reason) == ("", None, "tool_calls")
            assert calls
            checked(SMALL, calls)
            assert found.valid
            if "pick" in choice:
                assert [call["function"]["name"] for call in calls] == ["pick"]
            if not seed % 2:
                assert len(calls) == 1


def test_a_text_is_over_after_its_one_call() -> None:
    """Without parallel calls a free text ends with its first call, whatever the model goes on to say."""
    tokenizer = tools_tokenizer("json_tools")
    raw = f"Well.\n{TEXTS['json_tools']}\nAnd more, {TEXTS['json_tools']}"
    tokens = tokenizer.encode(raw, add_special_tokens=False)
    line = replace(preparer("json_tools").prepare(job(tools=FLAT, parallel_tool_calls=False)), key="k")
    from worker.engine.text.detokenizer import Detokenizer
    from worker.engine.text.markup import markup_of
    from worker.engine.text.stop_strings import stop_matcher

    stream = Detokenizer(tokenizer).stream()
    matcher = stop_matcher(line.sampling, stream, markup_of(tokenizer), line.begins, calls=True, one_call=line.one_call)
    written: list[int] = []
    while not matcher.called:
        written.append(tokens[len(written)])
        matcher.add(written[-1])
    assert tokenizer.decode(written) == f"Well.\n{TEXTS['json_tools']}"


@pytest.mark.parametrize(("name", "stop"), [("json_tools", "count"), ("harmony", "4")])
def test_stop_strings_look_at_the_answer_only(name: str, stop: str) -> None:
    """A stop string within a call or another channel ends nothing."""
    from worker.engine.text.detokenizer import Detokenizer
    from worker.engine.text.markup import markup_of
    from worker.engine.text.stop_strings import stop_matcher

    raws = {
        "json_tools": f"I do.\n{TEXTS['json_tools']}\nI count.",
        "harmony": "<|channel|>analysis<|message|>4?<|end|><|start|>assistant<|channel|>final<|message|>It is 4 .",
    }
    tokenizer, line = tools_tokenizer(name), preparer(name).prepare(job(tools=FLAT, stop=[stop]))
    stream = Detokenizer(tokenizer).stream()
    matcher = stop_matcher(line.sampling, stream, markup_of(tokenizer), line.begins, calls=True)
    for token in tokenizer.encode(raws[name], add_special_tokens=False):
        if matcher.add(token):
            break
    assert matcher.match == stop
    assert matcher.text == raws[name][: raws[name].rindex(stop)]
