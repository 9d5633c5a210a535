"""Names of other tools: each is answered with what to write here."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.foreign_names import EXPLAINED, RENAMED, UNSUPPORTED, WRAPPERS
from jobs.lines.guided import GUIDED_CHECKS
from jobs.lines.line import Defaults, check_line
from jobs.params import ALIASES, PARAMETERS
from submit.data.open import open_input, order_of
from tests.programs import needs

FIELDS = {*PARAMETERS, *ALIASES, "prompt", "messages", "system_prompt", "prefill_response", "chat_template_kwargs",
          "model", "adapter_path", "metadata", "expect", "re_ask", *GUIDED_CHECKS}  # fmt: skip


def refused(line: dict[str, Any]) -> LineError:
    with pytest.raises(LineError) as caught:
        check_line(orjson.dumps(line))
    return caught.value


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("max_length", 5, "max_tokens"), ("num_predict", 5, "max_tokens"), ("n_predict", 5, "max_tokens"),
        ("maxOutputTokens", 5, "max_tokens"), ("maxTokens", 5, "max_tokens"), ("max_tokens_to_sample", 5, "max_tokens"),
        ("maxTokenCount", 5, "max_tokens"), ("repeat_penalty", 1.1, "repetition_penalty"),
        ("repeat_last_n", 64, "repetition_context_size"), ("topP", 0.9, "top_p"), ("topK", 5, "top_k"),
        ("top-p", 0.9, "top_p"), ("Temperature", 1, "temperature"), ("stopSequences", ["a"], "stop"),
        ("stop_sequences", ["a"], "stop"), ("candidateCount", 2, "n"), ("system", "be kind", "system_prompt"),
        ("systemInstruction", {"parts": []}, "system_prompt"), ("random_seed", 1, "seed"),
        ("lora_path", "x", "adapter_path"),
    ],
)  # fmt: skip
def test_other_names_of_parameters_name_ours(name: str, value: Any, ours: str) -> None:
    """In lines of both formats, and as a batch's default."""
    for line in ({"prompt": "x", name: value}, {"body": {"prompt": "x", name: value}}):
        error = refused(line)
        assert (error.code, error.field, error.message) == ("unknown_field", name, f"is '{ours}' here")
    with pytest.raises(LineError, match=f"is '{ours}' here"):
        Defaults({name: value})


@pytest.mark.parametrize("name", ["sampling_params", "options", "generationConfig", "extra_body", "inferenceConfig"])
def test_objects_of_parameters_are_unpacked_in_words(name: str) -> None:
    """What they hold is named too, where it has another name here."""
    error = refused({"prompt": "x", name: {"temperature": 1, "num_predict": 5}})
    assert error.code == "unknown_field"
    assert "write its fields beside 'prompt' or 'messages'; 'num_predict' is 'max_tokens' here" in error.message
    assert "metadata" not in error.message


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, "instruction", "an Alpaca row"),
        ({"instruction": "a", "output": "c"}, "instruction", "an Alpaca row"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "conversations", "a ShareGPT row"),
        ({"question": "a", "answer": "b"}, "question", "say what to ask of each row: --user '{{ question }}'"),
        ({"id": "s", "instruction": "a", "instances": [{"input": "b"}]}, "instruction", "a self-instruct row"),
        ({"instruction": "a"}, "instruction", "--user '{{ instruction }}'"),
        ({"question": "a"}, "question", "say what to ask of each row: --user '{{ question }}'"),
        ({"data": [{"prompt": "a"}, {"prompt": "b"}]}, "data", "jq -c '.[\"data\"][]' FILE > lines.jsonl"),
        ({"requests": [{"custom_id": "a", "params": {}}]}, "requests", "jq -c '.[\"requests\"][]' FILE"),
        ({"text": "a"}, "text", "--prompt '{{ text }}'"),
        ({"text": "a", "label": 1}, "text", "--prompt '{{ text }}'"),
        ({"custom_id": "a", "params": {"max_tokens": 5, "messages": []}}, "custom_id", "Anthropic's envelope"),
        ({"recordId": "a", "modelInput": {"inputText": "x"}}, "recordId", "Bedrock's envelope"),
        ({"key": "a", "request": {"contents": []}}, "key", "Gemini's envelope"),
        ({"id": "r", "custom_id": "a", "response": {}, "error": None}, "custom_id", "a result of OpenAI's batches"),
    ],
)
def test_rows_of_other_tools_are_one_problem(line: dict[str, Any], field: str, said: str) -> None:
    """However many fields they have: what the line is, and what makes lines of the file."""
    error = refused(line)
    assert (error.code, error.field, error.also) == ("unknown_field", field, ())
    assert said in error.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"inputs": "x"}, "is 'prompt' here"),
        ({"inputText": "x"}, "is 'prompt' here"),
        ({"contents": [{"role": "user", "parts": [{"text": "x"}]}]}, "is 'messages' here"),
        ({"input": "x"}, "is 'prompt' here"),
        ({"prompts": ["a", "b"]}, "one line for each, or a list"),
    ],
)
def test_other_names_of_the_prompt_name_ours(line: dict[str, Any], said: str) -> None:
    """The prompt itself is what other tools call most differently."""
    assert said in refused(line).message


