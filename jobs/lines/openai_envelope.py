"""OpenAI's batch line: an envelope with the user's id and the url around a body of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.errors import LineError
from jobs.lines.fields import gather, lacks_prompt, no_prompt
from jobs.lines.foreign_names import is_empty
from jobs.params import SHOWN_NAME, did_you_mean, shown

CHAT_URL, COMPLETIONS_URL = "/v1/chat/completions", "/v1/completions"
FIELDS = frozenset({"custom_id", "method", "url", "body"})
OTHER_URLS: Mapping[str, str] = {
    "/responses": "its 'input' is 'messages' here",
    "/messages": "Anthropic's 'system' is 'system_prompt' here, the rest is alike",
    "/embeddings": "texts are generated, nothing is embedded",
    "/moderations": "texts are generated, nothing is judged",
    "/images/generations": "texts are generated, no images",
}
"""Ends of urls that other requests have, with what there is to know of them."""


def open_envelope(data: Mapping[str, Any], problems: list[LineError]) -> tuple[dict[str, Any], str]:
    """The body's fields under canonical names, and the endpoint; what is wrong is added to ``problems``."""
    for key, value in data.items():
        if key not in FIELDS and not is_empty(value):
            hint = "; it is 'custom_id'" if key == "id" else did_you_mean(key, FIELDS) or "; parameters go into 'body'"
            message = f"is not a field of an OpenAI batch line{hint}"
            problems.append(LineError("unknown_field", key[:SHOWN_NAME], message))
    method = data.get("method")
    if not is_empty(method) and not (isinstance(method, str) and method.upper() == "POST"):
        problems.append(LineError("unsupported", "method", f"must be POST, not {shown(method)}"))
    url = _endpoint(data.get("url"), problems)
    body = _translated(data["body"], problems)
    fields = gather(body, problems, openai=True)
    if lacks_prompt(body):
        problems.append(no_prompt())
    endpoint = CHAT_URL if "messages" in fields else COMPLETIONS_URL
    if url not in (None, endpoint) and not problems:
        wanted = "messages" if url == CHAT_URL else "prompt"
        problems.append(LineError("conflicting_fields", "url", f"{url} takes '{wanted}' in the body"))
    return fields, endpoint


def _endpoint(url: Any, problems: list[LineError]) -> str | None:
    """Which of our two endpoints a url is: with or without a host, a version and a query; None where there is none."""
    if url in (None, CHAT_URL, COMPLETIONS_URL) or is_empty(url):
        return url or None
    path = url.partition("?")[0].rstrip("/") if isinstance(url, str) else ""
    for endpoint in (CHAT_URL, COMPLETIONS_URL):
        if path.endswith(endpoint.removeprefix("/v1")):
            return endpoint
    known = next((f": {words}" for end, words in OTHER_URLS.items() if path.endswith(end)), "")
    message = f"must be {CHAT_URL} or {COMPLETIONS_URL}, not {shown(url)}{known}"
    problems.append(LineError("unsupported", "url", message))
    return None


def _translated(body: Mapping[str, Any], problems: list[LineError]) -> dict[str, Any]:
    """An OpenAI body under our names; nulls are dropped."""
    translated = {key: value for key, value in body.items() if value is not None}
    if "max_completion_tokens" in translated:
        most = translated.pop("max_completion_tokens")
        if translated.setdefault("max_tokens", most) != most:
            message = "max_tokens and max_completion_tokens differ; give one"
            problems.append(LineError("conflicting_fields", "max_tokens", message))
    asked = translated.get("logprobs")
    if type(asked) is int or (type(asked) is float and asked.is_integer()):
        translated["logprobs"] = True
        translated.setdefault("top_logprobs", asked)
    return translated
