"""Adding a schedule: its order and its prompts, as they are kept; and the batch that a run makes of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import orjson
import zstandard

from jobs.errors import RefusedError
from jobs.lines.line import Defaults
from jobs.shard import COMPRESSION_LEVEL
from jobs.store.retention import KEEP_S
from jobs.store.store import Store
from submit.data.open import open_any, open_input
from submit.data.order import TableOrder
from submit.input.reader import PromptFile, Prompts
from submit.input.validate import Findings
from submit.schedule.cron import Cron
from submit.schedule.kept_lines import KeptLines, kept_lines
from submit.schedule.model import REMEDY, Run, Schedule
from submit.schedule.store import MAX_PROMPTS_BYTES, RunStore, Schedules
from submit.upload.submitter import Order, ReadSoFar, check, check_order, submit

MAX_PATH = 1000
OF_LINES = ("table", "dataset", "numbered")
"""What of a stored order is said of its lines."""


class _StoredOrder(msgspec.Struct, forbid_unknown_fields=True):
    """Of an :class:`Order` what is kept with a schedule; and of a table how its lines are made at each run, and what
    batches remember of it where they are stored."""

    defaults: dict[str, Any] = {}
    name: str | None = None
    priority: str = "normal"
    on_bad_line: str = "reject"
    metadata: dict[str, Any] = {}
    expires_in: float | None = None
    keep_s: float | None = KEEP_S
    webhook: str | None = None
    dedupe: bool = False
    table: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    numbered: bool = False
    """Whether the stored lines are those of rows: see :mod:`submit.schedule.kept_lines`."""


@dataclass(frozen=True, slots=True)
class ScheduleOrder:
    """What a user says of a schedule: when, of which file, and what each of its batches is to be."""

    name: str
    cron: Cron
    order: Order
    table: TableOrder = field(default_factory=TableOrder)
    read_at_fire: bool = False
    catch_up: bool = False
    allow_overlap: bool = False
    take_place: bool = False
    """Of a schedule that has the name already."""


def add_schedule(
    store: Store,
    wanted: ScheduleOrder,
    file: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    source: str | None = None,
    progress: ReadSoFar = lambda lines, size: None,
) -> tuple[Schedule, Findings | None]:
    """Make a schedule; the file, or the prompts, are checked and stored with it, unless it is to be read at each run.
    ``source`` is the file's name as it is shown, if that is another than its path.

    Raises:
        InputError: the file has bad lines, or none.
        RefusedError: it cannot be read or is too large, the name is taken, or the order makes no sense.
    """
    schedules = Schedules(store.connection)
    packed, checked, path, numbered = None, None, None, False
    dataset: Mapping[str, Any] = {}
    if wanted.read_at_fire:
        source = path = _absolute(file)
        check_order(wanted.order)
    else:
        with open_any(file, wanted.table, model=wanted.order.defaults.model) as prompts:
            content = prompts.blocks() if isinstance(prompts, PromptFile) else kept_lines(prompts)
            numbered = not isinstance(prompts, PromptFile)
            source = source or prompts.name
            packed, dataset = _packed(content, source), prompts.dataset
        with _unpacked(packed, source, dataset, numbered=numbered) as prompts:
            checked = check(prompts, wanted.order, progress=progress)
    kept = {"table": wanted.table.as_dict(), "dataset": dataset, "numbered": numbered}
    models = checked.models if checked is not None else tuple(filter(None, [wanted.order.defaults.model]))
    facts = {
        "order": orjson.dumps(_order_json(wanted.order) | kept),
        "source": source[:1000],
        "path": path or "",
        "lines": 0 if checked is None else checked.total,
        "models": orjson.dumps(models),
        "catch_up": int(wanted.catch_up),
        "allow_overlap": int(wanted.allow_overlap),
    }
    now = store.server_time()
    return schedules.add(wanted.name, wanted.cron, facts, packed, replace=wanted.take_place, now=now), checked


def submit_run(
    store: Store,
    schedule: Schedule,
    run: Run,
    *,
    begun: bool = True,
    read_from: Sequence[Path] = (),
    progress: ReadSoFar = lambda lines, size: None,
) -> str:
    """Submit the batch of a run, by cron or by hand; its id. See :class:`RunStore` for ``begun``.

    Raises:
        OvertakenError: the run is another's, or over.
        InputError, RefusedError, RedisError: what :func:`submit` raises; or the prompts cannot be read.
    """
    schedules = Schedules(store.connection)
    order, kept = _order_from(schedules.order(schedule), schedule.name)
    with _prompts_of(schedules, schedule, read_from, kept, order.defaults.model) as prompts:
        run_store = RunStore(store, schedule, run, begun=begun)
        return submit(run_store, prompts, order, progress=progress, now=store.now).batch_id


# --- orders, as they are kept ---


def _order_json(order: Order) -> dict[str, Any]:
    kept = {row.name: getattr(order, row.name) for row in fields(order) if row.name in _StoredOrder.__struct_fields__}
    return kept | {"defaults": dict(order.defaults.fields), "metadata": dict(order.metadata)}


def _order_from(stored: bytes, schedule: str) -> tuple[Order, _StoredOrder]:
    """What a schedule's batches are to be, and what is kept besides; their name is the schedule's where no other was
    given.

    Raises:
        RefusedError: it is not what :func:`add_schedule` wrote.
    """
    try:
        kept = msgspec.json.decode(stored, type=_StoredOrder)
    except ValueError as error:
        raise RefusedError(f"what Redis keeps of schedule '{schedule}' is damaged ({error!s:.200}): {REMEDY}") from None
    said = {name: value for name, value in msgspec.structs.asdict(kept).items() if name not in OF_LINES}
    order = Order(**{**said, "defaults": Defaults(kept.defaults)})
    return replace(order, name=order.name or schedule, schedule=schedule), kept


# --- prompts, as they are kept ---


@contextlib.contextmanager
def _prompts_of(
    schedules: Schedules, schedule: Schedule, read_from: Sequence[Path], kept: _StoredOrder, model: str | None
) -> Iterator[Prompts]:
    """The prompts of a run: those stored with the schedule, or the file at its path, if it is in one of these folders.

    Raises:
        RefusedError: there is no such file, or none that may be read.
    """
    if schedule.path is None:
        packed = schedules.prompts(schedule)
        with _unpacked(packed, schedule.source, kept.dataset, numbered=kept.numbered) as stored:
            yield stored
        return
    path, table = str(_readable(schedule.path, read_from)), TableOrder.from_dict(kept.table)
    with open_input(path, table, name=schedule.path, model=model) as prompts:
        yield prompts


def _readable(path: str, read_from: Sequence[Path]) -> Path:
    """Where the file at ``path`` lies in the end, if it may be read."""
    if not Path(path).is_absolute():
        raise RefusedError(f"{path}: the path of a file that is read at each run is absolute")
    if not read_from:
        raise RefusedError(
            f"{path}: is not read, for the scheduler was given no folder: `promptmill scheduler --read-from "
            f"{Path(path).parent}`"
        )
    try:
        real = Path(path).resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not regular:  # a pipe would be waited for
        raise RefusedError(f"{path}: is no regular file")
    if not any(real.is_relative_to(folder.resolve()) for folder in read_from):
        raise RefusedError(f"{path}: is in none of the folders of the scheduler's --read-from")
    return real


def _absolute(path: Any) -> str:
    path = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(path, str) or not Path(path).is_absolute() or not path.isprintable() or len(path) > MAX_PATH:
        raise RefusedError(
            f"{path!r:.200}: with --read-at-fire give the absolute path of the file on the scheduler's host"
        )
    return path


def _packed(content: Iterable[bytes], name: str) -> bytes:
    """The content, compressed.

    Raises:
        RefusedError: it is too large.
    """
    packer = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compressobj()
    packed = bytearray()
    for block in itertools.chain(content, [None]):
        packed += packer.flush() if block is None else packer.compress(block)
        if len(packed) > MAX_PROMPTS_BYTES:
            raise RefusedError(
                f"{name}: has more than {MAX_PROMPTS_BYTES >> 20} MiB compressed, too much to be kept in Redis: with "
                "--read-at-fire the scheduler reads it from a path on its host at each run"
            )
    return bytes(packed)


@contextlib.contextmanager
def _unpacked(packed: bytes, name: str, dataset: Mapping[str, Any], *, numbered: bool) -> Iterator[Prompts]:
    """The prompts of a compressed content: a file as it was, or the ``numbered`` lines of rows."""
    with tempfile.NamedTemporaryFile(prefix="promptmill-", suffix=".zst") as file:
        file.write(packed)
        file.flush()
        with PromptFile(file.name) as prompts:
            prompts.name = name
            yield KeptLines(prompts, dataset) if numbered else prompts
