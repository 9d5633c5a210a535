"""One line of a prompt file: checking it, and making it a :class:`Job`.

Checking (:func:`check_line`) is separate from building (:meth:`CheckedLine.job`): the submitter only checks,
and sends the line's own bytes; the worker checks again, because nothing that comes from Redis is trusted,
and builds. What a field may be is in :mod:`jobs.lines.fields`, OpenAI's envelope in :mod:`jobs.lines.openai_envelope`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.errors import LineError, raise_all
from jobs.guided.constraint import Constraint
from jobs.lines.fields import gather, lacks_prompt, no_prompt
from jobs.lines.foreign_names import is_empty
from jobs.lines.foreign_rows import cure_of_row
from jobs.lines.guided import CONSTRAINTS, constraint_of, unfit_constraints
from jobs.lines.line_id import MAX_ID_LENGTH, usable_id
from jobs.lines.messages import CHAT_FIELDS, unfit_defaults
from jobs.lines.openai_envelope import CHAT_URL, COMPLETIONS_URL, open_envelope
from jobs.lines.tools import TOOL_FIELDS, check_calls_together, unfit_tools
from jobs.lines.values import MAX_DEPTH, json_kind
from jobs.params import OPENAI_DEFAULTS, PARAMETERS, Sampling

__all__ = [
    "CHAT_URL",
    "COMPLETIONS_URL",
    "MAX_DEPTH",
    "MAX_LINE_BYTES",
    "CheckedLine",
    "Defaults",
    "Job",
    "check_defaults",
    "check_fields",
    "check_line",
    "derived_seed",
    "no_model",
]

MAX_LINE_BYTES = 16 * 1024 * 1024
GUIDING = frozenset({*CONSTRAINTS, *TOOL_FIELDS})
"""Fields that say what shape the text or the calls of a line have: most lines have none of them."""
OVERRIDE = "override_model"
"""A batch's default that lines cannot give: its model takes the place of their own."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a batch gives to lines that do not say it themselves: a model, job fields and parameters.

    With ``override_model`` among them its model is used for lines that name their own too.
    """

    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        checked = check_defaults(self.fields)
        if checked.get(OVERRIDE) and "model" not in checked:
            raise LineError("missing_field", OVERRIDE, "needs the model that all lines are to have: --model")
        object.__setattr__(self, "fields", checked)

    @property
    def model(self) -> str | None:
        model: str | None = self.fields.get("model")
        return model

    @property
    def adapter_path(self) -> str | None:
        adapter: str | None = self.fields.get("adapter_path")
        return adapter

    @property
    def override_model(self) -> bool:
        return bool(self.fields.get(OVERRIDE))

    @property
    def guides(self) -> bool:
        """Whether the batch says what shape the texts of its lines have."""
        return not GUIDING.isdisjoint(self.fields)

    def model_of(self, line: CheckedLine) -> str | None:
        """The model that runs a line of the batch; None where nobody names one."""
        named: str | None = None if self.override_model else line.fields.get("model")
        return named or self.model


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
    constraint: Constraint | None = None
    thinking_budget: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    return_token_ids: bool = False
    warnings: tuple[str, ...] = ()
    """What the record says of the line besides its result."""

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
            LineError: ``missing_field`` when neither the line nor the batch names a model; what :meth:`constraint`
                raises.
        """
        fields = self._filled(defaults)
        check_calls_together(fields)
        model = defaults.model_of(self)
        if model is None:
            raise no_model()
        given = {name: fields[name] for name in PARAMETERS if name in fields}
        if self.endpoint is not None:
            given = {**OPENAI_DEFAULTS, **given}
        given.setdefault("seed", derived_seed(batch_id, index))
        return Job(
            id=self.id_at(line),
            index=index,
            line=line,
            model=model,
            adapter_path=fields.get("adapter_path"),
            prompt=fields.get("prompt"),
            messages=fields.get("messages"),
            system_prompt=fields.get("system_prompt") or None,
            prefill_response=fields.get("prefill_response") or None,
            continue_final_message=fields.get("continue_final_message", False),
            chat_template_kwargs=fields.get("chat_template_kwargs", {}),
            metadata=fields.get("metadata", {}),
            sampling=Sampling(**given),
            endpoint=self.endpoint,
            constraint=constraint_of(fields),
            thinking_budget=fields.get("thinking_budget"),
            tools=tuple(fields.get("tools", ())),
            tool_choice=fields.get("tool_choice", "auto"),
            parallel_tool_calls=fields.get("parallel_tool_calls", True),
            return_token_ids=fields.get("return_token_ids", False),
        )

    def constraint(self, defaults: Defaults) -> Constraint | None:
        """What the text of this line must be within a batch; None where it is free.

        Raises:
            LineError: what the line and the batch say of the text and of calls does not go together.
        """
        if GUIDING.isdisjoint(self.fields) and not defaults.guides:
            return None
        fields = self._filled(defaults)
        check_calls_together(fields)
        return constraint_of(fields)

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
        if not GUIDING.isdisjoint(given) or defaults.guides:
            unfit += [*unfit_constraints(given), *unfit_tools(given)]
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
        LineError: with one of the codes of the contract, the field and the remedy; what else is wrong with the line is
            in its ``also``.
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
        raise LineError("invalid_type", None, f"must be a JSON object, not {json_kind(data)}")
    problems: list[LineError] = []
    if isinstance(data.get("body"), dict):
        name = data.get("custom_id")
        if name is not None and not usable_id(name):
            problems.append(_bad_id("custom_id", name))
        fields, endpoint = open_envelope(data, problems)
        line = CheckedLine(name, fields, endpoint)
    else:
        line = _native_line(data, problems)
    if problems:
        raise_all(problems)
    return line


