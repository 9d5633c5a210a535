"""The preview's process: fed, listened to, and explained when it fails."""

from __future__ import annotations

import sys

import pytest

from jobs.errors import ModelLoadError, PromptmillError
from jobs.lines.line import Defaults
from submit.input.preview import Preview, Previewed

ECHO = """
import json, sys
header = json.loads(sys.stdin.readline())
total = 0
for number, line in enumerate(map(json.loads, sys.stdin)):
    raw = json.loads(line["raw"])
    if raw["prompt"] == "bad":
        problem = {"code": "context_length_exceeded", "field": "prompt", "message": "too long"}
        print(json.dumps({"line": line["line"], "problem": problem}))
        continue
    total += len(raw["prompt"])
    print(json.dumps({"line": line["line"], "tokens": len(raw["prompt"])}))
    if number < 3:
        print(json.dumps({"line": line["line"], "preview": header["model"] + ":" + raw["prompt"]}))
print(json.dumps({"summary": {"prompt_tokens": total, "longest": 1, "context_length": header["defaults"]["seed"]}}))
"""


def previewed(script: str, prompts: list[str]) -> Previewed:
    """What a preview made by ``script`` says of prompts."""
    defaults = Defaults({"model": "m", "seed": 99})
    with Preview("m", defaults, command=(sys.executable, "-c", script)) as preview:
        for number, prompt in enumerate(prompts, 1):
            preview.feed(number, b'{"prompt":"%s"}' % prompt.encode())
        return preview.finish()


def test_prompts_tokens_and_problems_come_back() -> None:
    """Each line is counted or has a problem; some are shown."""
    said = previewed(ECHO, ["aa", "bad", "c"])
    assert said.prompts == {1: "m:aa", 3: "m:c"}
    assert (said.lines, said.summary) == (2, {"prompt_tokens": 3, "longest": 1, "context_length": 99})
    assert [(p.line, p.code, p.field) for p in said.problems] == [(2, "context_length_exceeded", "prompt")]


def test_long_inputs_do_not_block_either_side() -> None:
    """More lines than fit into the pipes, both ways."""
    said = previewed(ECHO, ["x" * 500] * 5000)
    assert (said.lines, said.summary["prompt_tokens"]) == (5000, 2_500_000)


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("import sys; print('promptmill: no tokenizer in m', file=sys.stderr); sys.exit(5)", ModelLoadError, "^no tok"),
        ("import sys; sys.exit('it broke')", PromptmillError, r"exit 1\): it broke"),
        ("import sys; sys.stdin.read(); print('no json')", PromptmillError, "preview of m failed"),
        ('import sys; sys.stdin.read(); print(\'{"line": 1, "problem": {}}\')', PromptmillError, "m failed"),
    ],
)
def test_failures_are_explained(script: str, kind: type[PromptmillError], message: str) -> None:
    """A process that dies early or talks nonsense ends in one error, never in a broken pipe."""
    with pytest.raises(kind, match=message):
        previewed(script, ["x" * 500] * 5000)


def test_preview_given_up_leaves_no_process() -> None:
    """An error in the middle of a check ends the process too."""
    preview = Preview("m", Defaults({}), command=(sys.executable, "-c", "import sys; sys.stdin.read()"))
    with pytest.raises(KeyError), preview:
        raise KeyError
    assert preview._process.poll() is not None
