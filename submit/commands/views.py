"""``promptmill status`` and ``workers``: where batches stand, and who works in the pool at what."""

from __future__ import annotations

import click

from submit.commands.options import json_option, open_store, redis_option

watch_option = click.option("--watch", is_flag=True, help="Refresh every second; q or Ctrl-C leaves.")


@click.command("status", short_help="Show batches, or one in detail.")
@click.argument("name", metavar="[BATCH]", required=False)
@watch_option
@redis_option
@json_option
def status(name: str | None, watch: bool, redis_url: str | None, as_json: bool) -> int:
    """Show all batches, or BATCH (an id or a name) in detail with its lines in flight.

    --watch shows it on the full screen of a terminal, with the workers, and ends when BATCH is done.

    --json prints one object for a batch and a list for all, with --watch a line of it every second.
    """
    from submit.status.batch_view import BatchReader
    from submit.status.pool_view import PoolReader
    from submit.watch.watch import present

    with open_store(redis_url) as store:
        reader = PoolReader(store, as_json=as_json) if name is None else BatchReader(store, store.find(name).id)
        present(reader, watched=watch, as_json=as_json)
    return 0


@click.command("workers", short_help="Show the pool's workers.")
@watch_option
@redis_option
@json_option
def workers(watch: bool, redis_url: str | None, as_json: bool) -> int:
    """Show the pool's workers: state, models in memory (in brackets those that are served and not loaded), memory in
    use and its limit, new tokens per second, how full the batch is, the part of prompt tokens that came from the
    prefix cache in the last minute, lines in flight and done, uptime.

    Workers that RQ knows and that say nothing any more are shown as silent, where its registry may be read.

    --watch shows them on the full screen of a terminal, with the lines in flight.

    --json prints a list of objects, with --watch a line of it every second.
    """
    from submit.status.workers_view import WorkersReader
    from submit.watch.watch import present

    with open_store(redis_url) as store:
        present(WorkersReader(store), watched=watch, as_json=as_json)
    return 0
