"""``promptmill resume``: lets what was paused go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from submit.commands.batches.pause import check_what
from submit.commands.options import json_option, open_store, redis_option
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.batch import Batch
    from jobs.store.store import Store


@click.command("resume", short_help="Let the pool, workers or batches go on.")
@click.argument("names", metavar="[BATCH]...", nargs=-1)
@click.option(
    "--worker", "workers", multiple=True, metavar="NAME", help="Resume this worker, by the name it was paused by."
)
@redis_option
@json_option
def command(names: tuple[str, ...], workers: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """Let each BATCH (an id or a name) go on, with --worker workers, with neither the whole pool as `rq resume` does.

    What was paused by itself stays so when the pool goes on: it is named.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is over, is still being submitted, or is unknown.
    """
    from jobs.store.pause import resume_batch
    from submit.commands.each_batch import called, each_batch

    check_what(names, workers)
    with open_store(redis_url) as store:
        if workers:
            _resume_workers(store, workers)
        elif not names:
            _resume_pool(store)

        def release(batch: Batch) -> str:
            now = resume_batch(store, batch.id)
            return f"{called(batch)} {'goes on' if now else 'was not paused'}"

        return each_batch(store, names, release, as_json=as_json)


def _resume_workers(store: Store, names: tuple[str, ...]) -> None:
    from submit.status.pool_pause import paused_workers, resume_workers

    resumed = resume_workers(store, names)
    left = paused_workers(store)
    for name in names:
        # One process may be paused by its own name, and by that of all of its host.
        others = [other for other in left if other == name.rpartition(".")[0] or other.startswith(f"{name}.")]
        still = f"; still paused: {', '.join(others)}" if others else ""
        click.echo(f"worker {name} {'goes on' if name in resumed else 'was not paused'}{still}", err=True)


def _resume_pool(store: Store) -> None:
    from submit.commands.each_batch import called
    from submit.status.pool_pause import paused_workers, resume_pool

    click.echo("the pool goes on" if resume_pool(store) else "the pool was not paused", err=True)
    if workers := paused_workers(store):
        click.echo(f"still paused: {plural(len(workers), 'worker')}: {', '.join(workers)}", err=True)
    if batches := [called(batch).removeprefix("batch ") for batch in store.batches() if batch.paused]:
        shown = ", ".join(batches[:10]) + (", ..." if len(batches) > 10 else "")
        click.echo(f"still paused: {len(batches)} {'batch' if len(batches) == 1 else 'batches'}: {shown}", err=True)
