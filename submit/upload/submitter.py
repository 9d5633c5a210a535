"""Submitting: from lines of prompts to a live batch in Redis, in one pass."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from jobs.batch import PRIORITIES, new_batch_id
from jobs.delivery import check_webhook
from jobs.errors import InputError, ProblemLine, RedisError, RefusedError
from jobs.lines.line import Defaults
from jobs.store.maintenance import upkeep
from jobs.store.retention import KEEP_S
from jobs.store.store import UPLOAD_LEASE_S, NewBatch, Store
from submit.input.reader import Prompts
from submit.input.validate import Chunk, Findings, checked
from submit.upload.sharding import Packing
from submit.upload.twins import Firsts
from submit.upload.uploader import Uploader

ON_BAD_LINE = ("reject", "skip")

MAX_NAME_LENGTH = 256
MAX_S = 10 * 366 * 86400.0
NO_MODEL = "no line names a model, and no --model is given"

ReadSoFar = Callable[[int, int], object]
"""Called with the lines and bytes read so far."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a user says of a batch as a whole. ``batch_id`` is for callers that must know it beforehand."""

    defaults: Defaults = field(default_factory=lambda: Defaults({}))
    name: str | None = None
    priority: str = "normal"
    on_bad_line: str = "reject"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None
    batch_id: str | None = None
    expires_in: float | None = None
    """Seconds from when the batch begins after which it ends by itself."""
    start_in: float | None = None
    """Seconds after which it begins; None: at once."""
    keep_s: float | None = KEEP_S
    """Seconds for which it is kept once it is done; None: until it is purged."""
    schedule: str | None = None
    """The schedule that submits it."""
    webhook: str | None = None
    """The URL that its end is posted to."""
    dedupe: bool = False
    """Whether lines that are equal in all but id and metadata, and whose text is determined, run once."""


@dataclass(slots=True, kw_only=True)
class Submitted(Findings):
    """A batch that is live, and what checking found in its input, which ``digest`` names."""

    batch_id: str
    shards: int = 0
    twins: int = 0
    """Lines that are not run because earlier ones are equal, whose records they get."""
    digest: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.batch_id,
            "total": self.total,
            "rejected": self.rejected,
            "problems": [problem.as_dict() for problem in self.problems],
            "twins": self.twins,
            "shards": self.shards,
            "models": list(self.models),
            "own_models": dict(self.own_models),
            "after_answer": self.after_answer,
        }


def check_order(order: Order) -> None:
    """Check what is said of a batch whose prompts are not at hand.

    Raises:
        RefusedError: it makes no sense.
    """
    new_batch("", order)


def check(prompts: Prompts, order: Order, *, progress: ReadSoFar = lambda lines, size: None) -> Findings:
    """Check all of ``prompts`` as :func:`submit` does, and submit nothing.

    Raises:
        InputError, RefusedError: what :func:`submit` would raise for them.
    """
    check_order(order)
    findings = Findings()
    for chunk in checked(prompts, order.defaults):
        findings.add(chunk)
        progress(findings.total, prompts.bytes_read)
    _refuse(prompts, findings, order)
    return findings


