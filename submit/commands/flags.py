"""All commands' flags, one a line: ``python -m submit.commands.flags``, for workers, who know only their own."""

from __future__ import annotations

import click

from submit.commands import all_flags

__all__: list[str] = []

if __name__ == "__main__":
    click.echo("\n".join(sorted(all_flags())))
