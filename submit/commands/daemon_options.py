"""Options of long-lived processes: how they log, and the trial that `promptmill deploy` makes of their flags."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.app.logs import FILE_HELP, FORMAT_HELP, FORMATS
from submit.commands.options import in_this_order

daemon_options = in_this_order(
    click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help=FORMAT_HELP),
    click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=FILE_HELP),
    click.option("--verbose", "-v", is_flag=True, help="Log more."),
    click.option(
        "--check", is_flag=True, hidden=True, help="See that all flags are right, and end: for `promptmill deploy`."
    ),
)
