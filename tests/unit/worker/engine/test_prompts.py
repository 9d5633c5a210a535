"""Lines to tokens with a tokenizer made up for it: what is rendered, what is encoded, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import AddedToken

from jobs.errors import LineError
from jobs.lines.line import Defaults, Job, check_line
from worker.engine.prompts.prepare import Preparer

SPECIAL = {"<s>": 0, "</s>": 1, "<think>": 2, "</think>": 3, "<|end|>": 4}


class Letters:
    """One token per character (its code), special tokens below 5, BOS in front of plain text."""

    has_thinking, think_start, think_end = True, "<think>", "</think>"
    has_chat_template = True
    bos_token: str | None = "<s>"
    chat_template = None
    added_tokens_decoder = {number: AddedToken(name, special=True) for name, number in SPECIAL.items()}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [0] if add_special_tokens else []
        while text:
            special = next((name for name in SPECIAL if text.startswith(name)), None)
            ids.append(SPECIAL[special] if special else ord(text[0]))
            text = text.removeprefix(special) if special else text[1:]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token) for token in ids)

    def convert_tokens_to_ids(self, text: str) -> int | None:
        return SPECIAL.get(text)

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return {value: name for name, value in SPECIAL.items()}.get(token)

    def rfind_think_start(self, tokens: list[int]) -> int:
        return max((index for index, token in enumerate(tokens) if token == 2), default=-1)

    def rfind_think_end(self, tokens: list[int]) -> int:
        return max((index for index, token in enumerate(tokens) if token == 3), default=-1)

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, **options: Any) -> str:
        self.asked.append({"messages": messages, **options})
        if messages[0]["role"] == "tool":
            raise TemplateError("roles must alternate")
        text = "".join(f"[{message['role']}]{message['content']}" for message in messages)
        opening = "[assistant]" + ("<think>\n" if options.get("enable_thinking") else "")
        return text + (opening if options["add_generation_prompt"] else "")


def preparer(context: int | None = 50, tokenizer: Letters | None = None, **options: Any) -> Preparer:
    model = SimpleNamespace(
        tokenizer=tokenizer or Letters(), vocab_size=300, eos=frozenset({1}), context_length=context
    )
    return Preparer(model, **options)  # type: ignore[arg-type]


def job(**fields: Any) -> Job:
    line = check_line(json.dumps({"id": "x", **fields}).encode())
    return line.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))


HELLO = [{"role": "user", "content": "hi"}]


def test_prompt_is_encoded_as_mlx_lm_does() -> None:
    """A plain prompt gets the tokenizer's special tokens, unless it begins with BOS itself."""
    assert preparer().prepare(job(prompt="ab")).prompt == (0, 97, 98)
    assert preparer().prepare(job(prompt="<s>ab")).prompt == (0, 97, 98)


def test_messages_go_through_the_template() -> None:
    """Messages are rendered with a generation prompt and encoded without more special tokens."""
    tokenizer = Letters()
    line = preparer(tokenizer=tokenizer).prepare(job(messages=HELLO, system_prompt="be kind"))
    assert "".join(map(chr, line.prompt)) == "[system]be kind[user]hi[assistant]"
    assert tokenizer.asked[0]["add_generation_prompt"] is True


def test_prefill_response_continues_the_turn() -> None:
    """The answer's beginning becomes an unfinished assistant message."""
    tokenizer = Letters()
    prompts = preparer(tokenizer=tokenizer)
    assert prompts.render(job(messages=HELLO, prefill_response="Well,")) == "[user]hi[assistant]Well,"
    assert tokenizer.asked[0]["continue_final_message"] is True


def test_template_options_reach_the_template() -> None:
    """chat_template_kwargs are the template's; those that the engine sets are refused."""
    assert preparer().render(job(messages=HELLO, chat_template_kwargs={"enable_thinking": True})).endswith("<think>\n")
    with pytest.raises(LineError) as caught:
        preparer().render(job(messages=HELLO, chat_template_kwargs={"tokenize": True}))
    assert (caught.value.code, caught.value.field) == ("unsupported", "chat_template_kwargs.tokenize")


