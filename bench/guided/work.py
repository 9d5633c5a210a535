"""Schemas of the benchmark's own: arrays of records of many kinds of fields, which go on as long as a line may."""

from __future__ import annotations

import random
from typing import Any

LEAST = 200
"""Items of an array: more than a line has tokens for."""
NAMES = ("name", "title", "status", "count", "price", "notes", "created", "owner", "tags", "size", "code", "address")
WORDS = ("open", "closed", "waiting", "red", "green", "blue", "small", "medium", "large", "yes", "no", "unknown")


def schema_of(number: int) -> dict[str, Any]:
    """The same for the same number, and another for each."""
    draw = random.Random(f"schema/{number}")
    return {"type": "array", "items": _record(draw, number, 2), "minItems": LEAST}


def _record(draw: random.Random, number: int, levels: int) -> dict[str, Any]:
    names = draw.sample(NAMES, draw.randint(3, 7))
    fields = {f"{name}_{number}": _field(draw, number, levels) for name in names}
    required = [name for name in fields if draw.random() < 0.7]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def _field(draw: random.Random, number: int, levels: int) -> dict[str, Any]:
    least = draw.randint(0, 50)
    kinds: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "string", "maxLength": draw.randint(8, 60)},
        {"enum": draw.sample(WORDS, 4)},
        {"type": "integer", "minimum": least, "maximum": least + draw.randint(10, 5000)},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "string", "format": draw.choice(("date", "date-time", "email", "uuid"))},
        {"type": "string", "pattern": f"^[A-Z]{{2,{draw.randint(3, 5)}}}-[0-9]{{{draw.randint(2, 6)}}}$"},
        {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": draw.randint(2, 6)},
        {"anyOf": [{"type": "string", "maxLength": 30}, {"type": "null"}]},
    ]
    return _record(draw, number, levels - 1) if levels > 1 and draw.random() < 0.2 else draw.choice(kinds)
