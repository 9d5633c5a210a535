"""What a part of the benchmark gets: plain values that travel between processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class GuidedTask:
    """``folder`` is a model's or a tokenizer's, ``schemas`` a file of MaskBench's rows (empty: none is needed),
    ``model`` the name of one of the benchmarks' own. ``lines`` from the ``skip``-th on, at most ``new_tokens`` each."""

    folder: str
    schemas: str = ""
    model: str = ""
    lines: int = 0
    skip: int = 0
    new_tokens: int = 0
    turns: int = 0

    @classmethod
    def from_json(cls, text: str) -> GuidedTask:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """MaskBench's rows: ``{"name", "schema", "tests": [{"valid", "data"}]}``."""
    with path.open("rb") as lines:
        yield from map(orjson.loads, lines)
