"""``promptmill worker``: hands over to the worker package, the only part that needs MLX."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import click

from jobs.errors import RefusedError


@click.command(
    "worker",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="Serve models: a long-lived worker.",
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(config: Path | None, arguments: tuple[str, ...]) -> None:
    """Serve models: a long-lived worker (`promptmill worker --help` lists its flags)."""
    if importlib.util.find_spec("mlx_lm") is None and not {"-h", "--help"} & set(arguments):
        raise RefusedError("a worker needs MLX: pip install 'promptmill[worker]'")
    if config is not None:
        os.environ["PROMPTMILL_CONFIG"] = str(config)
    sys.stdout.flush()
    # -P: a folder named worker in the current directory must not be taken for ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker", *arguments])
