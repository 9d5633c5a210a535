"""The ``promptmill`` command: finds the subcommand, reads settings, and turns errors into exit statuses."""

from __future__ import annotations

import sys

INTERRUPTED = 130

try:
    import os
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    import click

    from jobs.app.settings import COMMANDS, config_file, origin, read_settings
    from jobs.errors import InputError, PromptmillError
    from jobs.params import did_you_mean
    from submit.commands import all_flags, load
except KeyboardInterrupt:  # these take a tenth of a second, in which somebody may change their mind
    sys.exit(INTERRUPTED)

__all__ = ["COMMANDS", "INTERRUPTED", "cli", "main"]


class LazyGroup(click.Group):
    """Subcommands are imported when called: ``promptmill --help`` stays fast and light."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return load(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command '{name}'{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of our output (head, less) went away: nothing is wrong. Click itself would exit with 1.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "PROMPTMILL",
    },
)
@click.version_option(package_name="promptmill", prog_name="promptmill")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PROMPTMILL_CONFIG",
    help="Settings file (TOML).  [default: promptmill.toml in the user's config folder]",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Turn files of prompts into files of results, durably, on MLX.

    Data goes to stdout, progress and messages to stderr. Exit statuses: 0 all lines succeeded, 1 some failed,
    2 usage or invalid input, 3 Redis unreachable or refused, 4 timed out waiting, 5 model cannot load,
    130 interrupted.
    """
    path = config or config_file(os.environ)
    name = ctx.invoked_subcommand
    ctx.obj = path if config is not None or path.exists() else None
    if name is None or name == "worker" or ctx.obj is None:
        return  # the worker's command line reads the file itself
    command = cli.get_command(ctx, name)
    if isinstance(command, click.Group):
        # One table for all of its subcommands; each takes what are flags of its own.
        flags = [parameter for part in command.commands.values() for parameter in part.params]
        ctx.default_map = {name: dict.fromkeys(command.commands, read_settings(path, name, flags, all_flags))}
    elif command is not None:
        ctx.default_map = {name: read_settings(path, name, command.params, all_flags)}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    try:
        status = cli.main(args=args, prog_name="promptmill", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        blame(error)
        error.show()
        return error.exit_code
    except PromptmillError as error:
        report(error)
        return error.exit_status
    return status if isinstance(status, int) else 0


def blame(error: click.ClickException) -> None:
    """Name the settings file or the variable, not a flag, in an error about a value that came from there."""
    if isinstance(error, click.BadParameter) and error.param is not None and error.ctx is not None:
        error.param_hint = origin(error.ctx, error.param, os.environ) or error.param_hint


def report(error: PromptmillError) -> None:
    """An error as a person reads it, on stderr."""
    from submit.input.problem_summary import listed

    click.echo(f"promptmill: {error}", err=True)
    if isinstance(error, InputError) and error.what is None:
        for line in listed(error.problems):
            click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(main())
