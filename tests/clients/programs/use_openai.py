"""OpenAI's client against real texts: every answer, and every line of a batch's results, checked by its own types."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
from checks import check
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion

MODEL = os.environ["MODEL"]
MESSAGES: Any = [{"role": "user", "content": "What is the opposite of light?"}]
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 20}}, "required": ["answer"],
          "additionalProperties": False}  # fmt: skip
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                                             "required": ["city"]}}  # fmt: skip
TOOLS: Any = [{"type": "function", "function": WEATHER}]
DEADLINE_S = 120.0

client = OpenAI(_strict_response_validation=True, max_retries=0, timeout=60)


def say(name: str, act: Callable[[], object]) -> None:
    """A check that passes where nothing is raised and what comes back is not false."""
    try:
        found = act()
    except Exception as error:
        check(name, False, f"{type(error).__name__}: {error}")
    else:
        check(name, found is not False, f"got {found!r:.100}")


def chat(**fields: Any) -> ChatCompletion:
    return client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, "max_tokens": 24, **fields})


def text(**fields: Any) -> Completion:
    return client.completions.create(**{"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, **fields})


def logprobs_of_a_chat() -> bool:
    choice = chat(logprobs=True, top_logprobs=3).choices[0]
    entries = (choice.logprobs and choice.logprobs.content) or []
    return len(entries) > 0 and all(len(entry.top_logprobs) == 3 for entry in entries)


def logprobs_of_a_text() -> bool:
    choice = text(logprobs=2).choices[0]
    return choice.logprobs is not None and len(choice.logprobs.tokens or []) > 0


def a_schema_is_kept() -> bool:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    return list(json.loads(chat(response_format=form, max_tokens=60).choices[0].message.content or "")) == ["answer"]


def a_tool_is_called() -> bool:
    (call,) = chat(tools=TOOLS, tool_choice="required", max_tokens=60).choices[0].message.tool_calls or []
    return call.type == "function" and json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


async def _asked_at_once() -> bool:
    async with AsyncOpenAI(_strict_response_validation=True, max_retries=0) as at_once:
        asked = [at_once.completions.create(model=MODEL, prompt=f"{n}:", max_tokens=4) for n in range(20)]
        return len({answer.id for answer in await asyncio.gather(*asked)}) == 20


def refused(kind: type[openai.APIStatusError], **fields: Any) -> bool:
    try:
        chat(**fields)
    except kind as error:
        return bool(error.request_id and error.code and error.param)
    return False


def lines(url: str, bodies: list[dict[str, Any]]) -> bytes:
    made = (
        {"custom_id": f"row-{n}", "method": "POST", "url": url, "body": {"model": MODEL, "max_tokens": 8, **body}}
        for n, body in enumerate(bodies)
    )
    return b"\n".join(json.dumps(line).encode() for line in made)


def results(endpoint: Any, bodies: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of a batch's results."""
    file = client.files.create(file=("in.jsonl", lines(endpoint, bodies)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    deadline = time.monotonic() + DEADLINE_S
    while (batch := client.batches.retrieve(batch.id)).status in ("validating", "in_progress", "finalizing"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the batch is {batch.status} after {DEADLINE_S:.0f} s")
        time.sleep(0.1)
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        yield from map(json.loads, client.files.content(file_id).text.splitlines())


def a_batch_of_chats() -> bool:
    bodies = [
        {"messages": MESSAGES},
        {"messages": MESSAGES, "n": 2, "logprobs": True, "top_logprobs": 2},
        {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "max_tokens": 60},
        {"messages": MESSAGES, "temperature": -1},
    ]
    found = {line["custom_id"]: line["response"] for line in results("/v1/chat/completions", bodies)}
    for name in ("row-0", "row-1", "row-2"):
        ChatCompletion.model_validate(found[name]["body"], strict=True)
    return found["row-3"]["status_code"] == 400 and len(found) == 4


def a_batch_of_texts() -> bool:
    found = list(results("/v1/completions", [{"prompt": "One"}, {"prompt": "Two", "logprobs": 1}]))
    return len([Completion.model_validate(line["response"]["body"], strict=True) for line in found]) == 2


def files_page_by_page() -> bool:
    made = [client.files.create(file=(f"{n}.jsonl", b"{}"), purpose="batch").id for n in range(5)]
    seen = [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")]
    whole = all(client.files.delete(file_id).deleted for file_id in made)
    return whole and [file_id for file_id in seen if file_id in made] == made


def batches_page_by_page() -> bool:
    made = [
        client.batches.create(input_file_id=f"file-{n}", endpoint="/v1/completions", completion_window="24h").id
        for n in range(5)
    ]
    seen = [batch.id for batch in client.batches.list(limit=2)]
    cancelled = client.batches.cancel(made[-1]).status if client.batches.retrieve(made[-1]).status != "failed" else ""
    return [batch_id for batch_id in seen if batch_id in made] == made[::-1] and cancelled in ("", "cancelling")


say("models: list, retrieve", lambda: client.models.retrieve(client.models.list().data[0].id).id == MODEL)
say("chat", lambda: bool(chat().choices[0].message.content))
say("chat: n, seed, stop, logit_bias", lambda: len(chat(n=3, seed=1, stop=["z"], logit_bias={"5": -100}).choices) == 3)
say("chat: logprobs", logprobs_of_a_chat)
say("chat: a JSON schema", a_schema_is_kept)
say("chat: a call of a tool", a_tool_is_called)
say("chat: an error names the field", lambda: refused(openai.BadRequestError, temperature=-1))
say("chat: a model that is not served", lambda: refused(openai.NotFoundError, model="nobody/has-it"))
say("chat: a stream is refused by name", lambda: refused(openai.BadRequestError, stream=True))
say("completions", lambda: bool(text().choices[0].text))
say("completions: logprobs", logprobs_of_a_text)
say("completions: 20 at once, by the asynchronous client", lambda: asyncio.run(_asked_at_once()))
say("files: create, list in pages, delete", files_page_by_page)
say("batches: create, list in pages, cancel", batches_page_by_page)
say("a batch of chats, its results by the client's types", a_batch_of_chats)
say("a batch of completions, its results by the client's types", a_batch_of_texts)
