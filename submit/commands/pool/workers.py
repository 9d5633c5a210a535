"""``promptmill workers``: who works in the pool, and at what."""

from __future__ import annotations

import click

from submit.commands.options import json_option, open_store, redis_option, watch_option


@click.command("workers", short_help="Show the pool's workers.")
@watch_option
@redis_option
@json_option
def command(watch: bool, redis_url: str | None, as_json: bool) -> int:
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
