"""Token ids and validity from file to record, and in the formats of results."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 120.0
USER = {"role": "user", "content": "What is 2 + 3?"}
ASKED = {"return_token_ids": True, "logprobs": True}
LINES: list[dict[str, Any]] = [
    {"id": "chat", "messages": [USER], **ASKED},
    {"id": "several", "prompt": "Once upon a time", "n": 2, "temperature": 1, "seed": 1, "stop": ["the"], **ASKED},
    {"custom_id": "openai", "body": {"messages": [USER], "max_tokens": 5, **ASKED}},
    {"id": "plain", "messages": [USER], "logprobs": True},
    {"id": "choice", "messages": [USER], "guided_choice": ["red", "blue"]},
    {"id": "cut", "messages": [USER], "guided_regex": "[a-z]{40}", "max_tokens": 40, "return_token_ids": True},
]


def run(data: Path, *arguments: str | Path) -> str:
    """Run a file of the lines to its end; what is said on stderr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "RQ_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "submit.cli", "run", *map(str, arguments), "--model", MODEL],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True, env=kept | {"PROMPTMILL_DATA_DIR": str(data)},
    )  # fmt: skip
    return done.stderr


def read(path: Path) -> dict[str, Any]:
    """The lines of a file of results by id."""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return {line.get("custom_id") or line["id"]: line for line in lines}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in LINES))
    return path


def test_ids_and_logprobs_are_aligned_one_to_one(source: Path, tmp_path: Path) -> None:
    """The ids are those of the prompt and of everything that was generated, the usage counts them, and each new one has
    its log-probability; a line that asks for no ids has the records it always had."""
    said = run(tmp_path, source, "-o", tmp_path / "out.jsonl")
    records = read(tmp_path / "out.jsonl")
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    for name in ("chat", "several", "openai"):
        record = records[name]
        choices = record.get("choices") or [record]
        assert len(record["prompt_token_ids"]) == record["usage"]["prompt_tokens"]
        assert sum(len(choice["token_ids"]) for choice in choices) == record["usage"]["completion_tokens"]
        for choice in choices:
            assert [entry["id"] for entry in choice["logprobs"]] == choice["token_ids"]
            assert all(entry["logprob"] <= 0 for entry in choice["logprobs"])
    assert records["several"]["prompt_token_ids"] == tokenizer.encode("Once upon a time")
    assert "What is 2 + 3?" in tokenizer.decode(records["chat"]["prompt_token_ids"])
    assert records["chat"]["token_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(records["chat"]["token_ids"], skip_special_tokens=True).endswith(records["chat"]["text"])
    assert all("the" in tokenizer.decode(choice["token_ids"]) for choice in records["several"]["choices"])
    assert records["plain"].keys().isdisjoint({"token_ids", "prompt_token_ids", "valid"})
    assert len(records["plain"]["logprobs"]) == records["plain"]["usage"]["completion_tokens"] - 1
    assert (records["choice"]["valid"], records["choice"]["sampling"]["constraint"]) == (True, "choice")
    assert records["choice"]["text"] in ("red", "blue")
    assert (records["cut"]["valid"], records["cut"]["stop_reason"]) == (False, "max_tokens")
    assert "logprobs" not in records["cut"]
    assert "1 text is not valid (cut by: 1 max_tokens)" in said.splitlines()


def test_openais_format_has_them_where_vllm_does(source: Path, tmp_path: Path) -> None:
    """And says too whether a text is valid."""
    run(tmp_path, source, "-o", tmp_path / "out.jsonl", "--format", "openai")
    bodies = {name: line["response"]["body"] for name, line in read(tmp_path / "out.jsonl").items()}
    (chat,) = bodies["chat"]["choices"]
    assert len(bodies["chat"]["prompt_token_ids"]) == bodies["chat"]["usage"]["prompt_tokens"]
    assert [entry["id"] for entry in chat["logprobs"]["content"]] == chat["token_ids"]
    for choice in bodies["several"]["choices"]:
        assert len(choice["prompt_token_ids"]) == bodies["several"]["usage"]["prompt_tokens"]
        offsets = choice["logprobs"]["text_offset"]
        assert len(offsets) == len(choice["token_ids"])
        assert all(0 <= one <= other <= len(choice["text"]) for one, other in pairwise(offsets))
    assert [bodies[name]["choices"][0].get("valid") for name in ("choice", "cut", "plain")] == [True, False, None]
