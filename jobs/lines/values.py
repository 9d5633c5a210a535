"""Checks of values that are not generation parameters: texts, objects, names of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.errors import LineError, RefusedError
from jobs.params import shown

MAX_DEPTH = 64
"""Levels of nesting of the objects a line may carry: they must also fit into a record, which orjson writes."""


def json_kind(value: Any) -> str:
    """What a value from JSON is, in words."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")


def are_rows(value: Any) -> bool:
    """Whether a value is an array of objects and nothing else."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def check_text(field: str, value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        raise LineError("invalid_type", field, f"must be a string, not {json_kind(value)}")
    if not value:
        raise LineError("out_of_range", field, "must not be empty")
    return value


def check_flag(field: str, value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise LineError("invalid_type", field, f"must be true or false, not {shown(value)}")
    return value


def check_name(field: str, value: Any) -> str:
    """The name of a model or an adapter; paths that lead to the same folder become the same name."""
    name = check_text(field, value)
    return model_name(name) if name.startswith("./") or name.endswith(("/", "/.")) else name


def check_object(field: str, value: Any) -> dict[str, Any]:
    """A JSON object that is not nested too deeply."""
    if not isinstance(value, dict):
        raise LineError("invalid_type", field, f"must be an object, not {json_kind(value)}")
    if _deeper_than(value, MAX_DEPTH):
        raise LineError("out_of_range", field, f"must not be nested deeper than {MAX_DEPTH} levels")
    return value


def model_name(given: str) -> str:
    """The one name of a model or an adapter: ``P`` for ``P/`` and ``./P`` too. Names on a hub have neither.

    Only the spelling counts: whether there is such a folder is known where the model is loaded.
    """
    name = given
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    while len(name) > 1 and name.endswith(("/", "/.")):
        name = name.removesuffix(".").rstrip("/") or "/"
    return name or "."


def local_model_name(given: str) -> str:
    """The one name of a model or an adapter that is to be loaded on this machine.

    Raises:
        RefusedError: it was written as a path, and there is nothing: its name must not be looked for on a hub.
    """
    name = model_name(given)
    if name != given and not Path(given).expanduser().exists():
        raise RefusedError(f"there is no folder {given}")
    return name


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    # Most items are no containers, and every line that is submitted comes here.
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in items if isinstance(item, dict | list))
