"""A batch's results as a file, in each format of the command line that is written line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from starlette.responses import StreamingResponse

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.store.store import Store
from serve.errors import ApiError
from submit.results.destination import FORMATS, TABLES, TRAINING, Destination
from submit.results.formats import renderer
from submit.results.read import StoredRecord, finished_records, ordered_records

LINES = tuple(name for name in FORMATS if name not in TABLES)
BLOCK_BYTES = 1 << 18
ORDERS = ("input", "finished")
WHICH = ("all", "succeeded", "failed")


def choices() -> dict[str, Any]:
    """What may be asked for."""
    return {"formats": list(LINES), "training": list(TRAINING), "orders": list(ORDERS), "which": list(WHICH)}


def download(store: Store, batch: Batch, *, fmt: str, order: str, which: str, keep_cut: bool) -> StreamingResponse:
    """The records that there are by now, as an attachment.

    Raises:
        ApiError, RefusedError: there is no such format or order, or the format cannot hold the first record.
    """
    for name, given, known in (("format", fmt, LINES), ("order", order, ORDERS), ("which", which, WHICH)):
        if given not in known:
            message = f"Invalid '{name}': expected one of {', '.join(known)}."
            raise ApiError(400, message, code="invalid_value", param=name)
    destination = Destination(fmt=fmt, keep_cut=keep_cut and fmt in TRAINING)
    records = (ordered_records if order == "input" else finished_records)(store.connection, batch.id)
    wanted = (record for record in records if which == "all" or record.ok is (which == "succeeded"))
    render = renderer(destination, store, batch)
    blocks = _blocks(wanted, render)
    # What a format cannot hold shows in the first records: before anything was sent.
    try:
        first = next(blocks, b"")
    except RefusedError as error:
        raise ApiError(400, str(error), code="invalid_value", param="format") from None
    headers = {"Content-Disposition": f'attachment; filename="{_name(batch)}.{fmt}.jsonl"', "Cache-Control": "no-store"}
    return StreamingResponse(chain([first], blocks), media_type="application/x-ndjson", headers=headers)


def _blocks(records: Iterator[StoredRecord], render: Any) -> Iterator[bytes]:
    block = bytearray()
    for record in records:
        block += render(record)
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _name(batch: Batch) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", batch.name or "").strip("-.")[:80] or batch.id
