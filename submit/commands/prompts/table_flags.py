"""Flags of commands that read tables: the template of the lines, which rows, and which columns come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from submit.commands.options import in_this_order
from submit.data.order import FORMATS, TableOrder

dedupe_option = click.option(
    "--dedupe",
    is_flag=True,
    help="Run lines once that are equal in all but id and metadata and whose text is determined (greedy, or with a "
    "seed), and give each its record.",
)


table_options = in_this_order(
    click.option(
        "--template", type=click.Path(path_type=Path, dir_okay=False), metavar="TEMPLATE",
        help="Make the lines by this file of TOML or YAML: fields of a line, whose texts are Jinja2 templates over "
        "the columns of a row.",
    ),
    click.option("--prompt", metavar="TEXT", help="Make lines of this prompt, such as 'Summarise: {{ text }}'."),
    click.option("--user", metavar="TEXT", help="Make lines of this user message, such as '{{ question }}'."),
    click.option("--system", metavar="TEXT", help="With --user: the system message before it, a template too."),
    click.option(
        "--input-format", type=click.Choice(FORMATS),
        help="What the input is.  [default: by its suffix, and what a folder holds]",
    ),
    click.option("--delimiter", metavar="CHAR", help="Of csv: what separates cells.  [default: found]"),
    click.option("--encoding", metavar="NAME", help="Of csv: such as cp1252.  [default: UTF-8, UTF-16]"),
    click.option(
        "--where", metavar="EXPR", help="Take rows for which this is true, such as 'text | length > 20 and ok'."
    ),
    click.option("--offset", type=click.IntRange(0), metavar="N", help="Leave out the first N of these rows."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Take N of them at the most."),
    click.option("--sample", type=click.IntRange(1), metavar="N", help="Of these, take N drawn at random."),
    click.option("--sample-seed", type=int, metavar="SEED", help="The draw of --sample.  [default: 0]"),
    click.option("--repeat", type=click.IntRange(1), metavar="N", help="Make N lines of each row: id#1, id#2, ..."),
    click.option("--id-column", metavar="NAME", help="The column that holds the lines' ids."),
    click.option(
        "--keep-columns", metavar="a,b|all|none",
        help="Columns that come back beside the results.  [default: all, but for cells over 64 KiB]",
    ),
)  # fmt: skip
"""The flags of tables, for :func:`table_order`."""


def table_order(flags: dict[str, Any]) -> TableOrder:
    """Take the flags of :func:`table_options` out of a command's.

    Raises:
        RefusedError: they do not go together, or the template's file is none.
    """
    from submit.data.open import order_of

    return order_of(flags)
