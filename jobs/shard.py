"""A shard: some lines of one batch for one model, compressed, the unit of queueing (one RQ job).

The payload is one zstd frame: a JSON header line, then the lines' own bytes, one per line. The header's
``runs`` map positions to (index, line number) pairs: ``[index, line, count]`` for neighbours in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson
import zstandard

from jobs.errors import RefusedError

MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
"""Most bytes a payload may unpack to: a guard against a hostile queue entry, above what submit packs, which is a
mebibyte of lines, or one line of at most 16. Records have no such bound."""
MAX_SHARD_LINES = 100_000
"""Most lines of a payload, far above what submit packs too: each costs memory, however short it is."""
MAX_INDEX = 2**48
"""Above every index and line number of a file."""

COMPRESSION_LEVEL = 3


@dataclass(frozen=True, slots=True)
class ShardLine:
    """A line on its way to a worker: 0-based index in the batch, 1-based line number, its bytes."""

    index: int
    line: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Group:
    """What the lines of a shard share: the model that is to run them, and the adapter on it."""

    model: str
    adapter_path: str | None = None

    @property
    def key(self) -> str:
        """The name under which queues know it."""
        return self.model if self.adapter_path is None else f"{self.model}+{self.adapter_path}"


def pack(data: bytes, compressor: zstandard.ZstdCompressor | None = None) -> bytes:
    """One zstd frame of ``data``; a caller with many frames passes its own compressor."""
    packed = (compressor or zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)).compress(data)
    return bytes(memoryview(packed))  # what the compressor returns keeps room for more than the data


def unpack(data: bytes, limit: int = MAX_PAYLOAD_BYTES) -> bytes:
    """The content of a frame.

    Raises:
        RefusedError: when it is no zstd frame, or unpacks to more than ``limit`` bytes.
    """
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit:
            raise RefusedError(f"a payload says it unpacks to {size} bytes; at most {limit} are taken")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise RefusedError(f"a payload is not a zstd frame: {error}") from None


def encode_lines(lines: Iterable[ShardLine], compressor: zstandard.ZstdCompressor | None = None) -> bytes:
    """The payload of ``lines``; their bytes hold no newline."""
    runs: list[list[int]] = []
    parts = [b""]
    for line in lines:
        if runs and runs[-1][0] + runs[-1][2] == line.index and runs[-1][1] + runs[-1][2] == line.line:
            runs[-1][2] += 1
        else:
            runs.append([line.index, line.line, 1])
        parts.append(line.raw)
    parts[0] = orjson.dumps({"runs": runs})
    return pack(b"\n".join(parts), compressor)


def decode_lines(payload: bytes) -> list[ShardLine]:
    """The lines of a payload.

    Raises:
        RefusedError: when the payload is not what :func:`encode_lines` makes.
    """
    content = unpack(payload)
    if content.count(b"\n") > MAX_SHARD_LINES:
        raise RefusedError(f"a shard has more than {MAX_SHARD_LINES} lines")
    header, *raws = content.split(b"\n")
    try:
        places = list(_places(orjson.loads(header)["runs"], len(raws)))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise RefusedError("a shard's header is not one of promptmill's") from None
    if len(places) != len(raws):
        raise RefusedError("a shard's header does not fit its lines")
    if len({index for index, _ in places}) != len(places):
        raise RefusedError("a shard has two lines of one index")
    return [ShardLine(index, line, raw) for (index, line), raw in zip(places, raws, strict=True)]


def _places(runs: list[list[int]], lines: int) -> Iterator[tuple[int, int]]:
    for run in runs:
        index, line, count = run
        if not all(type(number) is int and 0 <= number <= MAX_INDEX for number in run) or not 0 < count <= lines:
            raise ValueError("a run out of range")
        lines -= count
        for step in range(count):
            yield index + step, line + step
