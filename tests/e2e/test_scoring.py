"""Scores by every way to a pool: Python, and HTTP with and without a batch; with an adapter and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from jobs.lines.line import CHAT_URL, COMPLETIONS_URL
from promptmill import Client
from submit.results.openai_format import envelope
from tests.commands import promptmill
from tests.engine.test_adapters import save_adapter
from tests.servers import running_server
from tests.serving import serving
from tests.waiting import until

POCKET = Path(__file__).parents[2] / "examples" / "pocket" / "model"
MODEL = str(POCKET)
TEXT, OTHER = "Once upon a time there was a duck", "What is 2 + 3? 5"
ECHO = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "return_token_ids": True}


def bodies(adapter: Path, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Every form in which clients ask for scores."""
    ids, others = tokenizer.encode(TEXT), tokenizer.encode(OTHER)
    question = [{"role": "user", "content": "What is 2 + 3?"}]
    forms = {
        "text": {"prompt": TEXT, **ECHO},
        "ids": {"prompt": ids, **ECHO},
        "texts": {"prompt": [TEXT, OTHER], **ECHO},
        "lists": {"prompt": [ids, others], **ECHO},
        "echo alone": {"prompt": TEXT, **ECHO, "max_tokens": 0},
        "adapter": {"prompt": TEXT, **ECHO, "adapter_path": str(adapter)},
        "listed": {"prompt": TEXT, "prompt_logprobs": 2, "max_tokens": 0, "return_token_ids": True},
        "continuation": {"prompt": TEXT, "continuation": " named Jack", "logprobs": 1, "return_token_ids": True},
        "answer": {"messages": question, "continuation": "5", "prompt_logprobs": 0, "return_token_ids": True},
    }
    return {name: {"model": MODEL, **form} for name, form in forms.items()}


def url_of(body: dict[str, Any]) -> str:
    return CHAT_URL if "messages" in body else COMPLETIONS_URL


def said(answer: dict[str, Any]) -> list[Any]:
    """What an answer says of scores, whatever way it came."""
    beside = answer.get("prompt_token_ids")
    names = ("prompt_token_ids", "token_ids", "logprobs", "prompt_logprobs", "score")
    return [*({name: choice.get(name) for name in names} for choice in answer["choices"]), beside]