def test_cures_of_rows_make_lines(tmp_path: Path) -> None:
    """The flags that are named make lines of the rows, with the input of an instruction and the user's id."""
    pytest.importorskip("jinja2")
    rows: list[tuple[dict[str, Any], str | None, str]] = [
        ({"id": "s", "instruction": "a", "instances": [{"input": "b", "output": "c"}]}, "s", "a b"),
        ({"instruction": "a", "input": "b", "output": "c"}, None, "a b"),
        ({"instruction": "a", "output": "c"}, None, "a"),
        ({"instruction": "a"}, None, "a"),
        ({"question": "a", "answer": "b"}, None, "a"),
        ({"question": "a"}, None, "a"),
        ({"text": "a"}, None, "a"),
    ]
    for row, name, content in rows:
        flags = shlex.split(refused(row).message.partition("of each row: ")[2])
        said = dict(zip((flag[2:].replace("-", "_") for flag in flags[::2]), flags[1::2], strict=True))
        (tmp_path / "rows.jsonl").write_bytes(orjson.dumps(row))
        with open_input(str(tmp_path / "rows.jsonl"), order_of(dict(said))) as prompts:
            [(_, raw)] = prompts
        assert isinstance(raw, bytes)
        line = check_line(raw)
        asked = line.fields.get("prompt") or line.fields["messages"][0]["content"]
        assert (line.id, asked) == (name, content)


@needs("jq")
def test_a_file_around_rows_is_cured_by_jq() -> None:
    """Run as it is printed: what comes out is taken."""
    row = {"data": [{"id": "d", "messages": [{"role": "user", "content": "a"}]}]}
    found = re.search(r"jq -c '(.*)' FILE > lines.jsonl$", refused(row).message)
    assert found is not None
    made = subprocess.run(["jq", "-c", found[1]], input=orjson.dumps(row), stdout=subprocess.PIPE, check=True).stdout
    assert check_line(made).id == "d"


def test_a_prompt_that_is_no_list_is_not_told_to_be_split() -> None:
    """What to do with several prompts is no remedy for a number."""
    assert refused({"prompt": 5}).message == "must be a string, not a number"


def test_an_id_of_an_openai_line_is_its_custom_id() -> None:
    """Beside the body and in it: it is no parameter, and no data for metadata."""
    body = {"prompt": "x"}
    assert refused({"id": "a", "body": body}).message == "is not a field of an OpenAI batch line; it is 'custom_id'"
    assert refused({"body": {**body, "id": "a"}}).message == "goes beside 'body' as 'custom_id', not into it"


def test_an_openai_line_without_its_body_is_one_problem() -> None:
    """Not three fields that belong into metadata."""
    error = refused({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"})
    assert (error.code, error.field, error.also) == ("missing_field", "body", ())
    error = refused({"custom_id": "a", "prompt": "x"})
    assert (error.code, error.field, error.also) == ("missing_field", "body", ())
    assert "'custom_id' is 'id'" in error.message


@pytest.mark.parametrize("name", ["my_column", "answer", "label", "source", "difficulty"])
def test_metadata_is_named_for_what_is_no_parameter_anywhere(name: str) -> None:
    """The user's own columns."""
    assert refused({"prompt": "x", name: "a"}).message == (
        "is not a field of a line; put your own data into 'metadata', or make lines of the rows of a table: "
        "--prompt '{{ prompt }}'"
    )


@pytest.mark.parametrize("name", ["question", "instruction", "input", "thinking", "documents"])
def test_columns_beside_the_prompt_that_was_made_of_them_are_the_users_own(name: str) -> None:
    """A text of this name, where the line has its prompt already, is data."""
    assert "metadata" in refused({"prompt": "x", name: "a"}).message


def test_no_foreign_name_is_sent_to_metadata() -> None:
    """Each has a remedy of its own."""
    for name in {*RENAMED, *WRAPPERS, *UNSUPPORTED, *EXPLAINED}:
        error = refused({"prompt": "x", name: {"a": 1}})
        assert error.field in (name, "body"), name
        assert "'metadata'" not in error.message or name == "extra", name


def test_the_tables_name_what_there_is() -> None:
    """Whatever is renamed is a field, and nothing that is a field is foreign."""
    assert set(RENAMED.values()) <= FIELDS
    foreign = [*RENAMED, *WRAPPERS, *UNSUPPORTED, *EXPLAINED]
    assert not FIELDS & set(foreign)
    assert len(foreign) == len(set(foreign)), sorted(name for name in foreign if foreign.count(name) > 1)
