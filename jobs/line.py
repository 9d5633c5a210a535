"""One line of a prompt file: checking it, and making it a :class:`Job`.

Checking (:func:`check_line`) is separate from building (:meth:`CheckedLine.job`): the submitter only checks,
and sends the line's own bytes; the worker checks again, because nothing that comes from Redis is trusted,
and builds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.errors import LineError
from jobs.messages import CHAT_FIELDS, check_continuing, check_flag, check_messages, unfit_defaults
from jobs.params import ALIASES, CHECKS, OPENAI_DEFAULTS, PARAMETERS, SHOWN_NAME, Sampling, did_you_mean, shown

__all__ = ["MAX_LINE_BYTES", "CheckedLine", "Defaults", "Job", "check_fields", "check_line", "derived_seed"]

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_ID_LENGTH = 256
MAX_DEPTH = 64
"""Levels of nesting of the objects a line may carry: they must also fit into a record, which orjson writes."""

CHAT_URL, COMPLETIONS_URL = "/v1/chat/completions", "/v1/completions"
OPENAI_ENVELOPE = frozenset({"custom_id", "method", "url", "body"})
OPENAI_IGNORED = frozenset({"user", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
OPENAI_UNSUPPORTED = frozenset({"tools", "tool_choice", "echo", "suffix", "best_of", "functions", "function_call"})
JOB_FIELDS = frozenset(
    {
        *CHAT_FIELDS,
        "add_generation_prompt",
        "prompt",
        "messages",
        "model",
        "adapter_path",
        "metadata",
        "response_format",
    }
)
KNOWN_FIELDS = (*JOB_FIELDS, *PARAMETERS, *ALIASES)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a batch gives to lines that do not say it themselves: a model, job fields and parameters."""

    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        checked = check_fields(dict(self.fields), openai=False)
        for name in ("prompt", "messages", "metadata"):
            if name in checked:
                raise LineError("unknown_field", name, "belongs to a line and cannot be a default of a batch")
        object.__setattr__(self, "fields", checked)

    @property
    def model(self) -> str | None:
        model: str | None = self.fields.get("model")
        return model

    @property
    def adapter_path(self) -> str | None:
        adapter: str | None = self.fields.get("adapter_path")
        return adapter


@dataclass(frozen=True, slots=True)
class Job:
    """One line, checked and with every value effective. ``index`` is 0-based among the file's non-blank lines."""

    id: str
    index: int
    line: int
    model: str
    adapter_path: str | None
    prompt: str | None
    messages: tuple[dict[str, Any], ...] | None
    system_prompt: str | None
    prefill_response: str | None
    continue_final_message: bool
    chat_template_kwargs: dict[str, Any]
    metadata: dict[str, Any]
    sampling: Sampling
    endpoint: str | None
    """``/v1/chat/completions`` or ``/v1/completions`` for OpenAI lines, None for native ones."""

    @property
    def turn(self) -> dict[str, Any] | None:
        """The assistant's message that the model goes on with; None where it begins one of its own."""
        if self.continue_final_message and self.messages is not None:
            return self.messages[-1]
        return None if self.prefill_response is None else {"role": "assistant", "content": self.prefill_response}

    @property
    def continues(self) -> bool:
        """Whether the model goes on with a text of the line's: a prompt, or a turn that has begun."""
        return self.messages is None or self.turn is not None

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """The messages before the assistant's turn, ``system_prompt`` among them."""
        messages = self.messages or ()
        if self.system_prompt is not None:
            messages = ({"role": "system", "content": self.system_prompt}, *messages)
        return messages[:-1] if self.continue_final_message else messages


