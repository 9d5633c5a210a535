"""``promptmill priority``: puts a batch before or behind others while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.batch import PRIORITIES
from submit.options import json_option, open_store, redis_option

if TYPE_CHECKING:
    from jobs.batch import Batch


@click.command("priority", short_help="Give a running batch another priority.")
@click.argument("names", metavar="BATCH...", nargs=-1, required=True)
@click.argument("priority", type=click.Choice(PRIORITIES))
@redis_option
@json_option
def command(names: tuple[str, ...], priority: str, redis_url: str | None, as_json: bool) -> int:
    """Give each BATCH (an id or a name) another priority, also while it runs.

    Lines of a batch of high priority begin as soon as rows are free, before all others; shards that workers hold
    already are finished as they are. On a busy pool a batch of normal priority gets a shard's turn every two minutes,
    one of low priority every ten.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is over, is still being submitted, or is unknown.
    """
    from jobs.holding import prioritise
    from submit.named import called, each_batch

    with open_store(redis_url) as store:

        def move(batch: Batch) -> str:
            before = prioritise(store, batch.id, priority)
            if before == priority:
                return f"{called(batch)} has priority {priority} already"
            return f"{called(batch)} has priority {priority} now, it was {before}"

        return each_batch(store, names, move, as_json=as_json)
