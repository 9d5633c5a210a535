"""``promptmill doctor``: whether this machine and this Redis are fit."""

from __future__ import annotations

import os
import sys

import click
import orjson

from deploy.doctor.finding import FindingState, Section, as_object, count, lines, summary
from submit.commands.options import any_redis_option, json_option

WIDTH, WIDEST = 100, 140


@click.command("doctor", short_help="Check whether this machine and Redis are fit, with remedies.")
@click.option(
    "--model", "models", multiple=True, envvar="PROMPTMILL_MODEL", metavar="MODEL",
    help="Model that a worker is to serve here: a folder, or a Hugging Face repository as NAME or NAME@REVISION. "
    "May be given several times.",
)  # fmt: skip
@click.option(
    "--worker/--no-worker", "worker", default=None,
    help="Check what workers need as well.  [default: where mlx and mlx-lm are installed, or --model is given]",
)  # fmt: skip
@any_redis_option
@json_option
@click.pass_context
def command(
    ctx: click.Context, models: tuple[str, ...], worker: bool | None, redis_url: str | None, as_json: bool
) -> int:
    """Check whether this machine, its models and Redis are fit for the work, and say what to do where not.

    Nothing is changed: what is tried in Redis is tried on keys of its own, which are gone in the end. Where Redis
    cannot be reached, that is a failed check like others.

    Exit statuses: 0 nothing failed (warnings do not count), 1 some check failed.
    """
    from deploy.doctor.deployed import find_deployed
    from deploy.doctor.examination import Examination
    from deploy.doctor.machine import ask_machine
    from deploy.host import Host

    host = Host()
    machine = ask_machine(host)
    if worker is None:  # a model in the environment may be there for `submit`
        worker = machine.runs_workers or ctx.get_parameter_source("models") is click.core.ParameterSource.COMMANDLINE
    named = ctx.get_parameter_source("redis_url") is click.core.ParameterSource.COMMANDLINE or _configured(ctx)
    deployed = () if named else tuple(find_deployed(host))
    sections = []
    for section in Examination(machine, os.environ, redis_url, models, worker, deployed).sections():
        sections.append(section)
        if not as_json:
            _show(section)
    click.echo(orjson.dumps(as_object(sections)).decode() if as_json else summary(sections))
    return 1 if count(sections, FindingState.FAIL) else 0


def _configured(ctx: click.Context) -> bool:
    """Whether a settings file was named, and not found where this user's is."""
    outer = ctx.parent
    return outer is not None and outer.params.get("config") is not None


def _show(section: Section) -> None:
    """Print a section, as wide as the terminal and in its colours."""
    from submit.status.progress import is_terminal, terminal_width

    terminal = is_terminal(sys.stdout)
    width = min(terminal_width(sys.stdout), WIDEST) if terminal else WIDTH
    colour = terminal and not os.environ.get("NO_COLOR")
    click.echo("\n".join(lines(section, width, colour=colour)) + "\n", color=colour)
