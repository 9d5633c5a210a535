"""What a line says about the shape of its text: a schema, a regular expression, choices or a grammar; and thinking."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson

from jobs.errors import LineError
from jobs.guided.constraint import Constraint, Kind, json_constraint
from jobs.lines.values import check_flag, check_text, json_kind
from jobs.params import SHOWN_NAME, did_you_mean, shown

CONSTRAINTS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
               "structured_outputs")  # fmt: skip
"""The fields that constrain a text. A line has one of them."""
FREE: Mapping[str, str] = {"type": "text"}
"""The response format of texts that are not constrained."""
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""OpenAI's names of schemas and functions."""

OTHER_FORMATS: Mapping[str, str] = {
    "regex": "a regular expression goes into 'guided_regex'",
    "grammar": "a grammar goes into 'guided_grammar', written in Lark",
    "structural_tag": "a grammar of text and values goes into 'guided_grammar', written in Lark",
}
"""Types of response formats of other tools."""
OTHER_OUTPUTS: Mapping[str, str] = {
    "json_object": 'write \'json\': {"type": "object"}',
    "structural_tag": "write a grammar of the whole text into 'grammar'",
    "whitespace_pattern": "between the parts of JSON there is one blank or none",
}
"""What vLLM's structured outputs have besides."""
OUTPUTS_OFF = frozenset({"disable_fallback", "disable_any_whitespace", "disable_additional_properties", "backend"})
"""What changes nothing about which texts are right."""


def check_one_constraint(fields: Mapping[str, Any]) -> None:
    """See that a line has one constraint.

    Raises:
        LineError: ``conflicting_fields``, naming two of them.
    """
    given = [name for name in CONSTRAINTS if name in fields and fields[name] != FREE]
    if len(given) > 1:
        message = f"constrains the text, and so does '{given[0]}'; give one of them"
        raise LineError("conflicting_fields", given[1], message)


def constraint_of(fields: Mapping[str, Any]) -> Constraint | None:
    """The constraint of a line with these fields, which are checked; None where its text is free."""
    for name in CONSTRAINTS:
        if (value := fields.get(name)) is not None and value != FREE:
            return _constraint(name, value)
    return None


