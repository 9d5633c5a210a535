"""``promptmill pause`` and ``resume``: hold back the pool, workers or batches, and let them go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import orjson

from jobs.errors import RefusedError
from submit.commands.each_batch import called, each_batch
from submit.commands.options import json_option, open_store, redis_option
from submit.status.text import plural, printable

if TYPE_CHECKING:
    from jobs.batch import Batch
    from jobs.store.store import Store


@click.command("pause", short_help="Hold back the pool, workers or batches.")
@click.argument("names", metavar="[BATCH]...", nargs=-1)
@click.option(
    "--worker", "workers", multiple=True, metavar="NAME",
    help="Pause this worker: mini.4711 is one process, mini all workers of this name.",
)  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="Only show what is paused: the pool, workers, batches.")
@redis_option
@json_option
def pause(names: tuple[str, ...], workers: tuple[str, ...], listed: bool, redis_url: str | None, as_json: bool) -> int:
    """Hold back each BATCH (an id or a name), with --worker workers, with neither the whole pool as `rq suspend` does.

    Lines that were begun are finished, within seconds all others are back in Redis, and nothing new begins until
    `promptmill resume`. Paused batches can be cancelled, and expire.

    --json prints each batch as a line of JSON, with --list one object.

    Exit statuses: 0 done, 2 a batch is over, is still being submitted, or is unknown.
    """
    from jobs.store.pause import pause
    from submit.status.pool_pause import pause_pool, pause_workers
    from submit.status.workers import Workers

    _check_targets(names, workers)
    if listed and (names or workers):
        raise RefusedError("--list shows all that is paused: give neither batches nor --worker with it")
    with open_store(redis_url) as store:
        if listed:
            _list(store, as_json)
            return 0
        if workers:
            live = {state.name for state in Workers(store.connection).read()}
            live |= {name.rpartition(".")[0] for name in live}
            paused = pause_workers(store, workers)
            for name in workers:
                state = "is paused" if name in paused else "was paused already"
                absent = "" if name in live else "; none of this name is there now, it holds for one that comes"
                click.echo(f"worker {name} {state}{absent}", err=True)
        elif not names:
            click.echo("the pool is paused" if pause_pool(store) else "the pool was paused already", err=True)

        def pause_one(batch: Batch) -> str:
            return f"{called(batch)} {'is paused' if pause(store, batch.id) else 'was paused already'}"

        return each_batch(store, names, pause_one, as_json=as_json)


def _list(store: Store, as_json: bool) -> None:
    from submit.status.pool_pause import paused_workers, pool_paused

    pool, workers = pool_paused(store), paused_workers(store)
    batches = [batch for batch in store.batches() if batch.paused]
    if as_json:
        shown = [{"id": batch.id, "name": batch.name} for batch in batches]
        click.echo(orjson.dumps({"pool": pool, "workers": workers, "batches": shown}).decode())
        return
    paused = [("the pool", "")] if pool else []
    paused += [(f"worker {printable(name)}", f" --worker {printable(name)}") for name in workers]
    paused += [(called(batch), f" {batch.id}") for batch in batches]
    for what, arguments in paused:
        click.echo(f"{what} is paused: `promptmill resume{arguments}`")
    if not paused:
        click.echo("nothing is paused")


def _check_targets(names: tuple[str, ...], workers: tuple[str, ...]) -> None:
    """Refuse batches and workers in one command.

    Raises:
        RefusedError: both are given.
    """
    if names and workers:
        raise RefusedError("give batches or --worker, not both: they are paused and resumed one by one")


@click.command("resume", short_help="Let the pool, workers or batches go on.")
@click.argument("names", metavar="[BATCH]...", nargs=-1)
@click.option(
    "--worker", "workers", multiple=True, metavar="NAME", help="Resume this worker, by the name it was paused by."
)
@redis_option
@json_option
def resume(names: tuple[str, ...], workers: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """Let each BATCH (an id or a name) go on, with --worker workers, with neither the whole pool as `rq resume` does.

    What was paused by itself stays so when the pool goes on: it is named.

    --json prints each batch as a line of JSON.

    Exit statuses: 0 done, 2 a batch is over, is still being submitted, or is unknown.
    """
    from jobs.store.pause import resume_batch
    from submit.status.pool_pause import paused_workers, resume_pool, resume_workers

    _check_targets(names, workers)
    with open_store(redis_url) as store:
        if workers:
            resumed, still_paused = resume_workers(store, workers), paused_workers(store)
            for name in workers:
                # One process may be paused by its own name, and by that of all of its host.
                host = name.rpartition(".")[0]
                others = [other for other in still_paused if other == host or other.startswith(f"{name}.")]
                note = f"; still paused: {', '.join(others)}" if others else ""
                click.echo(f"worker {name} {'goes on' if name in resumed else 'was not paused'}{note}", err=True)
        elif not names:
            click.echo("the pool goes on" if resume_pool(store) else "the pool was not paused", err=True)
            _warn_of_rest(store, paused_workers(store))

        def resume_one(batch: Batch) -> str:
            return f"{called(batch)} {'goes on' if resume_batch(store, batch.id) else 'was not paused'}"

        return each_batch(store, names, resume_one, as_json=as_json)


def _warn_of_rest(store: Store, workers: list[str]) -> None:
    """Name the workers and batches that are paused by themselves while the pool goes on."""
    if workers:
        click.echo(f"still paused: {plural(len(workers), 'worker')}: {', '.join(workers)}", err=True)
    if batches := [called(batch).removeprefix("batch ") for batch in store.batches() if batch.paused]:
        shown = ", ".join(batches[:10]) + (", ..." if len(batches) > 10 else "")
        click.echo(f"still paused: {len(batches)} {'batch' if len(batches) == 1 else 'batches'}: {shown}", err=True)
