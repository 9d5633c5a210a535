"""The ``promptmill`` commands, in modules that are imported only when a command of theirs is called."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jobs.app.worker_options import WORKER_OPTIONS

if TYPE_CHECKING:
    import click

__all__ = ["MODULES", "all_flags", "load"]

MODULES = {
    "check": "submit.commands.prompts.check",
    "submit": "submit.commands.prompts.submit",
    "run": "submit.commands.prompts.run",
    "schedule": "submit.commands.prompts.schedule",
    "status": "submit.commands.views:status",
    "results": "submit.commands.batches.results",
    "cancel": "submit.commands.batches.actions:cancel",
    "retry": "submit.commands.batches.actions:retry",
    "pause": "submit.commands.batches.pause:pause",
    "resume": "submit.commands.batches.pause:resume",
    "priority": "submit.commands.batches.actions:priority",
    "purge": "submit.commands.batches.actions:purge",
    "worker": "submit.commands.pool.worker",
    "workers": "submit.commands.views:workers",
    "tune": "submit.commands.pool.tune",
    "scheduler": "submit.commands.pool.scheduler",
    "serve": "serve.commands.serve",
    "key": "serve.commands.key",
    "deploy": "deploy.commands.deploy",
    "doctor": "deploy.commands.doctor",
}
"""The module of each command, and its name there where that is not ``command``.

Those of ``serve`` and ``deploy`` are named here and imported nowhere: both stand above."""


def load(name: str) -> click.Command:
    """The command of this name."""
    module, _, attribute = MODULES[name].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute or "command")
    return command


def all_flags() -> frozenset[str]:
    """The flags of all commands that their help shows, without the dashes before them. Imports every command."""
    of_commands = (flag for name in MODULES for flag in _flags_of(load(name)))
    return frozenset(of_commands) | {row.flag[2:] for row in WORKER_OPTIONS if not row.hidden} | {"config"}


def _flags_of(command: Any) -> Iterator[str]:
    for part in getattr(command, "commands", {}).values():
        yield from _flags_of(part)
    for parameter in command.params:
        if not getattr(parameter, "hidden", True):
            yield from (flag[2:] for flag in parameter.opts if flag.startswith("--"))
