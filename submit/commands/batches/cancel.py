"""``promptmill cancel``: ends batches that are running or waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from submit.commands.options import json_option, open_store, redis_option
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.batch import Batch


@click.command("cancel", short_help="End a batch now; finished lines are kept.")
@click.argument("names", metavar="BATCH...", nargs=-1, required=True)
@redis_option
@json_option
def command(names: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """End each BATCH (an id or a name) at once. Finished lines are kept; the others get an error record, `cancelled`.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 all are cancelled, 2 one was over already, is still being submitted, or is unknown.
    """
    from jobs.store.cancel import cancel
    from submit.commands.each_batch import each_batch

    with open_store(redis_url) as store:

        def end(batch: Batch) -> str:
            now = cancel(store, batch.id)
            return _said(store.batch(batch.id), "is cancelled" if now else "was cancelled already")

        return each_batch(store, names, end, as_json=as_json)


def _said(batch: Batch, what: str) -> str:
    from submit.commands.each_batch import called

    kept = batch.ran
    return f"{called(batch)} {what}: {kept:,} of {plural(batch.total, 'line')} finished, {batch.unrun:,} not run"
