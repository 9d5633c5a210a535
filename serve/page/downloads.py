"""A batch's results as a file, in each format of the command line, sent while it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from starlette.responses import StreamingResponse

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.store.store import Store
from serve.errors import ApiError
from submit.data.extras import require
from submit.results.destination import FORMATS, TABLES, TRAINING, Destination
from submit.results.formats import renderer
from submit.results.read import finished_records, ordered_records
from submit.results.tables.open import table_blocks

BLOCK_BYTES = 1 << 18
ORDERS = ("input", "finished")
WHICH = ("all", "succeeded", "failed")
KINDS = {
    "parquet": ("parquet", "application/vnd.apache.parquet"),
    "csv": ("csv", "text/csv; charset=utf-8"),
}
"""Of formats that are not lines of JSON the suffix and the media type."""


def choices() -> dict[str, Any]:
    """What may be asked for, and what cannot be had here, with the reason."""
    return {
        "formats": list(FORMATS),
        "training": list(TRAINING),
        "tables": list(TABLES),
        "orders": list(ORDERS),
        "which": list(WHICH),
        "missing": dict(_missing()),
    }


def _missing() -> Iterator[tuple[str, str]]:
    try:
        require("pyarrow", "Parquet")
    except RefusedError as error:
        yield "parquet", str(error)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a download is to be: a format, the order of its lines, which of them, and what formats leave out or add."""

    fmt: str = "native"
    order: str = "input"
    which: str = "all"
    keep_cut: bool = False
    json_columns: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Wish:
        """What the query of a request says.

        Raises:
            ApiError: there is no such format or order.
        """
        fmt, order, which = query.get("format", "native"), query.get("order", "input"), query.get("which", "all")
        for name, given, known in (("format", fmt, FORMATS), ("order", order, ORDERS), ("which", which, WHICH)):
            if given not in known:
                message = f"Invalid '{name}': expected one of {', '.join(known)}."
                raise ApiError(400, message, code="invalid_value", param=name)
        keep_cut = query.get("keep_cut") == "1" and fmt in TRAINING
        return cls(fmt, order, which, keep_cut, query.get("json_columns") == "1" and fmt in TABLES)


def download(store: Store, batch: Batch, wish: Wish) -> StreamingResponse:
    """The records that there are by now, as an attachment.

    Raises:
        ApiError: the format cannot hold the first record, or needs a package that is not here.
    """
    try:
        blocks = _blocks(_pieces(store, batch, wish))
        # What a format cannot hold shows in the first records: before anything was sent.
        first = next(blocks, b"")
    except RefusedError as error:
        raise ApiError(400, str(error), code="invalid_value", param="format") from None
    suffix, kind = KINDS.get(wish.fmt, (f"{wish.fmt}.jsonl", "application/x-ndjson"))
    headers = {"Content-Disposition": f'attachment; filename="{_name(batch)}.{suffix}"', "Cache-Control": "no-store"}
    return StreamingResponse(chain([first], blocks), media_type=kind, headers=headers)


def check_download(store: Store, batch: Batch, wish: Wish) -> None:
    """See whether a download would begin, without the passes over all records that the columns of tables may need.

    Raises:
        ApiError: as :func:`download`.
    """
    if wish.fmt not in TABLES:
        download(store, batch, wish)
    elif (why := choices()["missing"].get(wish.fmt)) is not None:
        raise ApiError(400, why, code="invalid_value", param="format")


def _pieces(store: Store, batch: Batch, wish: Wish) -> Iterator[bytes]:
    destination = Destination(fmt=wish.fmt, keep_cut=wish.keep_cut, json_columns=wish.json_columns)
    records = (ordered_records if wish.order == "input" else finished_records)(store.connection, batch.id)
    wanted = (record for record in records if wish.which == "all" or record.ok is (wish.which == "succeeded"))
    if destination.table:
        return table_blocks(destination, store, batch, wanted)
    return map(renderer(destination, store, batch), wanted)


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    block = bytearray()
    for piece in pieces:
        block += piece
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _name(batch: Batch) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", batch.name or "").strip("-.")[:80] or batch.id
