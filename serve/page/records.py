"""The records of a batch on the page: a few at a time, searched and filtered, and one of them whole.

However large a batch is, a request looks at a bounded number of records, and says where the next one goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.record_head import whole
from jobs.store.keys import BatchKeys
from jobs.store.store import Store
from serve.errors import not_found
from submit.results.prompts import Inputs
from submit.results.read import StoredRecord, finished_records

LISTED = 50
BLOCK = 200
LATER_BLOCK = 1000
MOST_LOOKED_AT = 20_000
LONGEST_S = 1.0
"""A request looks at records for about so long."""
SHOWN_TEXT = 600
MOST_RECORD = 1 << 20
"""Of a longer record the log-probabilities are left out."""


class Function(msgspec.Struct, frozen=True):
    name: str = ""
    arguments: Any = ""


class Call(msgspec.Struct, frozen=True):
    """A tool call, as OpenAI writes it."""

    function: Function = Function()


class Choice(msgspec.Struct, frozen=True):
    """A completion, as the list shows it."""

    stop_reason: str = ""
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[Call] | None = None

    @property
    def calls(self) -> str:
        """Its tool calls, a line each."""
        return "\n".join(f"{call.function.name}({call.function.arguments})" for call in self.tool_calls or ())


class Failure(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""
    param: str | None = None


class Tokens(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Timing(msgspec.Struct, frozen=True):
    tokens_per_second: float | None = None
    time_to_first_token_s: float | None = None


class Row(msgspec.Struct, frozen=True):
    """What the page lists of a record; its log-probabilities are passed over."""

    index: int
    id: str = ""
    model: str | None = None
    worker: str | None = None
    error: Failure | None = None
    stop_reason: str | None = None
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[Call] | None = None
    choices: list[Choice] | None = None
    usage: Tokens = Tokens()
    stats: Timing = Timing()

    @property
    def completions(self) -> list[Choice]:
        if self.choices:
            return self.choices
        if self.stop_reason is None:
            return []
        return [Choice(self.stop_reason, self.text, self.reasoning, self.tool_calls)]


decode_row = msgspec.json.Decoder(Row).decode
_PLAIN = re.compile(r"[a-z0-9 .,;:!?()_-]*")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are asked for: in which a text is (folded), that ended for a reason, or failed with a code; ``*``
    is any of these."""

    text: str = ""
    stop: str = ""
    error: str = ""

    def may_take(self, record: StoredRecord) -> bool:
        """Whether a record may fit, by a look at its bytes: most that do not are never decoded."""
        if self.error and record.ok:
            return False
        raw = record.raw
        if self.stop and self.stop != "*" and b'"%s"' % self.stop.encode() not in raw:
            return False
        # Other texts may be written with escapes, and other letters may be folded to more than one.
        return not _PLAIN.fullmatch(self.text) or not raw.isascii() or self.text.encode() in raw.lower()

    def takes(self, row: Row) -> bool:
        if self.error and (row.error is None or self.error not in ("*", row.error.code)):
            return False
        if self.stop and not any(self.stop in ("*", choice.stop_reason) for choice in row.completions):
            return False
        return not self.text or any(self.text in text.casefold() for text in _texts(row))


def _texts(row: Row) -> Iterator[str]:
    yield row.id
    if row.error is not None:
        yield row.error.message
    for choice in row.completions:
        yield choice.text
        yield choice.reasoning or ""
        yield choice.calls


def count_finished(store: Store, batch_id: str) -> int:
    """How many places the order of finishing has."""
    found: Any = store.connection.llen(BatchKeys(batch_id).finished)
    return int(found)


def records_between(store: Store, batch_id: str, start: int, end: int) -> Iterator[StoredRecord]:
    """The records at these places of the order of finishing, ``end`` not among them."""
    if start >= end:
        return
    for record in finished_records(store.connection, batch_id, start=start, chunk=end - start):
        if record.after <= end:
            yield record
        if record.after >= end:
            return


def find_records(
    store: Store,
    batch_id: str,
    wanted: Filter,
    *,
    newest: bool,
    at: int | None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Some records that fit, from the place ``at`` on (None: from the start), in the order of finishing or against it.
    ``next`` is where to go on, None at the end; ``looked_at`` is how many records were looked at."""
    total, begun = count_finished(store, batch_id), clock()
    place = (total if newest else 0) if at is None else min(at, total)
    rows: list[dict[str, Any]] = []
    looked_at = 0
    while (place > 0 if newest else place < total) and len(rows) < LISTED:
        # The first ones are often enough; where they are not, larger parts read fewer shards twice.
        block = BLOCK if looked_at == 0 else min(LATER_BLOCK, MOST_LOOKED_AT - looked_at)
        low, high = (max(place - block, 0), place) if newest else (place, min(place + block, total))
        found = [row for record in records_between(store, batch_id, low, high) if (row := _fitting(record, wanted))]
        room = LISTED - len(rows)
        rows += (found[::-1] if newest else found)[:room]
        looked_at += high - low
        if len(found) > room:
            place = rows[-1]["place"] if newest else rows[-1]["place"] + 1
        else:
            place = low if newest else high
        if looked_at >= MOST_LOOKED_AT or clock() - begun >= LONGEST_S:
            break
    over = place <= 0 if newest else place >= total
    return {"records": rows, "next": None if over else place, "looked_at": looked_at, "finished": total}


def _fitting(record: StoredRecord, wanted: Filter) -> dict[str, Any] | None:
    """What is listed of a record that fits; None of another. The record itself, which may be long, is not kept."""
    if not wanted.may_take(record):
        return None
    row = decode_row(record.raw)
    return _listed(row, record) if wanted.takes(row) else None


def _listed(row: Row, record: StoredRecord) -> dict[str, Any]:
    first = row.completions[0] if row.completions else Choice()
    text = "\n".join(filter(None, (first.text, first.calls)))
    return {
        "place": record.after - 1,
        "line": row.index + 1,
        "id": row.id[:200],
        "error": None if row.error is None else {"code": row.error.code, "message": row.error.message[:SHOWN_TEXT]},
        "stops": sorted({choice.stop_reason for choice in row.completions}),
        "choices": len(row.completions),
        "text": text[:SHOWN_TEXT],
        "cut": len(text) > SHOWN_TEXT,
        "thought": bool(first.reasoning),
        "prompt_tokens": row.usage.prompt_tokens,
        "completion_tokens": row.usage.completion_tokens,
        "tokens_per_second": row.stats.tokens_per_second,
        "time_to_first_token_s": row.stats.time_to_first_token_s,
    }


def whole_record(store: Store, batch: Batch, place: int) -> dict[str, Any]:
    """A record with all its fields, and the line's prompt where it is still there.

    Raises:
        ApiError: there is none at this place.
    """
    found = next(records_between(store, batch.id, place, place + 1), None)
    if found is None:
        raise not_found("record", str(place))
    record = whole(found.raw)
    if cut := len(found.raw) > MOST_RECORD:
        for item in (record, *record.get("choices", ())):
            item.pop("logprobs", None)
    try:
        job = Inputs(store, batch).job(found)
        prompt: Any = job.prompt if job.messages is None else [dict(message) for message in job.messages]
    except (RefusedError, ValueError):
        prompt = None
    return {"record": record, "without_logprobs": cut, "prompt": prompt}
