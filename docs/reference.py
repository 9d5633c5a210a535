"""The reference of the command line, and the table of parameters, as Markdown.

The texts are the commands' own ``--help``, and the rows of :data:`jobs.params.PARAMETERS` and of
:data:`jobs.app.worker_options.WORKER_OPTIONS`. ``python -m docs.generate`` puts them into the documentation.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator

import click

from jobs.app.worker_options import WORKER_OPTIONS
from jobs.params import PARAMETERS
from submit.cli import cli
from submit.commands.options import parameter_options

WIDTH = 98
"""Columns of the help texts, whatever terminal they are made on."""
MARGIN = 2
"""What click leaves free of a terminal's width."""
PARAMETERS_NOTE = "\n\nIt also has [a flag for each parameter](#flags-for-parameters) of a line."


def parameter_table() -> str:
    """A Markdown table: field, type and range, default, meaning."""
    rows = ["| field | type and range | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{row.name}` | {row.range_text} | {row.shown_default} | {row.meaning} |" for row in PARAMETERS.values()
    ]
    return "\n".join(rows)


def worker_table() -> str:
    """A Markdown table: flag, default, meaning, and whether ``promptmill run`` has it too."""
    rows = ["| flag | default | meaning | |", "|---|---|---|---|"]
    shown = (row for row in WORKER_OPTIONS if not row.hidden)
    for row in shown:
        meaning = row.help.replace("|", r"\|")
        rows.append(f"| `{row.flag}` | {row.shown_default} | {meaning} | {'run' if row.in_run else ''} |")
    return "\n".join(rows)


def command_reference() -> str:
    """A section for each command with its help text. The flags for parameters, which several commands have, stand once,
    in a section of their own."""
    context = click.Context(cli, info_name="promptmill", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    sections = [_section("promptmill", cli.get_help(context))]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if name == "worker":  # what `promptmill worker` hands over to is in a package that is not imported here
            sections.append(_section("promptmill worker", _worker_help()))
        elif command is not None:
            sections += _sections(command, name, context)
    flags = click.Context(_parameter_flags, parent=context, terminal_width=WIDTH)
    options = _parameter_flags.get_help(flags).partition("Options:\n")[2]
    sections.append(_section("Flags for parameters", options))
    return "\n\n".join(sections)


@click.command(add_help_option=False)
@parameter_options
def _parameter_flags(**_flags: object) -> None:
    pass


def _sections(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    """The section of a command, then those of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    shared = {parameter.name for parameter in _parameter_flags.params}
    shown, note = copy.copy(command), ""
    if shared <= {parameter.name for parameter in command.params}:
        shown.params = [parameter for parameter in command.params if parameter.name not in shared]
        note = PARAMETERS_NOTE
    yield _section(context.command_path, shown.get_help(context)) + note
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            yield from _sections(sub, sub.name or "", context)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text.rstrip()}\n```"


def _worker_help() -> str:
    arguments = [sys.executable, "-P", "-m", "worker", "--help"]
    # A settings file of this machine's would show its values as defaults.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    environ = {**kept, "COLUMNS": str(WIDTH + MARGIN)}
    return subprocess.run(arguments, env=environ, capture_output=True, text=True, check=True).stdout
