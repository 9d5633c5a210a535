"""The documentation's tables, made from those in the code: ``python -m submit.commands.reference`` prints them."""

from __future__ import annotations

import click

from jobs.app.worker_options import WORKER_OPTIONS
from jobs.params import PARAMETERS

__all__ = ["parameter_table", "worker_table"]


def parameter_table() -> str:
    """A Markdown table: field, type and range, default, meaning."""
    rows = ["| field | type and range | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{row.name}` | {row.range_text} | {row.shown_default} | {row.meaning} |" for row in PARAMETERS.values()
    ]
    return "\n".join(rows)


def worker_table() -> str:
    """A Markdown table of a worker's options: flag, default, meaning, and whether `promptmill run` has it too."""
    rows = ["| flag | default | meaning | `run` |", "|---|---|---|---|"]
    for row in WORKER_OPTIONS:
        if not row.hidden:
            meaning = row.help.replace("|", "\\|")
            rows.append(f"| `{row.flag}` | {row.shown_default} | {meaning} | {'yes' if row.in_run else ''} |")
    return "\n".join(rows)


if __name__ == "__main__":
    click.echo(f"{parameter_table()}\n\n{worker_table()}")