def near(value: Any) -> Any:
    """What equals it but for rounding: what is computed beside a prompt may be another each time."""
    if isinstance(value, dict):
        return {name: near(held) for name, held in value.items()}
    if isinstance(value, list):
        return [near(held) for held in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


class Pool:
    """A server over HTTP, its Redis, and the bodies that its worker can run."""

    def __init__(self, url: str, redis_url: str, asked: dict[str, dict[str, Any]]) -> None:
        self.url, self.redis_url, self.asked = url, redis_url, asked

    def post(self, path: str, **given: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}{path}", timeout=60, **given)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def answers(self) -> dict[str, Any]:
        """What requests that wait are answered."""
        paths = {name: url_of(body).removeprefix("/v1") for name, body in self.asked.items()}
        return {name: self.post(paths[name], json=body) for name, body in self.asked.items()}

    def batch(self, url: str) -> dict[str, Any]:
        """What a batch over HTTP gives of the bodies for one of the endpoints."""
        asked = {name: body for name, body in self.asked.items() if url_of(body) == url}
        lines = [{"custom_id": name, "method": "POST", "url": url, "body": body} for name, body in asked.items()]
        data = "\n".join(map(json.dumps, lines))
        file = self.post("/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})
        made = {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"}
        batch_id = self.post("/batches", json=made)["id"]

        def ended() -> dict[str, Any] | None:
            now = httpx.get(f"{self.url}/batches/{batch_id}").json()
            return now if now["status"] in ("completed", "failed") else None

        batch = until(ended, "the batch ends")
        text = httpx.get(f"{self.url}/files/{batch['output_file_id']}/content").text
        return {line["custom_id"]: line["response"]["body"] for line in map(json.loads, text.splitlines())}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("pool")
    adapter = save_adapter(folder / "adapter", POCKET, seed=1)
    flags = ["--model", MODEL, "--adapter-path", str(adapter)]
    with running_server() as redis_url, (folder / "worker.log").open("wb") as log:
        environ = {**os.environ, "PROMPTMILL_REDIS_URL": redis_url}
        command = [sys.executable, "-P", "-m", "worker", *flags]
        with subprocess.Popen(command, stdout=log, stderr=log, env=environ) as worker:
            try:
                with serving(redis_url, folder / "files") as server:
                    until(lambda: httpx.get(f"{server.url}/models").json()["data"], "the worker serves", seconds=60)
                    yield Pool(server.url, redis_url, bodies(adapter, AutoTokenizer.from_pretrained(MODEL)))
            finally:
                worker.terminate()
                worker.wait(60)


def test_every_way_has_the_same_scores(pool: Pool) -> None:
    """By Python, in requests and in batches over HTTP every form has the same ids and log-probabilities. The batch
    counts the tokens that were scored, and `status` says them."""
    answers = pool.answers()
    over_http = pool.batch(COMPLETIONS_URL) | pool.batch(CHAT_URL)
    with Client(pool.redis_url) as client:
        batch = client.submit(
            {"custom_id": name, "url": url_of(body), "body": body} for name, body in pool.asked.items()
        )
        records = {record["id"]: record for record in batch.results(follow=True)}
        scored = batch.status().usage.scored_tokens
    assert list(batch.errors()) == []
    for name, body in pool.asked.items():
        shown = envelope(records[name], lambda body=body: url_of(body))["response"]["body"]
        assert said(shown) == near(said(answers[name])), name
        assert said(over_http[name]) == near(said(answers[name])), name
    # All but the first token of each prompt, and of the continuation without a list its own.
    read = sum(answer["usage"]["prompt_tokens"] - len(answer["choices"]) for answer in answers.values())
    unlisted = answers["continuation"]["usage"]["prompt_tokens"] - 1
    assert scored == read - unlisted + answers["continuation"]["choices"][0]["score"]["tokens"]
    facts = promptmill("status", batch.id, "--redis", pool.redis_url).stdout
    assert f"{scored:,} scored" in facts


def test_ids_stand_beside_what_was_scored(pool: Pool) -> None:
    """Each choice of several prompts has its own `prompt_token_ids`. Lists of an echo cover those and `token_ids`, one
    to one; `prompt_logprobs` has an entry for each id, the continuation's among them."""
    answers, tokenizer = pool.answers(), AutoTokenizer.from_pretrained(MODEL)
    for name in ("texts", "lists"):
        found = [choice["prompt_token_ids"] for choice in answers[name]["choices"]]
        assert found == [tokenizer.encode(TEXT), tokenizer.encode(OTHER)], name
    for name in ("text", "ids", "texts", "lists", "echo alone", "adapter"):
        for choice in answers[name]["choices"]:
            ids = choice["prompt_token_ids"] + choice["token_ids"]
            assert {len(values) for values in choice["logprobs"].values()} == {len(ids)}, name
            assert choice["logprobs"]["tokens"] == [tokenizer.decode([token]) for token in ids], name
    [listed], [continued] = answers["listed"]["choices"], answers["continuation"]["choices"]
    assert [entry["id"] for entry in listed["prompt_logprobs"][1:]] == listed["prompt_token_ids"][1:]
    assert continued["prompt_token_ids"] == tokenizer.encode(TEXT + " named Jack")
    own = [entry["id"] for entry in continued["score"]["logprobs"]]
    assert own == continued["prompt_token_ids"][-continued["score"]["tokens"] :]
    [answer] = answers["answer"]["choices"]
    ids = answers["answer"]["prompt_token_ids"]
    assert len(answer["prompt_logprobs"]) == len(ids) == answers["answer"]["usage"]["prompt_tokens"]
    assert answers["adapter"]["choices"][0]["logprobs"] != answers["text"]["choices"][0]["logprobs"]
