"""``promptmill priority``: puts a batch before or behind others while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.batch import PRIORITIES
from submit.commands.options import json_option, open_store, redis_option

if TYPE_CHECKING:
    from jobs.batch import Batch


@click.command("priority", short_help="Give a running batch another priority.")
@click.argument("words", metavar=f"BATCH... {{{'|'.join(PRIORITIES)}}}", nargs=-1)
@redis_option
@json_option
def command(words: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """Give each BATCH (an id or a name) another priority, also while it runs.

    Lines of a batch of high priority begin as soon as rows are free, before all others; shards that workers hold
    already are finished as they are. On a busy pool a batch of normal priority gets a shard's turn after two minutes
    and four shards at the latest, one of low priority after ten minutes and sixteen.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is over, is still being submitted, or is unknown.
    """
    from jobs.store.pause import prioritise
    from submit.commands.each_batch import called, each_batch

    *names, priority = words or ("",)
    if priority not in PRIORITIES:
        wrong = f"'{priority}' is no priority" if names else "the priority is missing"
        example = " ".join(words if len(words) == 1 else (names or ["BATCH"]))
        raise click.UsageError(
            f"{wrong}: it comes last and is {', '.join(PRIORITIES[:-1])} or {PRIORITIES[-1]}, as in "
            f"`promptmill priority {example} {PRIORITIES[0]}`"
        )
    if not names:
        raise click.UsageError(f"the batch is missing: `promptmill priority BATCH {priority}`")
    with open_store(redis_url) as store:

        def move(batch: Batch) -> str:
            before = prioritise(store, batch.id, priority)
            if before == priority:
                return f"{called(batch)} has priority {priority} already"
            return f"{called(batch)} has priority {priority} now, it was {before}"

        return each_batch(store, names, move, as_json=as_json)
