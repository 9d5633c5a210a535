"""The spool's files: every record that a worker finished, on its own disk, for times without Redis.

``FOLDER/BATCH_ID/WORKER.INSTANCE.jsonl`` holds what one worker process finished of one batch: a line about the batch,
then a line per record, which comes last in it and as it was stored. A process owns its files while it has the lock of
``FOLDER/WORKER.INSTANCE.lock``; what a later worker has offered to Redis is renamed to ``*.offered.jsonl``.
Any line may be damaged or cut off: readers pass over it and say so.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from jobs.batch import Batch
from jobs.record_head import head_of
from jobs.store.store import FinishedLine

VERSION = 1
SUFFIX = ".jsonl"
OFFERED = ".offered.jsonl"
BLOCK = 2**20
"""Bytes that are read of a line to see whether it is one of ours: a damaged disk may have no other for gigabytes."""
HEADER, ENTRY = b'{"promptmill_spool":', b'{"shard":'
Count = Annotated[int, msgspec.Meta(ge=0)]


class SpoolHeader(msgspec.Struct, frozen=True, tag_field="promptmill_spool", tag=VERSION):
    """What a file says of its batch; ``total`` is 0 and ``name`` None where the line about it is damaged.

    ``twins`` are lines beside the total that have the records of others: their ids are in Redis alone.
    """

    batch_id: str
    name: str | None = None
    source: str = ""
    total: Count = 0
    created_at: float | None = None
    twins: Count = 0


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """A finished line, under which claim on which shard it was finished, and whether it asked for a conversation."""

    shard: int
    fence: int
    chat: bool
    line: FinishedLine


class _Fields(msgspec.Struct, frozen=True):
    """An entry as it stands in a file. The record is kept as it is: it may be very long."""

    shard: Count
    fence: Count
    ok: bool
    chat: bool
    usage: tuple[Count, Count, Count]
    record: msgspec.Raw
    scored: Count = 0


def encode_header(batch: Batch) -> bytes:
    """The first line of a file."""
    header = SpoolHeader(batch.id, batch.name, batch.source, batch.total, batch.times.get("created"), batch.twins)
    return msgspec.json.encode(header) + b"\n"


def encode_entry(entry: SpoolEntry) -> bytes:
    """The line of one record."""
    line = entry.line
    usage = (line.prompt_tokens, line.completion_tokens, line.cached_tokens)
    record = msgspec.Raw(line.record)
    fields = _Fields(entry.shard, entry.fence, line.ok, entry.chat, usage, record, scored=line.scored_tokens)
    return msgspec.json.encode(fields) + b"\n"


def open_spool(path: Path) -> BinaryIO:
    """A file of a spool, also under the name that it has got since its folder was listed.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        # A worker that starts meanwhile renames what it has offered.
        return path.with_name(path.name.removesuffix(SUFFIX) + OFFERED).open("rb")


def read_header(path: Path) -> SpoolHeader:
    """What the file's first line says; where it is damaged, what its folder is called.

    Raises:
        OSError: the file cannot be read.
    """
    with open_spool(path) as file:
        raw = file.readline(BLOCK)
    if raw.startswith(HEADER):
        with suppress(ValueError):
            return msgspec.json.decode(raw, type=SpoolHeader)
    return SpoolHeader(path.parent.name)


def read_entries(
    file: BinaryIO, batch_id: str, on_damage: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, SpoolEntry]]:
    """The sound lines of a file about that batch, from where it stands: (offset, entry). Reads a line at a time."""
    offset = file.tell()
    while raw := file.readline(BLOCK):
        parts, size = [raw], len(raw)
        while not parts[-1].endswith(b"\n") and (more := file.readline(BLOCK)):
            size += len(more)
            if raw.startswith(ENTRY):
                parts.append(more)
            else:
                parts = [more]
        entry = _entry(b"".join(parts), batch_id) if raw.startswith(ENTRY) else None
        if entry is not None:
            yield offset, entry
        elif offset > 0 or not raw.startswith(HEADER):
            on_damage()
        offset += size


def _entry(raw: bytes, batch_id: str) -> SpoolEntry | None:
    try:
        _check_text(raw)
        fields = msgspec.json.decode(raw, type=_Fields)
        record = bytes(fields.record)
        head = head_of(record)
        if head.index < 0 or not head.id or head.batch_id != batch_id or fields.ok is not (head.error is None):
            return None
        line = FinishedLine(head.index, fields.ok, *fields.usage, record, fields.scored)
        return SpoolEntry(fields.shard, fields.fence, fields.chat, line)
    except ValueError:
        return None


def _check_text(raw: bytes) -> None:
    """See that bytes are UTF-8, some at a time.

    Raises:
        UnicodeDecodeError: they are not.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(raw), BLOCK):
        decoder.decode(raw[start : start + BLOCK], final=start + BLOCK >= len(raw))
