"""The README's table of parameters, made from the one table in the code: ``python -m submit.commands.reference``."""

from __future__ import annotations

import click

from jobs.params import PARAMETERS

__all__ = ["parameter_table"]


def parameter_table() -> str:
    """A Markdown table: field, type and range, default, meaning."""
    rows = ["| field | type and range | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{row.name}` | {row.range_text} | {row.shown_default} | {row.meaning} |" for row in PARAMETERS.values()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    click.echo(parameter_table())
