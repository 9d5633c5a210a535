"""Fields of a line that come as text, from templates or cells of CSV: which are to be numbers, lists, objects."""

from __future__ import annotations

from typing import Any

import orjson

from jobs.params import PARAMETERS

_TEXTS = (
    "id custom_id prompt system_prompt prefill_response continuation model adapter_path guided_regex guided_grammar "
    "method url"
)
TEXTS = frozenset(_TEXTS.split())
"""Fields that are texts, whatever they look like."""
LISTS = frozenset({name for name, row in PARAMETERS.items() if row.kind == "strings"} | {"guided_choice", "tools"})
"""Fields that are lists of texts, or one text."""


def field_value(name: str, value: Any) -> Any:
    """The value of a field that was given as ``value``: a text of JSON becomes what it says, if the field is no text.
    None where an empty text gives nothing."""
    if not isinstance(value, str) or name in TEXTS:
        return value
    text = value.strip()
    if not text:
        return None
    if name in LISTS and not text.startswith("["):
        return value
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return value
