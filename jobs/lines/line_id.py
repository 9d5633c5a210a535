"""The user's id of a line, also of one that is damaged: error records carry it wherever it can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

MAX_ID_LENGTH = 256
LOOKED_AT = 1 << 16
"""Bytes of a damaged line that are searched for its id: ids stand at the beginning."""

_MEMBER = re.compile(r'[\s{,]*"((?:[^"\\]|\\.)*)"\s*:\s*')
_DECODER = json.JSONDecoder(strict=False)


def usable_id(value: Any) -> bool:
    """Whether a value may be a line's id: 1 to 256 printable characters."""
    return isinstance(value, str) and 1 <= len(value) <= MAX_ID_LENGTH and value.isprintable()


def id_in(fields: Mapping[str, Any]) -> str | None:
    """The id among a line's fields, a number as its digits; None where there is none that could be one."""
    names = ("custom_id", "id") if isinstance(fields.get("body"), dict) else ("id", "custom_id")
    for name in names:
        value = fields.get(name)
        shown = str(value) if type(value) is int else value
        if usable_id(shown):
            return str(shown)
    return None


def readable_id(raw: bytes) -> str | None:
    """The id of a line that need not be right, nor whole; None where none can be read."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return id_in(dict(_members(raw[:LOOKED_AT].decode("utf-8", "replace"))))
    return id_in(data) if isinstance(data, dict) else None


def _members(text: str) -> Iterator[tuple[str, Any]]:
    """The names and values of an object as far as they can be read; an unfinished one counts as an empty object."""
    place = 0
    while (found := _MEMBER.match(text, place)) is not None:
        try:
            value, place = _DECODER.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            if text.startswith("{", found.end()):
                yield found[1], {}
            return
        # A character that could not be decoded makes a text another one.
        yield found[1], None if isinstance(value, str) and "\ufffd" in value else value