@pytest.mark.parametrize(
    ("fields", "inside"),
    [
        ({"messages": HELLO}, False),
        ({"messages": HELLO, "chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"messages": [{"role": "user", "content": "what is <think>"}]}, False),
        ({"messages": HELLO, "prefill_response": "<think>so"}, True),
        ({"messages": HELLO, "prefill_response": "<think>so</think>then"}, False),
        ({"prompt": "a<think>b"}, True),
        ({"prompt": "a<think>b</think>"}, False),
    ],
)
def test_open_thinking_is_noticed(fields: dict[str, Any], inside: bool) -> None:
    """Whether the answer starts within a thought is known from the assistant's turn, not from what users write."""
    assert (preparer().prepare(job(**fields)).begins == "reasoning") is inside


def test_ends_of_a_line() -> None:
    """EOS are the model's and the line's own: special tokens, or text that is a single token."""
    line = preparer().prepare(job(prompt="ab", extra_eos_tokens=["<|end|>", "z"]))
    assert line.eos == {1, 4, ord("z")}
    assert set(line.xtc_exempt) == {0, 10, 1, 4, ord("z")}


@pytest.mark.parametrize(
    ("fields", "code", "field", "part"),
    [
        ({"prompt": "a", "extra_eos_tokens": ["zz"]}, "unsupported", "extra_eos_tokens", "'zz'"),
        ({"prompt": "a", "logit_bias": {"300": 1}}, "out_of_range", "logit_bias", "300"),
        ({"prompt": "a" * 49}, "context_length_exceeded", "prompt", "50 tokens and the context 50"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported", "messages", "roles must alternate"),
        ({"prompt": "日"}, "unsupported", "prompt", "vocabulary"),
    ],
)
def test_refusals(fields: dict[str, Any], code: str, field: str, part: str) -> None:
    """What this model cannot do is refused with the field and the numbers."""
    with pytest.raises(LineError) as caught:
        preparer().prepare(job(**fields))
    assert (caught.value.code, caught.value.field) == (code, field)
    assert part in caught.value.message


def test_no_template() -> None:
    """Messages need a chat template."""
    tokenizer = Letters()
    tokenizer.has_chat_template = False
    with pytest.raises(LineError, match="no chat template"):
        preparer(tokenizer=tokenizer).prepare(job(messages=HELLO))


def test_no_tokens() -> None:
    """A prompt that a tokenizer without BOS makes nothing of is refused."""

    class Silent(Letters):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return []

    with pytest.raises(LineError, match="no tokens"):
        preparer(tokenizer=Silent()).prepare(job(prompt="a"))


def test_max_context_overrides_and_unknown_context_passes() -> None:
    """--max-context decides when it is given; a model of unknown context takes any prompt."""
    assert len(preparer(max_context=80).prepare(job(prompt="a" * 60)).prompt) == 61
    assert len(preparer(context=None).prepare(job(prompt="a" * 900)).prompt) == 901
    with pytest.raises(LineError, match="context 20"):
        preparer(max_context=20).prepare(job(prompt="a" * 30))


def test_key_is_the_callers() -> None:
    """A line goes by the caller's key, or by its id."""
    assert preparer().prepare(job(prompt="a"), key=("shard", 3)).key == ("shard", 3)
    assert preparer().prepare(job(prompt="a")).key == "x"


def test_parts_without_mlx_do_not_import_it() -> None:
    """Sequences, scheduler, text and prompts can be used where MLX is not installed."""
    import subprocess
    import sys

    script = (
        "import sys, worker.engine.sequence, worker.engine.scheduler\n"
        "import worker.engine.text.completion, worker.engine.prompts.prepare\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'mlx', 'mlx_lm', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
