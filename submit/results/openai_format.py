"""OpenAI's side of results: the envelopes of its Batch API, and the bodies inside them."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from jobs.lines.line import CHAT_URL, COMPLETIONS_URL, Job

STATUS_CODES = {
    "invalid_json_line": 400,
    "invalid_type": 400,
    "out_of_range": 400,
    "unknown_field": 400,
    "missing_field": 400,
    "conflicting_fields": 400,
    "duplicate_custom_id": 400,
    "unsupported": 400,
    "invalid_schema": 400,
    "context_length_exceeded": 400,
    "model_load_failed": 503,
}
"""HTTP statuses of failures; what is not listed is 500."""

UNANSWERED = {"cancelled": "batch_cancelled", "expired": "batch_expired", "timeout": "request_timeout"}
"""Failures without a response, under OpenAI's codes."""

UNLIKE_OPENAI = ("valid", "tool_call_error", "token_ids")
"""What a choice says that OpenAI's have no field for; the last is vLLM's name."""

BREAKS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))
"""What Python's ``splitlines`` takes for the end of a line and JSON does not escape, as UTF-8 and escaped."""


def json_line(shown: dict[str, Any]) -> bytes:
    """An object as a line of JSON that stays one line where a client splits text at every break that Unicode knows."""
    line = orjson.dumps(shown, option=orjson.OPT_APPEND_NEWLINE)
    for raw, escaped in BREAKS:
        line = line.replace(raw, escaped)
    return line


def choices_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The completions of a result record, one or several, in one shape."""
    choices: list[dict[str, Any]] = record.get("choices") or [{**record, "index": 0}]
    return choices


def envelope(record: dict[str, Any], endpoint: Callable[[], str]) -> dict[str, Any]:
    """The envelope of a record; ``endpoint()`` is asked where the line was not in OpenAI's format."""
    name = f"{record['batch_id']}_{record['index']}"
    wrapped = {"id": f"batch_req_{name}", "custom_id": record["id"], "response": None, "error": None}
    failure = record.get("error")
    if failure is None:
        url = record.get("endpoint") or endpoint()
        body = _body(record, name, url)
        return {**wrapped, "response": {"status_code": 200, "request_id": f"req_{name}", "body": body}}
    code = failure["code"]
    if code in UNANSWERED:
        return {**wrapped, "error": {"code": UNANSWERED[code], "message": failure["message"]}}
    status = STATUS_CODES.get(code, 500)
    kind = "invalid_request_error" if status == 400 else "server_error"
    error = {"message": failure["message"], "type": kind, "param": failure["param"], "code": code}
    return {**wrapped, "response": {"status_code": status, "request_id": f"req_{name}", "body": {"error": error}}}


def _body(record: dict[str, Any], name: str, url: str) -> dict[str, Any]:
    chat = url == CHAT_URL
    choice = _chat_choice if chat else partial(_text_choice, top=record.get("sampling", {}).get("top_logprobs", 0))
    # OpenAI has no fields for these. vLLM has one for the prompt's tokens: beside a chat's choices, in a completion's.
    beside, prompt = _present(record, "adapter_path", "warnings"), _present(record, "prompt_token_ids")
    beside, own = (beside | prompt, {}) if chat else (beside, prompt)
    names = UNLIKE_OPENAI if chat else ("prompt_token_ids", *UNLIKE_OPENAI)
    return {
        "id": f"chatcmpl-{name}" if chat else f"cmpl-{name}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(datetime.fromisoformat(record["created_at"]).timestamp()),
        "model": record["model"],
        "choices": [{**choice(each), **own, **_present(each, *names)} for each in choices_of(record)],
        "usage": record["usage"],
        **({} if (revision := record.get("model_revision")) is None else {"system_fingerprint": revision}),
        **beside,
    }


def _present(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of the fields that are there."""
    return {name: fields[name] for name in names if name in fields}


def _chat_choice(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice.get("tool_calls")
    text = None if calls and not choice["text"].strip() else choice["text"]
    message = {"role": "assistant", "content": text, "refusal": None}
    if "reasoning" in choice:
        message["reasoning_content"] = choice["reasoning"]
    if calls:
        message["tool_calls"] = calls
    entries = choice.get("logprobs")
    return {
        "index": choice["index"],
        "message": message,
        "logprobs": None if entries is None else {"content": entries, "refusal": None},
        "finish_reason": choice["finish_reason"],
        **_scores(choice),
    }


def _text_choice(choice: dict[str, Any], top: int) -> dict[str, Any]:
    entries = choice.get("logprobs")
    shown = {
        "text": choice["text"],
        "index": choice["index"],
        "logprobs": None if entries is None else _text_logprobs(entries, choice["text"], top),
        "finish_reason": choice["finish_reason"],
        **_scores(choice),
    }
    if "reasoning" in choice:
        shown["reasoning_content"] = choice["reasoning"]
    return shown


def _scores(choice: dict[str, Any]) -> dict[str, Any]:
    """Scores of texts that were there, which OpenAI has no fields for; vLLM has the first."""
    return {name: choice[name] for name in ("prompt_logprobs", "score") if name in choice}


def _text_logprobs(entries: list[dict[str, Any]], text: str, top: int) -> dict[str, Any]:
    """Token entries as completions show them: parallel lists, offsets into the text. Where ``top`` alternatives were
    wanted there is a list of them, though an echo of one token has none.

    A token that begins within a character has the place of that character. Where a thought or a first space stands
    before the text in the tokens, those before it have the place 0. No place is beyond the text's end, where a thought
    stands in its midst or a stop string was cut off.
    """
    written, offsets = _offsets([_bytes_of(entry) for entry in entries])
    before = 0 if written.startswith(text) else max(written.rfind(text), 0)
    alternatives = [entry.get("top_logprobs", []) for entry in entries]  # null beside a first token of an echo
    tops = [None if found is None else _by_token(found) for found in alternatives]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if top else None,
        "text_offset": [min(max(offset - before, 0), len(text)) for offset in offsets],
    }


def _offsets(pieces: list[bytes]) -> tuple[str, list[int]]:
    """The text of some pieces, and the place of the character in it that each piece begins with or in."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    written, offsets = "", []
    for data in pieces:
        written += decoder.decode(data[:1])
        complete = bool(data) and not decoder.getstate()[0]
        offsets.append(len(written) - complete)
        written += decoder.decode(data[1:])
    return written, offsets


def _by_token(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Alternatives by their tokens' text; of tokens of the same text all but the likeliest by their ids."""
    found: dict[str, float] = {}
    for entry in entries:
        name = entry["token"] if entry["token"] not in found else f"token_id:{entry.get('id')}"
        found[name] = entry["logprob"]
    return found


def _bytes_of(entry: dict[str, Any]) -> bytes:
    """What a token adds to the text; records of older workers have no bytes for parts of characters."""
    data = entry.get("bytes")
    return entry["token"].encode() if data is None else bytes(data)


def endpoint_of(job: Job) -> str:
    """The endpoint that a native line would have gone to."""
    return COMPLETIONS_URL if job.messages is None else CHAT_URL
