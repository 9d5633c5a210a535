"""A twin: a line that is not run because an earlier one of its batch is equal, and which gets that line's record."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from jobs.record_head import whole


class Twin(msgspec.Struct, frozen=True):
    """What is kept of a twin: its 0-based index, its id and metadata, and the group and the index of the line that it
    is equal to."""

    index: int
    id: str
    group: int
    first: int
    metadata: dict[str, Any] = {}

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)

    def record(self, first: bytes) -> bytes:
        """The record of the line, made of the first one's."""
        record = whole(first)
        return orjson.dumps({**record, "id": self.id, "index": self.index, "metadata": self.metadata})


def read_twin(raw: bytes) -> Twin:
    """A twin as it is kept.

    Raises:
        ValueError: it is none.
    """
    return msgspec.json.decode(raw, type=Twin)
