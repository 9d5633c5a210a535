"""``promptmill scheduler``: submits the batches of schedules when they are due."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

import click

from jobs.settings import read_settings
from submit.options import redis_option

REDIS_TIMEOUT_S = 5.0
"""A scheduler must hear of an outage before its lock is another's."""


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Give the command the values of this settings file before its other flags are read."""
    if path is not None:
        ctx.default_map = read_settings(path, "scheduler", ctx.command.params)


@click.command("scheduler", short_help="Submit batches by their schedules: a long-lived process.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), is_eager=True, expose_value=False,
    callback=_read_config, help="Settings file (TOML): its top-level keys and its [scheduler] table.",
)  # fmt: skip
@click.option("--name", help="Name of this scheduler.  [default: the host's]")
@click.option(
    "--read-from", type=click.Path(path_type=Path, file_okay=False, exists=True), multiple=True, metavar="DIR",
    help="Read files of `schedule add --read-at-fire` only in this folder. May be given several times.  "
    "[default: any file that this user may read]",
)  # fmt: skip
@redis_option
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def command(name: str | None, read_from: tuple[Path, ...], redis_url: str | None, verbose: bool) -> int:
    """Submit the batches of `promptmill schedule` when they are due.

    Start as many as you like, on any machine of the pool: one is active, and when it ends or dies another takes over
    within 15 seconds or so. SIGTERM or Ctrl-C ends it with exit status 0. No batch is lost or doubled, however it ends.
    """
    from jobs.connect import connect, translated
    from jobs.embedded import data_folder, embedded_server
    from jobs.store import Store
    from submit.scheduler import Scheduler

    _log_to_stderr(verbose)
    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(embedded_server(data_folder(os.environ)))
        stack.enter_context(translated(url))
        connection = connect(url, timeout_s=REDIS_TIMEOUT_S, retries=1)
        stack.callback(connection.close)
        return Scheduler(Store(connection), name=name, read_from=read_from).run()


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("promptmill").setLevel(logging.DEBUG if verbose else logging.INFO)
