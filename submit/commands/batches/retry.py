"""``promptmill retry``: runs a batch's failed lines again."""

from __future__ import annotations

import click
import orjson

from submit.commands.options import json_option, open_store, redis_option
from submit.status.text import plural


@click.command("retry", short_help="Run a batch's failed lines again.")
@click.argument("name", metavar="BATCH")
@redis_option
@json_option
def command(name: str, redis_url: str | None, as_json: bool) -> int:
    """Run the failed lines of BATCH (an id or a name) again, in the same batch: lines that succeeded stay as they are,
    and so do lines that were refused at submission. The batch must be done.

    --json prints the batch, with `retried`: how many lines wait to run.

    Exit statuses: 0 they wait, or there are none; 2 the batch is still running, or unknown.
    """
    from jobs.store.retry import retry
    from submit.commands.each_batch import called

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
