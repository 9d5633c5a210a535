"""``promptmill scheduler``: submits the batches of schedules when they are due."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from jobs.app.logs import set_up_logging
from jobs.app.process_name import process_name
from jobs.app.settings import read_settings
from submit.commands import all_flags
from submit.commands.daemon_options import daemon_options
from submit.commands.options import open_store, redis_option

log = logging.getLogger("promptmill.scheduler")

REDIS_TIMEOUT_S = 5.0
"""Shorter than the lease of its lock: a scheduler notices an outage before another takes over."""


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Give the command the values of this settings file before its other flags are read."""
    if path is not None:
        ctx.obj = path
        ctx.default_map = read_settings(path, "scheduler", ctx.command.params, all_flags)


@click.command("scheduler", short_help="Submit batches by their schedules: a long-lived process.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), is_eager=True, expose_value=False,
    callback=_read_config, help="Settings file (TOML): its top-level keys and its [scheduler] table.",
)  # fmt: skip
@click.option("--name", help="Name of this scheduler.  [default: the host's]")
@click.option(
    "--read-from", type=click.Path(path_type=Path, file_okay=False, exists=True), multiple=True, metavar="DIR",
    help="Folder of the files that `schedule add --read-at-fire` names: no others are read. May be given several "
    "times.  [default: none is read]",
)  # fmt: skip
@click.option(
    "--webhook-secret", envvar="PROMPTMILL_WEBHOOK_SECRET", metavar="SECRET",
    help="What webhooks are signed with: whsec_ and base64, or several separated by spaces. Give it in "
    "PROMPTMILL_WEBHOOK_SECRET or the settings file: flags can be seen by every user of the machine.",
)  # fmt: skip
@click.option(
    "--webhook-hosts", multiple=True, metavar="PATTERN",
    help="Hosts that webhooks may go to, such as *.example.com; may be given several times.  "
    "[default: any but this machine's own and link-local addresses]",
)  # fmt: skip
@redis_option
@daemon_options
def command(
    name: str | None,
    read_from: tuple[Path, ...],
    webhook_secret: str | None,
    webhook_hosts: tuple[str, ...],
    redis_url: str | None,
    log_format: str,
    log_file: Path | None,
    verbose: bool,
    check: bool,
) -> int:
    """Submit the batches of `promptmill schedule` when they are due, and tell webhooks of the ends of batches.

    Start as many as you like, on any machine of the pool: one is active, and when it ends or dies another takes over
    within 15 seconds or so; webhooks are told by all of them. SIGTERM or Ctrl-C ends it with exit status 0. No batch is
    lost or doubled, however it ends.
    """
    if check:
        return 0

    from submit.schedule.daemon import SchedulerDaemon
    from submit.webhooks.sender import WebhookSender

    about = {"scheduler": process_name(name)}
    set_up_logging(log_format, verbose=verbose, file=log_file, fields=about)
    with open_store(redis_url, patient=True, say=log.warning, timeout_s=REDIS_TIMEOUT_S, retries=1) as store:
        sender = WebhookSender(store, webhook_secret, hosts=webhook_hosts)
        sender.start()
        try:
            return SchedulerDaemon(store, name=name, read_from=read_from).run()
        finally:
            sender.stop()
