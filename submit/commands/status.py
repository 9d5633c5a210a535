"""``promptmill status``: where batches stand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import orjson

from jobs.ending import current, expire_due
from submit.options import json_option, open_store, redis_option

if TYPE_CHECKING:
    from jobs.store import Store
    from submit.screen import Frame

MEASURE_S = 10.0


@click.command("status", short_help="Show batches, or one in detail.")
@click.argument("name", metavar="[BATCH]", required=False)
@click.option("--watch", is_flag=True, help="Refresh every second; Ctrl-C leaves. Ends when BATCH is done.")
@redis_option
@json_option
def command(name: str | None, watch: bool, redis_url: str | None, as_json: bool) -> int:
    """Show all batches, or BATCH (an id or a name) in detail with its lines in flight.

    --json prints one object for a batch and a list for all, with --watch a line of it every second.
    """
    from submit.screen import watch as show

    with open_store(redis_url) as store:
        if as_json:
            frame = _json_frame(store, name)
        else:
            frame = _list_frame(store) if name is None else _detail_frame(store, store.find(name).id)
        if not watch:
            lines, _ = frame(_columns())
            click.echo("\n".join(lines))
            return 0
        # JSON is for programs: it is never drawn in place.
        show(frame, sys.stdout, keep_end=name is None, environ={"TERM": "dumb"} if as_json else os.environ)
    return 0


def _columns() -> int | None:
    """The terminal's columns; None when stdout is none."""
    from submit.progress import terminal_width

    return terminal_width(sys.stdout) if sys.stdout.isatty() else None


def _list_frame(store: Store) -> Frame:
    from submit.overview import batch_table
    from submit.progress import Window

    windows: dict[str, Window] = {}

    def frame(width: int | None) -> tuple[list[str], bool]:
        expire_due(store)
        now, batches = store.now(), store.batches()
        rates = {batch.id: windows.setdefault(batch.id, Window()).add(now, batch) for batch in batches}
        return batch_table(batches, now, rates=rates, width=width), False

    return frame


def _detail_frame(store: Store, batch_id: str) -> Frame:
    from submit.overview import detail
    from submit.progress import Window
    from submit.workers import Workers

    workers, window, measured = Workers(store.connection), Window(), _memory(store, batch_id)

    def frame(width: int | None) -> tuple[list[str], bool]:
        now, batch = store.now(), current(store, batch_id)
        queues = workers.queues_of(batch_id)
        recent = window.add(now, batch)
        return detail(batch, now, workers.read(), queues, recent=recent, memory=measured()), batch.done

    return frame


def _json_frame(store: Store, name: str | None) -> Frame:
    from submit.overview import batch_object
    from submit.workers import Workers

    workers = Workers(store.connection)
    batch_id = None if name is None else store.find(name).id
    measured = _memory(store, batch_id or "")

    def frame(_width: int | None) -> tuple[list[str], bool]:
        now = store.now()
        if batch_id is None:
            expire_due(store)
            return [orjson.dumps([batch.as_dict(now) for batch in store.batches()]).decode()], False
        batch = current(store, batch_id)
        found = batch_object(batch, now, workers.read(), workers.queues_of(batch_id), measured())
        return [orjson.dumps(found).decode()], batch.done

    return frame


def _memory(store: Store, batch_id: str) -> Callable[[], int]:
    """What a batch takes in Redis, measured anew every ten seconds: that asks for each of its keys."""
    from jobs.keeping import memory

    last = (0.0, 0)

    def measured() -> int:
        nonlocal last
        if store.now() - last[0] >= MEASURE_S:
            last = (store.now(), memory(store.connection, batch_id))
        return last[1]

    return measured
