"""The ``promptmill`` command: finds the subcommand, reads settings, and turns errors into exit statuses."""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from jobs.errors import InputError, PromptmillError, RefusedError

__all__ = ["COMMANDS", "INTERRUPTED", "cli", "main"]

COMMANDS = ("run", "submit", "worker", "status", "results", "check")
INTERRUPTED = 130
SHOWN_PROBLEMS = 20


class LazyGroup(click.Group):
    """Subcommands are imported when called: ``promptmill --help`` stays fast and light."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"submit.commands.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of our output (head, less) went away: nothing is wrong. Click itself would exit with 1.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def config_file(environ: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """Where settings are read from when ``--config`` says nothing."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "promptmill" / "promptmill.toml"
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "promptmill" / "promptmill.toml"


def read_config(path: Path, name: str, command: click.Command) -> dict[str, Any]:
    """Defaults of a command by its parameters' names: of the file's top-level keys those that are flags of it, and
    all of the table of its name.

    Raises:
        RefusedError: the file is not TOML, cannot be read, or has a table for no command or a key for no flag.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RefusedError(f"{path}: cannot be read as TOML: {error}") from None
    for key, value in document.items():
        if isinstance(value, dict) != (key in COMMANDS):
            raise RefusedError(f"{path}: '{key}' is no setting; there is a table for each of {', '.join(COMMANDS)}")
    options = [option for option in command.params if isinstance(option, click.Option)]
    by_flag = {flag.removeprefix("--"): option for option in options for flag in option.opts}
    own, settings = document.get(name, {}), {}
    for key, value in (document | own).items():
        option = by_flag.get(key.replace("_", "-"))
        if option is not None and option.name is not None:
            settings[option.name] = [value] if option.multiple and isinstance(value, str) else value
        elif key in own and options:
            raise RefusedError(f"{path}: '{key}' in [{name}] is not a flag of `promptmill {name}`")
    return settings


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    path = config or config_file()
    name = ctx.invoked_subcommand
    command = cli.get_command(ctx, name) if name is not None else None
    if name is not None and command is not None and (config is not None or path.exists()):
        ctx.default_map = {name: read_config(path, name, command)}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    try:
        status = cli.main(args=args, prog_name="promptmill", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PromptmillError as error:
        report(error)
        return error.exit_status
    return status if isinstance(status, int) else 0


def report(error: PromptmillError) -> None:
    """An error as a person reads it, on stderr."""
    click.echo(f"promptmill: {error}", err=True)
    if isinstance(error, InputError):
        for problem in error.problems[:SHOWN_PROBLEMS]:
            click.echo(f"  {problem}", err=True)
        if error.count > SHOWN_PROBLEMS:
            click.echo(f"  ... and {error.count - SHOWN_PROBLEMS} more: --json lists them all", err=True)


if __name__ == "__main__":
    sys.exit(main())
