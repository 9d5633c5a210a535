"""``promptmill purge``: removes batches that are done, with all their records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.errors import BatchNotFoundError, RefusedError
from submit.commands.options import Duration, json_option, open_store, redis_option
from submit.status.text import duration, memory_size, plural

if TYPE_CHECKING:
    from jobs.batch import Batch


@click.command("purge", short_help="Remove batches that are done, with their records.")
@click.argument("names", metavar="[BATCH]...", nargs=-1)
@click.option(
    "--older-than",
    type=Duration(lifetime=False),
    metavar="DURATION",
    help="Those that ended longer ago than this: 12h, 14d, 0.",
)
@redis_option
@json_option
def command(names: tuple[str, ...], older_than: float | None, redis_url: str | None, as_json: bool) -> int:
    """Remove each BATCH (an id or a name), or those --older-than a duration, from Redis: prompts and records.

    Only batches that are done are removed: cancel one first that is not. Without this command they are removed by
    themselves as `submit --keep` said, after 14 days otherwise.

    --json prints each removed batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is not done, or is unknown.
    """
    from jobs.store.retention import memory, purge
    from submit.commands.each_batch import called, each_batch

    if bool(names) == (older_than is not None):
        raise RefusedError("name the batches to purge, or give --older-than DURATION: one of the two")
    with open_store(redis_url) as store:
        if older_than is not None:
            ended_before = store.now() - older_than
            names = tuple(
                batch.id for batch in store.batches() if batch.ended_at is not None and batch.ended_at <= ended_before
            )
            if not names:
                click.echo(f"no batch ended longer than {duration(older_than)} ago", err=True)

        def remove(batch: Batch) -> str:
            freed = memory(store.connection, batch.id) if batch.done else 0
            try:
                purge(store, batch.id)
            except BatchNotFoundError:
                return f"{called(batch)} is gone already"
            return f"{called(batch)} is removed: {plural(batch.total, 'line')}, {memory_size(freed)}"

        return each_batch(store, names, remove, as_json=as_json)