@dataclass(frozen=True, slots=True)
class CheckedLine:
    """A line that keeps the contract: its id (None: default), its given fields by canonical name."""

    id: str | None
    fields: dict[str, Any]
    endpoint: str | None

    def id_at(self, line: int) -> str:
        return self.id if self.id is not None else f"line-{line}"

    def job(self, *, index: int, line: int, batch_id: str, defaults: Defaults) -> Job:
        """The job of this line within a batch.

        Raises:
            LineError: ``missing_field`` when neither the line nor the batch names a model.
        """
        fields = self._filled(defaults)
        if "model" not in fields:
            raise no_model()
        given = {name: fields[name] for name in PARAMETERS if name in fields}
        if self.endpoint is not None:
            given = {**OPENAI_DEFAULTS, **given}
        given.setdefault("seed", derived_seed(batch_id, index))
        return Job(
            id=self.id_at(line),
            index=index,
            line=line,
            model=fields["model"],
            adapter_path=fields.get("adapter_path"),
            prompt=fields.get("prompt"),
            messages=fields.get("messages"),
            system_prompt=fields.get("system_prompt"),
            prefill_response=fields.get("prefill_response"),
            continue_final_message=fields.get("continue_final_message", False),
            chat_template_kwargs=fields.get("chat_template_kwargs", {}),
            metadata=fields.get("metadata", {}),
            sampling=Sampling(**given),
            endpoint=self.endpoint,
        )

    def begins_after_answer(self, defaults: Defaults) -> bool:
        """Whether the last message is the assistant's, and the model is to begin a new turn after it all the same."""
        if "messages" not in self.fields or self.fields["messages"][-1]["role"] != "assistant":
            return False
        return not self._filled(defaults).get("continue_final_message", False)

    def _filled(self, defaults: Defaults) -> dict[str, Any]:
        """The line's fields, and those of the batch's that make sense beside them: no chat fields for a plain prompt,
        no top_logprobs alone."""
        given, filling = self.fields, dict(defaults.fields)
        unfit = list(CHAT_FIELDS) if "messages" not in given else unfit_defaults(given)
        if given.get("logprobs") is False:
            unfit.append("top_logprobs")
        for name in unfit:
            filling.pop(name, None)
        filled = {**filling, **given}
        if "chat_template_kwargs" in given:
            # Key by key: a line that says how much to think keeps the batch's other arguments.
            filled["chat_template_kwargs"] = {
                **filling.get("chat_template_kwargs", {}),
                **given["chat_template_kwargs"],
            }
        return filled


