"""The results of batches as files: read from Redis when they are asked for, and stored nowhere twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from jobs.batch import Batch
from jobs.record_head import whole
from jobs.store.keys import PREFIX
from jobs.store.store import Store
from submit.results.openai_format import endpoint_of, envelope, json_line
from submit.results.prompts import Inputs
from submit.results.read import StoredRecord, finished_records

RESULT_ID = re.compile(r"file-(b_[0-9A-Z]{26})-(output|error)")
BLOCK = 64 << 10
SIZE_KEPT_S = 30 * 86400
SIZED_AT_ONCE = 200
"""Of a batch with more lines the size is found only when its file is asked for by itself."""


@dataclass(frozen=True, slots=True)
class ResultFile:
    """The results of a batch, or its errors, as a file: as many lines as there are by now."""

    batch: Batch
    kind: str

    @property
    def id(self) -> str:
        return f"file-{self.batch.id}-{self.kind}"

    @property
    def filename(self) -> str:
        return f"{self.batch.id}_{self.kind}.jsonl"

    @property
    def lines(self) -> int:
        return self.batch.completed if self.kind == "output" else self.batch.failed

    @property
    def complete(self) -> bool:
        return self.batch.done

    @property
    def created_at(self) -> float:
        times = self.batch.times
        return times.get("finalizing") or self.batch.ended_at or times.get("started") or times.get("created", 0.0)

    @property
    def expires_at(self) -> float | None:
        ended, keep = self.batch.ended_at, self.batch.keep_s
        return None if ended is None or keep is None else ended + keep

    def as_dict(self, size: int) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": size,
            "created_at": int(self.created_at),
            "expires_at": None if self.expires_at is None else int(self.expires_at),
            "filename": self.filename,
            "purpose": "batch_output",
            "status": "processed",
            "status_details": None,
        }


def output_id(batch: Batch) -> str | None:
    """The id of the file of a batch's results; None while it has none."""
    return ResultFile(batch, "output").id if batch.completed else None


def error_id(batch: Batch) -> str | None:
    """The id of the file of a batch's errors; None while it has none."""
    return ResultFile(batch, "error").id if batch.failed else None


class Results:
    """Reads the results of batches. Threads: any."""

    def __init__(self, store: Store, *, strict: bool) -> None:
        self._store, self._strict = store, strict

    def lines(self, file: ResultFile) -> Iterator[bytes]:
        """The lines of the file, in the order of finishing: what was there stays where it is while more comes."""
        render = self._renderer(file.batch)
        wanted = file.kind == "output"
        left = file.lines
        records = finished_records(self._store.connection, file.batch.id)
        for record in records:
            if left <= 0:
                return
            if record.ok is wanted:
                left -= 1
                yield render(record)

    def _renderer(self, batch: Batch) -> Callable[[StoredRecord], bytes]:
        inputs = Inputs(self._store, batch)

        def render(record: StoredRecord) -> bytes:
            shown = envelope(whole(record.raw), lambda: endpoint_of(inputs.job(record)))
            if not self._strict:
                name_error(shown)
            return json_line(shown)

        return render

    def blocks(self, file: ResultFile, *, offset: int = 0, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """The file's bytes from the line ``offset`` on, and of these the bytes ``first`` to ``last``."""
        waiting: list[bytes] = []
        size, place = 0, 0
        for number, line in enumerate(self.lines(file)):
            if number < offset:
                continue
            begin, place = place, place + len(line)
            if place <= first:
                continue
            if last is not None and begin > last:
                break
            piece = line[max(first - begin, 0) : None if last is None else last + 1 - begin]
            waiting.append(piece)
            size += len(piece)
            if size >= BLOCK:
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)

    def whole(self, file: ResultFile) -> Iterator[bytes]:
        """All bytes of the file; how many these are is known once they were read."""
        size = 0
        for block in self.blocks(file):
            size += len(block)
            yield block
        self._remember(file, size)

    def _size_key(self, file: ResultFile) -> str:
        ended = int((file.batch.ended_at or 0) * 1000)  # lines that ran again may have come to another end
        return f"{PREFIX}size:{file.id}:{file.batch.completed}:{file.batch.failed}:{ended}:{int(self._strict)}"

    def _remember(self, file: ResultFile, size: int) -> None:
        if file.complete:
            self._store.connection.set(self._size_key(file), size, ex=SIZE_KEPT_S)

    def size(self, file: ResultFile, *, at_once: bool = True) -> int:
        """Its bytes. Once the batch is done they are remembered; where they are not known and it is large, with
        ``at_once`` false it is 0."""
        known = cast("bytes | None", self._store.connection.get(self._size_key(file)))
        if known is not None and known.isdigit():
            return int(known)
        if not at_once and file.lines > SIZED_AT_ONCE:
            return 0
        size = sum(map(len, self.lines(file)))
        self._remember(file, size)
        return size


def name_error(shown: dict[str, Any]) -> None:
    """Name a line's error at the top of its envelope too: clients disagree about where they look for it."""
    response: dict[str, Any] = shown["response"] or {"status_code": 0, "body": {}}
    body = response["body"]
    if response["status_code"] >= 400 and shown["error"] is None and "error" in body:
        shown["error"] = {"code": body["error"]["code"], "message": body["error"]["message"]}
