"""Batches and a worker without a model, for tests of what lies around the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from jobs.errors import LineError
from jobs.lines.line import Defaults, Job, check_line
from jobs.record import Choice, RunStats, error_record, result_record
from jobs.shard import decode_lines
from jobs.store.keys import BatchKeys, worker_key
from jobs.store.store import REJECTED_GROUP, FinishedLine, Store
from submit.input.reader import PromptObjects
from submit.upload.submitter import Order, submit

MODEL = "pocket"
NOON = 1_790_000_000.25

Answer = Callable[[Job], Sequence[Choice]]


def echo(job: Job) -> list[Choice]:
    """As many choices as asked for, each with the job's id in its text."""
    return [Choice(number, f"answer to {job.id}", "eos") for number in range(job.sampling.n)]


def make_batch(store: Store, lines: Iterable[dict[str, Any]], **order: Any) -> str:
    """A live batch of these lines for MODEL; its id."""
    defaults = Defaults({"model": MODEL, **order.pop("defaults", {})})
    return submit(store, PromptObjects(lines), Order(defaults=defaults, **order)).batch_id


def prompts(count: int) -> list[dict[str, Any]]:
    """Lines with a prompt each, ids ``row-0`` and so on."""
    return [{"id": f"row-{number}", "prompt": "Once upon a time"} for number in range(count)]


def finished_line(job: Job, answer: Answer, batch_id: str) -> FinishedLine:
    """The line's record, an error where ``answer`` raises :class:`LineError`."""
    try:
        choices = answer(job)
    except LineError as error:
        record = error_record(
            line_id=job.id,
            index=job.index,
            batch_id=batch_id,
            code=error.code,
            message=error.message,
            param=error.field,
            finished_at=NOON,
            adapter_path=job.adapter_path,
            endpoint=job.endpoint,
            metadata=job.metadata,
        )
        return FinishedLine(job.index, False, 0, 0, 0, record)
    stats = RunStats(
        prompt_tokens=10,
        completion_tokens=20,
        cached_tokens=4,
        time_to_first_token_s=0.1,
        prefill_s=0.1,
        decode_s=0.5,
        queue_s=0.0,
    )
    record = result_record(
        job,
        choices,
        stats,
        batch_id=batch_id,
        model_revision="r1",
        worker="fake.1",
        attempt=1,
        created_at=NOON,
        finished_at=NOON,
    )
    return FinishedLine(job.index, True, 10, 20, 4, record)


def work(store: Store, batch_id: str, *, only: Iterable[int] | None = None, answer: Answer = echo) -> None:
    """Write the records of a batch's lines (``only`` those indices, in that order) as a worker does."""
    batch, wanted = store.batch(batch_id), None if only is None else list(only)
    for row in store.connection.zrange(BatchKeys(batch_id).table, 0, -1):
        number, group, _first, lines = orjson.loads(row)
        attempt = store.claim(batch_id, number) if group != REJECTED_GROUP else None
        payload = store.payload(batch_id, number)
        if attempt is None or payload is None:
            continue
        jobs = {
            line.index: check_line(line.raw).job(
                index=line.index, line=line.line, batch_id=batch_id, defaults=Defaults(batch.defaults)
            )
            for line in decode_lines(payload)
            if line.index not in attempt.finished
        }
        for index in wanted if wanted is not None else jobs:
            if index in jobs:
                store.write(attempt, [finished_line(jobs[index], answer, batch_id)])
        store.finish(attempt, lines)


def publish(store: Store, name: str, **state: Any) -> None:
    """Publish a worker's state as workers do."""
    store.connection.set(worker_key(name), orjson.dumps({"name": name, "state": "idle", **state}), ex=15)


def watched(store: Store, queue: str = f"promptmill:normal:{MODEL}") -> None:
    """As if a worker had looked after the queue's leases just now, and for long."""
    store.connection.hset(f"promptmill:watch:{queue}", mapping={"seen": store.server_time(), "from": 0})


@contextmanager
def full(store: Store) -> Iterator[None]:
    """The server has no memory left."""
    store.connection.config_set("maxmemory", 1)
    try:
        yield
    finally:
        store.connection.config_set("maxmemory", 0)