def check_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under canonical names, checked; nulls, and what else asks for nothing, count as absent.

    Raises:
        LineError: for an unknown field, a wrong type or range, or fields that exclude each other.
    """
    problems: list[LineError] = []
    checked = gather(data, problems)
    raise_all(problems)
    return checked


def check_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Some of a batch's defaults, checked and under canonical names.

    Raises:
        LineError: as :func:`check_fields`, and for what belongs to a line.
    """
    fields = dict(data)
    override = fields.pop(OVERRIDE, None)
    if override not in (None, True, False):
        raise LineError("invalid_type", OVERRIDE, f"must be true or false, not {json_kind(override)}")
    for name in ("prompt", "messages", "metadata"):
        if fields.get(name) is not None:
            raise LineError("unknown_field", name, "belongs to a line and cannot be a default of a batch")
    checked = check_fields(fields)
    return {**checked, OVERRIDE: True} if override else checked


def _native_line(data: dict[str, Any], problems: list[LineError]) -> CheckedLine:
    name = data.pop("id", None)
    if name is not None and not usable_id(name):
        problems.append(_bad_id("id", name))
    if lacks_prompt(data):
        return _without_prompt(name, data, problems)
    if "custom_id" in data or "url" in data:
        data = _without_envelope(data, problems)
    return CheckedLine(name, gather(data, problems), None)


def _without_prompt(name: str | None, data: dict[str, Any], problems: list[LineError]) -> CheckedLine:
    """A line without a prompt. Where it is another tool's as a whole that is its one fault, however many its fields."""
    if (cure := cure_of_row(data)) is not None:
        problems.append(LineError("unknown_field", *cure))
        return CheckedLine(name, {}, None)
    rest = _without_envelope(data, problems)
    if not (problems and rest is not data and not rest):
        gather(rest, problems)
        problems.append(no_prompt())
    return CheckedLine(name, {}, None)


def _without_envelope(data: dict[str, Any], problems: list[LineError]) -> dict[str, Any]:
    """The fields of a native line; those of an OpenAI line whose body is missing are one problem together."""
    if is_empty(data.get("custom_id")) and is_empty(data.get("url")) and is_empty(data.get("body")):
        return data
    if is_empty(data.get("body")):
        message = "an OpenAI batch line has its fields in 'body'; on a line without one, 'custom_id' is 'id'"
        problems.append(LineError("missing_field", "body", message))
    else:
        message = f"must be an object with the fields of the request, not {json_kind(data['body'])}"
        problems.append(LineError("invalid_type", "body", message))
    return {key: value for key, value in data.items() if key not in ("custom_id", "method", "url", "body")}


def _json_message(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start + 1} is not UTF-8; save the file as UTF-8"
    where = f"{error.msg} at column {error.colno}"
    if not text.startswith(("{", "[")):
        return f'{where}; a line is an object, such as {{"prompt": "..."}}'
    if text.startswith("{'"):
        return f"{where}; names and texts have double quotes in JSON, as json.dumps() writes them"
    if any(word in text[error.pos : error.pos + 9] for word in ("NaN", "Infinity")):
        return f"{where}; JSON has no NaN and no Infinity: leave the field out"
    return where


def _bad_id(field: str, value: Any) -> LineError:
    if isinstance(value, str):
        return LineError("out_of_range", field, f"must have 1 to {MAX_ID_LENGTH} printable characters")
    written = f': write "{value}"' if type(value) is int else ""
    return LineError("invalid_type", field, f"must be a string, not {json_kind(value)}{written}")
