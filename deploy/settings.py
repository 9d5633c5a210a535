"""The settings file of a daemon: what is secret, for the service's user alone, and what people added to it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.errors import RefusedError

__all__ = ["Key", "changed", "settings_of"]

Key = tuple[str, str]
"""A table, empty for the file's top level, and a key of it."""


def changed(path: Path, text: str, values: Mapping[Key, str]) -> str:
    """The text of a settings file with these values, and all else of it as it is.

    Raises:
        RefusedError: it is no TOML, or a value stands in it in a way that a line does not show.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{path} is no TOML: {error}; mend it, or remove it and give all of it again") from None
    lines = text.splitlines()
    for (table, key), value in values.items():
        lines = _set(lines, table, key, value)
        found: Any = document.setdefault(table, {}) if table else document
        if isinstance(found, dict):
            found.pop(key.replace("-", "_"), None)
            found[key] = value
    made = "\n".join(lines) + "\n"
    try:
        same = tomllib.loads(made) == document
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        names = ", ".join(f"{table}.{key}" if table else key for table, key in values)
        raise RefusedError(f"{path}: cannot be changed as it is written; write {names} plainly, each on a line")
    return made


def settings_of(text: str | None) -> tuple[str, ...]:
    """The names of all that a settings file sets; none where it cannot be read."""
    try:
        document = tomllib.loads(text or "")
    except tomllib.TOMLDecodeError:
        return ()
    names: list[str] = []
    for name, value in document.items():
        names += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return tuple(name if name.isprintable() else repr(name) for name in names)


def _set(lines: Sequence[str], table: str, key: str, value: str) -> list[str]:
    """The lines with one that sets a key, in the place of the one that did, or first in its table."""
    heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    start = 0
    if table:
        named = re.compile(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(#.*)?")
        start = next((number + 1 for number in heads if named.fullmatch(lines[number])), len(lines) + 1)
        if start > len(lines):
            lines = [*lines, *([""] if lines else []), f"[{table}]"]
            start = len(lines)
    end = next((number for number in heads if number >= start), len(lines))
    # A JSON string of printable text is a TOML string.
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    own = re.compile(rf"\s*{'[-_]'.join(map(re.escape, key.split('-')))}\s*=")
    for number in range(start, end):
        if own.match(lines[number]):
            return [*lines[:number], line, *lines[number + 1 :]]
    return [*lines[:start], line, *lines[start:]]
