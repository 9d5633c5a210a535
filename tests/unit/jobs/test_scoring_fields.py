"""Fields of lines whose texts are there already: what they may be, and what they may not stand beside."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import Defaults, Job, check_line

USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
AGAINST_CALLS = ("conflicting_fields", "tool_choice")


def job(line: dict[str, Any], **defaults: Any) -> Job:
    checked = check_line(orjson.dumps(line))
    return checked.job(index=0, line=1, batch_id="b_1", defaults=Defaults({"model": "m", **defaults}))


def refused(line: dict[str, Any]) -> LineError:
    with pytest.raises(LineError) as caught:
        check_line(orjson.dumps(line))
    return caught.value


def test_a_continuation_generates_nothing() -> None:
    """It is scored after a prompt or after messages, whatever the batch says of new tokens."""
    for line in ({"prompt": "a", "continuation": " b"}, {"messages": USER, "continuation": "b"}):
        made = job(line, max_tokens=100, n=4, stop=["x"])
        assert (made.sampling.max_tokens, made.sampling.n, made.sampling.stop) == (0, 1, ())
        assert made.scored
        assert not made.generates
    assert job({"prompt": "a", "continuation": " b", "max_tokens": 0}).continuation == " b"


@pytest.mark.parametrize(
    ("line", "scored", "generates"),
    [
        ({"prompt": "a", "prompt_logprobs": 0, "max_tokens": 0}, True, False),
        ({"prompt": "a", "prompt_logprobs": 3}, True, True),
        ({"messages": USER, "prompt_logprobs": 20.0, "max_tokens": 0}, True, False),
        ({"prompt": "a", "echo": True, "logprobs": True, "max_tokens": 0}, True, False),
        ({"prompt": "a", "echo": True, "max_tokens": 0}, False, False),
        ({"prompt": "a", "echo": True}, False, True),
        ({"prompt": "a", "echo": False, "prompt_logprobs": None}, False, True),
    ],
)
def test_what_is_scored_and_what_generates(line: dict[str, Any], scored: bool, generates: bool) -> None:
    """Natively and in a body, log-probabilities of what is there are computed only where they are asked for."""
    for given in (line, {"body": line}):
        assert (job(given).scored, job(given).generates) == (scored, generates)


def test_completions_logprobs_of_zero_are_the_tokens_own() -> None:
    """An integer is how many alternatives there are, natively with top_logprobs."""
    made = job({"body": {"prompt": "a", "echo": True, "logprobs": 0, "max_tokens": 0}})
    assert (made.scored, made.sampling.logprobs, made.sampling.top_logprobs) == (True, True, 0)


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([5, 6], ((5, 6),)),
        ([[5, 6], [7]], ((5, 6), (7,))),
        ([5.0, 6], ((5, 6),)),
        (["a", [7, 8]], ("a", (7, 8))),
    ],
)
def test_prompts_in_every_form(prompt: Any, inputs: Any) -> None:
    """A text, token ids, or a list of either: each is one prompt, in its order."""
    for line in ({"prompt": prompt}, {"body": {"prompt": prompt}}):
        made = job(line)
        assert made.inputs == inputs
        assert made.prompt == (inputs[0] if inputs in (("a",),) else None)


@pytest.mark.parametrize(
    ("line", "code", "field"),
    [
        ({"prompt": "a", "max_tokens": 0}, "out_of_range", "max_tokens"),
        ({"prompt": "a", "max_tokens": 0, "logprobs": True}, "out_of_range", "max_tokens"),
        ({"prompt": "a", "prompt_logprobs": 21}, "out_of_range", "prompt_logprobs"),
        ({"prompt": "a", "prompt_logprobs": -1}, "out_of_range", "prompt_logprobs"),
        ({"prompt": "a", "prompt_logprobs": True}, "invalid_type", "prompt_logprobs"),
        ({"prompt": "a", "prompt_logprobs": 0.5}, "invalid_type", "prompt_logprobs"),
        ({"prompt": "a", "continuation": ""}, "out_of_range", "continuation"),
        ({"prompt": "a", "continuation": ["b"]}, "invalid_type", "continuation"),
        ({"prompt": "a", "continuation": "b", "max_tokens": 5}, "conflicting_fields", "max_tokens"),
        ({"prompt": "a", "continuation": "b", "n": 2}, "conflicting_fields", "n"),
        ({"prompt": "a", "continuation": "b", "stop": ["x"]}, "conflicting_fields", "stop"),
        ({"prompt": "a", "continuation": "b", "echo": True}, "conflicting_fields", "echo"),
        ({"prompt": ["a", "c"], "continuation": "b"}, "conflicting_fields", "continuation"),
        ({"prompt": [5, 6], "continuation": "b"}, "conflicting_fields", "continuation"),
        ({"continuation": "b"}, "missing_field", "prompt"),
        ({"messages": USER, "continuation": "b", "tools": TOOLS, "tool_choice": "required"}, *AGAINST_CALLS),
        ({"messages": USER, "echo": True}, "conflicting_fields", "echo"),
        ({"prompt": "a", "echo": "yes"}, "invalid_type", "echo"),
        ({"prompt": []}, "out_of_range", "prompt"),
        ({"prompt": [""]}, "out_of_range", "prompt[0]"),
        ({"prompt": ["a", []]}, "out_of_range", "prompt[1]"),
        ({"prompt": [[1, "a"]]}, "invalid_type", "prompt[0][1]"),
        ({"prompt": [True]}, "invalid_type", "prompt[0]"),
        ({"prompt": [5, -1]}, "out_of_range", "prompt[1]"),
        ({"prompt": [2**31]}, "out_of_range", "prompt[0]"),
        ({"prompt": [1, 1e30]}, "out_of_range", "prompt[1]"),
        ({"prompt": [1, 2.5]}, "invalid_type", "prompt[1]"),
        ({"prompt": ["a", [1, None]]}, "invalid_type", "prompt[1][1]"),
        ({"prompt": ["a"] * 1025}, "out_of_range", "prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(line: dict[str, Any], code: str, field: str) -> None:
    """Each mistake names the field and has a remedy, natively and in a body."""
    for given in (line, {"body": line}):
        error = refused(given)
        assert (error.code, error.field) == (code, field)
        assert error.message