def derived_seed(batch_id: str, index: int) -> int:
    """The seed of a line that gives none: drawn with the batch's random id, the same in each attempt (0..2^64-1)."""
    digest = hashlib.blake2b(f"{batch_id}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def no_model() -> LineError:
    return LineError("missing_field", "model", "no model: give the line a 'model', or the batch one with --model")


def check_line(raw: bytes) -> CheckedLine:
    """Check one line of JSON against the contract.

    Raises:
        LineError: with one of the codes of the contract, the field and the remedy.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise LineError(
            "out_of_range",
            None,
            f"the line has {len(raw)} bytes; at most {MAX_LINE_BYTES} are taken: split it",
        )
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise LineError("invalid_json_line", None, f"not valid JSON: {_json_message(raw, error)}") from None
    if not isinstance(data, dict):
        raise LineError("invalid_type", None, f"must be a JSON object, not {_json_kind(data)}")
    return _openai_line(data) if isinstance(data.get("body"), dict) else _native_line(data)


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in items)


def _json_message(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start + 1} is not UTF-8; save the file as UTF-8"
    return f"{error.msg} at column {error.colno}"


def _json_kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _native_line(data: dict[str, Any]) -> CheckedLine:
    name = _check_id("id", data.pop("id", None))
    fields = check_fields(data, openai=False)
    _need_prompt(fields)
    return CheckedLine(name, fields, None)


def _openai_line(data: dict[str, Any]) -> CheckedLine:
    for key in data:
        if key not in OPENAI_ENVELOPE:
            hint = did_you_mean(key, OPENAI_ENVELOPE) or "; parameters go into 'body'"
            raise LineError("unknown_field", key[:SHOWN_NAME], f"is not a field of an OpenAI batch line{hint}")
    name = _check_id("custom_id", data.get("custom_id"))
    if data.get("method") not in (None, "POST"):
        raise LineError("unsupported", "method", f"must be POST, not {shown(data['method'])}")
    url = data.get("url")
    if url not in (None, CHAT_URL, COMPLETIONS_URL):
        raise LineError("unsupported", "url", f"must be {CHAT_URL} or {COMPLETIONS_URL}, not {shown(url)}")
    body = _translate_body(data["body"])
    fields = check_fields(body, openai=True)
    _need_prompt(fields)
    endpoint = CHAT_URL if "messages" in fields else COMPLETIONS_URL
    if url not in (None, endpoint):
        wanted = "messages" if url == CHAT_URL else "prompt"
        raise LineError("conflicting_fields", "url", f"{url} takes '{wanted}' in the body")
    return CheckedLine(name, fields, endpoint)


def _translate_body(body: dict[str, Any]) -> dict[str, Any]:
    """An OpenAI body under our names: ignored fields dropped, unsupported ones refused."""
    translated = {}
    for key, value in body.items():
        if value is None or key in OPENAI_IGNORED:
            continue
        if key in OPENAI_UNSUPPORTED:
            raise LineError("unsupported", key, "is not supported; remove it")
        if key == "stream":
            if value is not False:
                raise LineError("unsupported", key, "a batch does not stream; remove it")
            continue
        if key == "max_completion_tokens":
            key = "max_tokens"
            if body.get("max_tokens") not in (None, value):
                raise LineError("conflicting_fields", key, "max_tokens and max_completion_tokens differ; give one")
        translated[key] = value
    asked = translated.get("logprobs")
    if type(asked) is int:
        translated["logprobs"] = True
        translated.setdefault("top_logprobs", asked)
    return translated


def _check_id(field: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise LineError("invalid_type", field, f"must be a string, not {_json_kind(value)}")
    if not 1 <= len(value) <= MAX_ID_LENGTH or not value.isprintable():
        raise LineError("out_of_range", field, f"must have 1 to {MAX_ID_LENGTH} printable characters")
    return value


def check_fields(data: dict[str, Any], *, openai: bool) -> dict[str, Any]:
    """Fields of a line (or of a batch's defaults) under canonical names, checked; nulls count as absent.

    Raises:
        LineError: for an unknown field, a wrong type or range, or fields that exclude each other.
    """
    checked: dict[str, Any] = {}
    for key, value in data.items():
        if value is None:
            continue
        known = _CHECKS_BY_KEY.get(key)
        if known is None:
            raise _unknown(key, openai=openai)
        name, check = known
        if name in checked:
            raise LineError("conflicting_fields", key, f"says '{name}' a second time; give one of them")
        checked[name] = check(value)
    check_together(checked)
    for name in ("response_format", "add_generation_prompt"):
        checked.pop(name, None)
    return checked


def _unknown(key: str, *, openai: bool) -> LineError:
    if key in OPENAI_UNSUPPORTED:
        return LineError("unsupported", key, "is not supported; remove it")
    if key == "enable_thinking":
        return LineError("unknown_field", key, "goes into 'chat_template_kwargs': {\"enable_thinking\": ...}")
    known = (*KNOWN_FIELDS, "max_completion_tokens") if openai else (*KNOWN_FIELDS, "id")
    hint = did_you_mean(key, known) or "; put your own data into 'metadata'"
    return LineError("unknown_field", key[:SHOWN_NAME], f"is not a field of a line{hint}")


def check_together(fields: Mapping[str, Any]) -> None:
    """Refuse fields that exclude each other."""
    if "prompt" in fields:
        for name in ("messages", *CHAT_FIELDS):
            if fields.get(name):
                message = f"goes with 'messages', not with 'prompt': '{name}' needs the chat template"
                if name == "messages":
                    message = "a line has either 'prompt' or 'messages', not both"
                raise LineError("conflicting_fields", name, message)
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        raise LineError("conflicting_fields", "top_logprobs", "needs 'logprobs': true")
    check_continuing(fields)


def _need_prompt(fields: Mapping[str, Any]) -> None:
    if "prompt" not in fields and "messages" not in fields:
        raise LineError("missing_field", "prompt", "a line needs 'prompt' or 'messages'")


def _check_text(field: str) -> Any:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise LineError("invalid_type", field, f"must be a string, not {_json_kind(value)}")
        if not value:
            raise LineError("out_of_range", field, "must not be empty")
        return value

    return check


def _check_object(field: str) -> Any:
    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise LineError("invalid_type", field, f"must be an object, not {_json_kind(value)}")
        if _deeper_than(value, MAX_DEPTH):
            raise LineError("out_of_range", field, f"must not be nested deeper than {MAX_DEPTH} levels")
        return value

    return check


def _check_response_format(value: Any) -> Any:
    if not isinstance(value, dict):
        raise LineError("invalid_type", "response_format", f"must be an object, not {_json_kind(value)}")
    if value.get("type") != "text":
        raise LineError(
            "unsupported", "response_format", f"type {shown(value.get('type'))} is not supported, only 'text'"
        )
    return value


_FIELD_CHECKS: Mapping[str, Any] = {
    "prompt": _check_text("prompt"),
    "messages": check_messages,
    "system_prompt": _check_text("system_prompt"),
    "prefill_response": _check_text("prefill_response"),
    "continue_final_message": check_flag("continue_final_message"),
    "add_generation_prompt": check_flag("add_generation_prompt"),
    "chat_template_kwargs": _check_object("chat_template_kwargs"),
    "model": _check_text("model"),
    "adapter_path": _check_text("adapter_path"),
    "metadata": _check_object("metadata"),
    "response_format": _check_response_format,
}

_CHECKS_BY_KEY: Mapping[str, tuple[str, Any]] = {
    **{name: (name, check) for name, check in (*_FIELD_CHECKS.items(), *CHECKS.items())},
    **{alias: (name, CHECKS[name]) for alias, name in ALIASES.items()},
}
"""For each key that a line may give: the field it means, and its check."""
