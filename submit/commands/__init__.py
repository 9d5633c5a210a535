"""The ``promptmill`` commands, one module each, which defines ``command`` and is imported only when it is called."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

__all__ = ["MODULES", "load"]

MODULES = {
    "check": "submit.commands.check",
    "submit": "submit.commands.submit",
    "run": "submit.commands.run",
    "schedule": "submit.commands.schedule",
    "status": "submit.commands.status",
    "results": "submit.commands.results",
    "cancel": "submit.commands.cancel",
    "retry": "submit.commands.retry",
    "pause": "submit.commands.pause",
    "resume": "submit.commands.resume",
    "priority": "submit.commands.priority",
    "purge": "submit.commands.purge",
    "worker": "submit.commands.worker",
    "workers": "submit.commands.workers",
    "scheduler": "submit.commands.scheduler",
    "deploy": "deploy.commands.deploy",
    "doctor": "deploy.commands.doctor",
}
"""The module of each command. Those of ``deploy`` are named here and imported nowhere: ``deploy`` stands above."""


def load(name: str) -> click.Command:
    """The command of this name."""
    command: click.Command = importlib.import_module(MODULES[name]).command
    return command