def unfit_constraints(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a batch's defaults that a line with these fields has no use for: its own constraint counts."""
    return CONSTRAINTS if any(name in fields for name in CONSTRAINTS) else ()


def _constraint(name: str, value: Any) -> Constraint:
    if name == "response_format":
        return _of_format(value)
    if name == "structured_outputs":
        kind: Kind = next(kind for kind in _KINDS if kind in value)
        return _KINDS[kind](f"structured_outputs.{kind}", value[kind], value.get("lenient", False))
    return next(_KINDS[kind](name, value, False) for kind in _KINDS if name == f"guided_{kind}")


def _of_format(value: Mapping[str, Any]) -> Constraint:
    if value["type"] == "json_object":
        return json_constraint({"type": "object"}, field="response_format")
    wanted = value["json_schema"]
    return _of_schema("response_format.json_schema.schema", wanted["schema"], bool(wanted.get("lenient")))


def _of_schema(field: str, schema: Any, lenient: bool) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = orjson.loads(schema)
        except orjson.JSONDecodeError as error:
            raise LineError("invalid_type", field, f"must be a JSON schema, and the text is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise LineError("invalid_type", field, f"must be a JSON schema, an object, not {json_kind(schema)}")
    try:
        return json_constraint(schema, lenient=lenient, field=field)
    except ValueError:
        raise LineError("invalid_schema", field, "is nested too deeply; use '$defs' and '$ref'") from None


def _of_choices(field: str, choices: Any, _lenient: bool) -> Constraint:
    if not isinstance(choices, list):
        raise LineError("invalid_type", field, f"must be an array of strings, not {json_kind(choices)}")
    for number, choice in enumerate(choices):
        if not isinstance(choice, str):
            message = f'must be a string, not {shown(choice)}; a choice is the whole text: write "5" for 5'
            raise LineError("invalid_type", f"{field}[{number}]", message)
        if not choice:
            raise LineError("out_of_range", f"{field}[{number}]", "must not be empty: a choice is the whole text")
    if not choices:
        raise LineError("out_of_range", field, "must hold at least one string; null is no choice at all")
    return Constraint("choice", orjson.dumps(list(dict.fromkeys(choices))).decode(), field=field)


def _of_text(kind: Kind) -> Callable[[str, Any, bool], Constraint]:
    def check(field: str, value: Any, _lenient: bool) -> Constraint:
        return Constraint(kind, check_text(field, value), field=field)

    return check


_KINDS: Mapping[Kind, Callable[[str, Any, bool], Constraint]] = {
    "json": _of_schema,
    "regex": _of_text("regex"),
    "choice": _of_choices,
    "grammar": _of_text("grammar"),
}


def _check_response_format(value: Any) -> Any:
    field = "response_format"
    if not isinstance(value, dict):
        raise LineError("invalid_type", field, f"must be an object, not {json_kind(value)}")
    kind = value.get("type")
    if kind is None:
        raise LineError("missing_field", f"{field}.type", "must be 'text', 'json_object' or 'json_schema'")
    if kind == "text":
        return dict(FREE)
    if kind not in ("json_object", "json_schema"):
        remedy = OTHER_FORMATS.get(
            kind if isinstance(kind, str) else "", "write 'text', 'json_object' or 'json_schema'"
        )
        raise LineError("unsupported", f"{field}.type", f"{shown(kind)} is not supported; {remedy}")
    if kind == "json_object" and "schema" in value:
        message = (
            'goes with "type": "json_schema": {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}'
        )
        raise LineError("unsupported", f"{field}.schema", message)
    if kind == "json_schema":
        _check_json_schema(f"{field}.json_schema", value.get("json_schema"))
    _of_format(value)
    return value


def _check_json_schema(field: str, wanted: Any) -> None:
    if not isinstance(wanted, dict):
        code = "missing_field" if wanted is None else "invalid_type"
        raise LineError(code, field, "must be an object with 'name' and 'schema'")
    for key in wanted:
        if key not in ("name", "schema", "strict", "description", "lenient"):
            hint = did_you_mean(key, ("name", "schema", "strict", "description", "lenient"))
            remedy = hint or "; the schema itself goes into 'schema'"
            raise LineError("unknown_field", f"{field}.{key[:SHOWN_NAME]}", f"is not known here{remedy}")
    for key in ("name", "schema"):
        if wanted.get(key) is None:
            raise LineError("missing_field", f"{field}.{key}", f"a response format of a schema needs '{key}'")
    check_function_name(f"{field}.name", wanted["name"])
    for key in ("strict", "lenient"):
        if wanted.get(key) is not None:
            check_flag(f"{field}.{key}", wanted[key])


def check_function_name(field: str, name: Any) -> str:
    """The name of a schema or of a function, as OpenAI has it."""
    if not isinstance(name, str):
        raise LineError("invalid_type", field, f"must be a string, not {json_kind(name)}")
    if not NAME.fullmatch(name):
        raise LineError("out_of_range", field, f"must be 1 to 64 of a-z, A-Z, 0-9, _ and -, not {shown(name)}")
    return name


def _check_outputs(value: Any) -> Any:
    field = "structured_outputs"
    if not isinstance(value, dict):
        raise LineError("invalid_type", field, f"must be an object, not {json_kind(value)}")
    given = {key: item for key, item in value.items() if item is not None}
    for key in given:
        if key in OTHER_OUTPUTS:
            raise LineError("unsupported", f"{field}.{key}", f"is not supported: {OTHER_OUTPUTS[key]}")
        if key not in _KINDS and key not in ("lenient", *OUTPUTS_OFF):
            hint = did_you_mean(key, _KINDS) or "; give one of json, regex, choice and grammar"
            raise LineError("unknown_field", f"{field}.{key[:SHOWN_NAME]}", f"is not known here{hint}")
    kinds = [kind for kind in _KINDS if kind in given]
    if len(kinds) > 1:
        message = f"constrains the text, and so does '{kinds[0]}'; give one of them"
        raise LineError("conflicting_fields", f"{field}.{kinds[1]}", message)
    if not kinds:
        raise LineError("missing_field", field, "needs one of json, regex, choice and grammar")
    lenient = check_flag(f"{field}.lenient", given.get("lenient", False))
    _KINDS[kinds[0]](f"{field}.{kinds[0]}", given[kinds[0]], lenient)
    return {kinds[0]: given[kinds[0]], **({"lenient": True} if lenient else {})}


def _guided(kind: Kind) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        _KINDS[kind](f"guided_{kind}", value, False)
        return value

    return check


def _check_budget(value: Any) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise LineError("invalid_type", "thinking_budget", f"must be an integer, not {shown(value)}")
    if not 0 <= value <= 2**31:
        message = f"must be int 0..{2**31}, not {shown(value)}: 0 is no thinking, without the field there is no bound"
        raise LineError("out_of_range", "thinking_budget", message)
    return value


GUIDED_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "response_format": _check_response_format,
    **{f"guided_{kind}": _guided(kind) for kind in _KINDS},
    "structured_outputs": _check_outputs,
    "thinking_budget": _check_budget,
    "return_token_ids": partial(check_flag, "return_token_ids"),
}
"""The fields of this module, with what checks each and gives its value."""