def submit(
    store: Store,
    prompts: Prompts,
    order: Order,
    *,
    progress: ReadSoFar = lambda lines, size: None,
    inspect: Callable[[Chunk], Chunk] = lambda chunk: chunk,
    now: Callable[[], float] = time.time,
) -> Submitted:
    """Check all of ``prompts`` and make a batch of them, or leave nothing in Redis. ``inspect`` may find more wrong
    with checked lines.

    Raises:
        InputError: bad lines (with ``on_bad_line="reject"``), or no lines at all; all problems are counted.
        RefusedError: the input cannot be read, or the order makes no sense.
        RedisError: the upload was silent for too long and was given up.
    """
    batch = new_batch(prompts.name, order, {**prompts.dataset, **({"dedupe": True} if order.dedupe else {})})
    upkeep(store, orphans=False)
    start_at = None if order.start_in is None else store.server_time() + order.start_in
    findings = Submitted(batch_id=batch.id)
    with contextlib.ExitStack() as stack:
        uploader = stack.enter_context(Uploader(store, batch))
        firsts = stack.enter_context(Firsts()) if order.dedupe else None
        packing = Packing(batch.id, now, order.defaults, firsts)
        for chunk in map(inspect, checked(prompts, order.defaults, with_fields=order.dedupe)):
            findings.add(chunk)
            progress(findings.total, prompts.bytes_read)
            if _refused(findings, order):
                uploader.give_up()  # read on: all problems are listed at once
                continue
            for parcel in packing.add(chunk):
                uploader.put(parcel)
        _refuse(prompts, findings, order)
        uploader.put(packing.rest())
        if not uploader.commit(
            lambda: store.commit(
                batch.id,
                total=findings.total - packing.twins,
                shards=packing.shards,
                groups=packing.groups,
                digest=prompts.digest,
                start_at=start_at,
                expires_in=order.expires_in,
            )
        ):
            raise RedisError(
                f"the upload was silent for more than {UPLOAD_LEASE_S:.0f} s and was swept as dead; "
                "nothing was enqueued: submit again"
            )
    findings.shards, findings.digest, findings.twins = packing.shards, prompts.digest, packing.twins
    return findings


def _refuse(prompts: Prompts, findings: Findings, order: Order) -> None:
    if findings.total == 0:
        nothing = ProblemLine(1, "empty_file", None, "there are no prompts in it")
        raise InputError(prompts.name, [nothing], what=nothing.message)
    if _refused(findings, order):
        what = NO_MODEL if findings.only_without_model == findings.total > 1 else None
        raise InputError(prompts.name, findings.problems, findings.rejected, what=what)


def _refused(findings: Findings, order: Order) -> bool:
    """Whether what was found refuses the whole input."""
    return findings.rejected > findings.alone and order.on_bad_line == "reject"


def new_batch(source: str, order: Order, dataset: Mapping[str, Any] | None = None) -> NewBatch:
    """What the store is told of a batch made by this order, of prompts from ``source``.

    Raises:
        RefusedError: the order makes no sense.
    """
    for value, known, what in (
        (order.priority, PRIORITIES, "priority"),
        (order.on_bad_line, ON_BAD_LINE, "on_bad_line"),
    ):
        if value not in known:
            raise RefusedError(f"{what} must be one of {', '.join(known)}, not {value!r:.40}")
    name = order.name
    if name is not None and not (1 <= len(name) <= MAX_NAME_LENGTH and name.isprintable()):
        raise RefusedError(f"a batch's name must have 1 to {MAX_NAME_LENGTH} printable characters")
    times = ((order.expires_in, "expires after"), (order.start_in, "begins in"), (order.keep_s, "is kept for"))
    for seconds, what in times:
        if seconds is not None and not 0 < seconds < MAX_S:
            raise RefusedError(f"a batch {what} a number of seconds above 0 and below ten years, not {seconds!r:.40}")
    return NewBatch(
        id=order.batch_id or new_batch_id(),
        name=name,
        source=source,
        priority=order.priority,
        defaults=_as_json(order.defaults.fields, "a default"),
        metadata=_as_json(order.metadata, "the batch's metadata"),
        pool=order.pool,
        schedule=order.schedule,
        webhook=None if order.webhook is None else check_webhook(order.webhook),
        keep_s=order.keep_s,
        dataset=_as_json(dataset or {}, "the table's order"),
    )


def _as_json(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``fields`` as they will be read back: JSON types only."""
    if not isinstance(fields, Mapping):
        raise RefusedError(f"{what} must be a dict, not {type(fields).__name__}")
    try:
        plain = orjson.loads(orjson.dumps(dict(fields), option=orjson.OPT_NON_STR_KEYS))
    except orjson.JSONEncodeError as error:
        raise RefusedError(f"{what} cannot be written as JSON: {error}") from None
    return dict(plain)
