"""``promptmill run``: everything on this machine, from a file of prompts to a file of results."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from jobs.app.worker_options import WORKER_OPTIONS, WorkerOption
from jobs.errors import RefusedError
from jobs.lines.values import local_model_name
from submit.commands.options import (
    defaults_from,
    in_this_order,
    keep_cut_option,
    on_bad_line_option,
    parameter_options,
    redis_option,
    table_out,
    table_out_options,
)
from submit.commands.prompts.table_flags import dedupe_option, table_options, table_order
from submit.results.destination import FORMATS, Destination, format_for

RUN_OPTIONS = tuple(row for row in WORKER_OPTIONS if row.in_run)


def _worker_option(row: WorkerOption) -> Callable[[Any], Any]:
    """A flag that goes to the worker as it is. Without a value, the worker's default holds."""
    text = f"Worker: {row.full_help[0].lower()}{row.full_help[1:]}"
    return click.option(row.flag, row.name, help=text, **_type_of(row))


def _type_of(row: WorkerOption) -> dict[str, Any]:
    match row.kind:
        case "switch":
            return {"is_flag": True}
        case "int":
            return {"type": click.IntRange(row.low, row.high)}
        case "seconds":
            return {"type": click.FloatRange(0)}
        case "choice":
            return {"type": click.Choice(row.choices)}
    return {"type": str, "metavar": row.metavar}


def _worker_flags(flags: dict[str, Any]) -> tuple[str, ...]:
    """Take the flags that go to the worker out of the command's."""
    given = [(row, flags.pop(row.name)) for row in RUN_OPTIONS]
    values = [f"{row.flag}={value}" for row, value in given if row.kind != "switch" and value is not None]
    return (*values, *(row.flag for row, value in given if row.kind == "switch" and value))


@click.command("run", short_help="Run a file of prompts on this machine.")
@click.argument("file", metavar="FILE")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT",
    help="File for the results: it grows as lines finish, and is in the order of the input at the end.",
)
@click.option(
    "--errors",
    type=click.Path(path_type=Path),
    metavar="ERR",
    help="File for the records of failed lines, written only when there are any.  "
    "[default: OUT with .errors before its suffix]",
)
@click.option("--name", help="A name for the batch.")
@on_bad_line_option
@click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    help="What OUT holds, as with `promptmill results`.  [default: by its suffix, else native]",
)
@keep_cut_option
@table_out_options
@table_options
@dedupe_option
@click.option("--restart", is_flag=True, help="Forget what an earlier run for OUT has done, and run all lines.")
@redis_option
@in_this_order(*map(_worker_option, RUN_OPTIONS))
@parameter_options
def command(
    file: str,
    out: Path,
    errors: Path | None,
    name: str | None,
    on_bad_line: str,
    fmt: str | None,
    keep_cut: bool,
    restart: bool,
    redis_url: str | None,
    **flags: Any,
) -> int:
    """Run the prompts in FILE (- is standard input) on this machine, and write OUT as lines finish.

    Without --redis a Redis of its own is started. With --redis the lines are in the pool's queues: the pool's workers
    that serve their models may run them too, beside the worker that is started here.

    Run the same command again after any interruption: what is finished stays, what is missing is run, nothing is run
    twice.

    Exit statuses: 0 all lines succeeded, 1 some failed, 2 FILE or a flag is no good, 3 Redis cannot be reached or does
    not let a worker work, 5 no model can be loaded, 130 interrupted.
    """
    from submit.run.run import RunRequest, run

    if importlib.util.find_spec("mlx_lm") is None:
        raise RefusedError(
            "a run needs MLX on this machine: pip install 'promptmill[worker]'; "
            "to have another machine do the work, use `promptmill submit --redis URL`"
        )
    for field in ("model", "adapter_path"):
        if flags[field] is not None:
            flags[field] = local_model_name(flags[field])
    worker_flags = _worker_flags(flags)
    table = table_order(flags)
    request = RunRequest(
        source=file,
        destination=Destination(out, errors, format_for(out, fmt), keep_cut, **table_out(flags)),
        defaults=defaults_from(flags),
        table=table,
        dedupe=flags["dedupe"],
        on_bad_line=on_bad_line,
        name=name,
        redis_url=redis_url,
        restart=restart,
        worker_flags=worker_flags,
    )
    return run(request)
