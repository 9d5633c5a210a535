"""What a side of the benchmark of tables gets, the table that is submitted, and results in place of a worker's."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.lines.line import Defaults, Job, check_line
from jobs.record import Choice, RunStats, result_record
from jobs.redis.connect import connect
from jobs.shard import decode_lines
from jobs.store.keys import BatchKeys
from jobs.store.shard_records import pieces_of
from jobs.store.shard_table import read_rows
from jobs.store.store import Store

TEMPLATE = {"prompt": "{{ context }}\n\nQ: {{ question }} ({{ label }})"}
DEFAULTS = Defaults({"model": "bench"})
WORDS = 5000
GROUP_ROWS = 50_000
ANSWER = "an answer of some words for row {}, and a bit more text than that"


@dataclass(frozen=True, slots=True)
class DataTask:
    """The server's URL, the file that is read or written, how many rows, and the batch, once there is one."""

    url: str
    path: str
    rows: int
    batch_id: str = ""

    @classmethod
    def from_json(cls, text: str) -> DataTask:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def write_table(path: Path, rows: int) -> None:
    """Five columns of about 420 bytes a row; the same file for the same number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(rows)
    words = [f"w{number}" for number in range(WORDS)]

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    types = {"id": pa.string(), "question": pa.string(), "context": pa.string(), "n": pa.int64(), "label": pa.string()}
    with pq.ParquetWriter(path, pa.schema(types)) as writer:
        for start in range(0, rows, GROUP_ROWS):
            numbers = range(start, min(start + GROUP_ROWS, rows))
            columns: dict[str, list[Any]] = {
                "id": [f"r{number}" for number in numbers],
                "question": [f"{text(20)}?" for _ in numbers],
                "context": [text(40) for _ in numbers],
                "n": list(numbers),
                "label": [draw.choice("abc") for _ in numbers],
            }
            writer.write_table(pa.table(columns, pa.schema(types)))


def fill(task: DataTask) -> None:
    """Give each line of a batch a result, as workers leave them once all are done."""
    store = Store(connect(task.url))
    keys = BatchKeys(task.batch_id)
    for shard in read_rows(store.connection, task.batch_id):
        records = list(_records(store, task.batch_id, shard.number))
        with store.connection.pipeline() as pipe:
            for piece in pieces_of(records):
                pipe.zadd(keys.compacted(shard.number), {piece.frame: piece.last})
            pipe.rpush(keys.finished, *[f"{shard.number}:{index}" for index, _ in records])
            pipe.execute()
    done: list[str | int] = ["status", "completed", "completed_at", repr(store.now()), "completed", task.rows]
    store.connection.hset(keys.info, items=done)


def _records(store: Store, batch_id: str, number: int) -> Iterator[tuple[int, bytes]]:
    payload = store.payload(batch_id, number)
    assert payload is not None
    stats = RunStats(100, 30, 0, 0.1, 0.1, 0.5, 0.1)
    for line in decode_lines(payload):
        job: Job = check_line(line.raw).job(index=line.index, line=line.line, batch_id=batch_id, defaults=DEFAULTS)
        yield line.index, result_record(
            job, [Choice(0, ANSWER.format(job.id), "eos")], stats, batch_id=batch_id, model_revision=None,
            worker="bench", attempt=1, created_at=store.now(), finished_at=store.now(),
        )  # fmt: skip
