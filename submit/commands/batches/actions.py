"""Commands that do one thing to batches: cancel, priority, purge, retry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import orjson

from jobs.batch import PRIORITIES
from jobs.errors import BatchNotFoundError, RefusedError
from submit.commands.each_batch import called, each_batch
from submit.commands.options import Duration, json_option, open_store, redis_option
from submit.status.text import duration, memory_size, plural

if TYPE_CHECKING:
    from jobs.batch import Batch


@click.command("cancel", short_help="End a batch now; finished lines are kept.")
@click.argument("names", metavar="BATCH...", nargs=-1, required=True)
@redis_option
@json_option
def cancel(names: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """End each BATCH (an id or a name) at once. Finished lines are kept; the others get an error record, `cancelled`.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 all are cancelled, 2 one was over already, is still being submitted, or is unknown.
    """
    from jobs.store.cancel import cancel

    with open_store(redis_url) as store:

        def end(batch: Batch) -> str:
            what = "is cancelled" if cancel(store, batch.id) else "was cancelled already"
            now = store.batch(batch.id)
            finished = f"{now.ran:,} of {plural(now.total, 'line')} finished"
            return f"{called(now)} {what}: {finished}, {now.unrun:,} not run"

        return each_batch(store, names, end, as_json=as_json)


@click.command("priority", short_help="Give a running batch another priority.")
@click.argument("words", metavar=f"BATCH... {{{'|'.join(PRIORITIES)}}}", nargs=-1)
@redis_option
@json_option
def priority(words: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """Give each BATCH (an id or a name) another priority, also while it runs.

    Lines of a batch of high priority begin as soon as rows are free, before all others; shards that workers hold
    already are finished as they are. On a busy pool a batch of normal priority gets a shard's turn after two minutes
    and four shards at the latest, one of low priority after ten minutes and sixteen.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is over, is still being submitted, or is unknown.
    """
    from jobs.store.pause import prioritise

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
def purge(names: tuple[str, ...], older_than: float | None, redis_url: str | None, as_json: bool) -> int:
    """Remove each BATCH (an id or a name), or those --older-than a duration, from Redis: prompts and records.

    Only batches that are done are removed: cancel one first that is not. Without this command they are removed by
    themselves as `submit --keep` said, after 14 days otherwise.

    --json prints each removed batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is not done, or is unknown.
    """
    from jobs.store.retention import memory, purge

    if bool(names) == (older_than is not None):
        raise RefusedError("name the batches to purge, or give --older-than DURATION: one of the two")
    with open_store(redis_url) as store:
        if older_than is not None:
            before = store.now() - older_than
            ended = [batch for batch in store.batches() if batch.ended_at is not None and batch.ended_at <= before]
            names = tuple(batch.id for batch in ended)
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


@click.command("retry", short_help="Run a batch's failed lines again.")
@click.argument("name", metavar="BATCH")
@redis_option
@json_option
def retry(name: str, redis_url: str | None, as_json: bool) -> int:
    """Run the failed lines of BATCH (an id or a name) again, in the same batch: lines that succeeded stay as they are,
    and so do lines that were refused at submission. The batch must be done.

    --json prints the batch, with `retried`: how many lines wait to run.

    Exit statuses: 0 they wait, or there are none; 2 the batch is still running, or unknown.
    """
    from jobs.store.retry import retry

    with open_store(redis_url) as store:
        found = store.find(name)
        lines = retry(store, found.id)
        batch = store.batch(found.id)
        now = store.now()
    if not lines:
        click.echo(f"nothing to retry in {called(batch)}", err=True)
    else:
        verb = "waits" if lines == 1 else "wait"
        click.echo(f"{plural(lines, 'line')} of {called(batch)} {verb} to run again", err=True)
    if batch.rejected:
        click.echo(f"{plural(batch.rejected, 'line')} refused at submission cannot run: submit them mended", err=True)
    if lines and batch.pool is not None:
        click.echo("it was made by `promptmill run`: run the same command again to finish it", err=True)
    if as_json:
        click.echo(orjson.dumps({**batch.as_dict(now), "retried": lines}).decode())
    return 0
