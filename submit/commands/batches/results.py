"""``promptmill results``: a batch's records into a file, or onto stdout."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from jobs.errors import BatchNotFoundError, RefusedError
from submit.commands.follow import follow_with_progress
from submit.commands.options import (
    Duration,
    json_option,
    keep_cut_option,
    open_store,
    redis_option,
    table_out,
    table_out_options,
)
from submit.results.destination import FORMATS, Destination, format_for
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.batch import Batch
    from jobs.store.store import Store
    from submit.results.summary import Tally


@click.command("results", short_help="Write a batch's results to a file.")
@click.argument("name", metavar="BATCH")
@click.argument("more", metavar="[DIR]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="File for the results; an older one is replaced.  [default: stdout]",
)
@click.option(
    "--errors",
    type=click.Path(path_type=Path),
    metavar="ERR",
    help="File for the records of failed lines, written only when there are any.  "
    "[default: OUT with .errors before its suffix; without OUT they go to stdout with the others]",
)
@click.option("--follow", is_flag=True, help="Write lines as they finish, until the batch is done.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    help="native: promptmill's records; openai: envelopes of OpenAI's Batch API; chat, completions: "
    "training data for mlx_lm.lora, of the lines that succeeded; parquet, csv, flat (JSON lines): tables, with the "
    "columns of the rows that lines were made of.  [default: by the suffix of OUT, else native]",
)
@keep_cut_option
@table_out_options
@click.option(
    "--timeout",
    type=Duration(lifetime=False),
    metavar="DURATION",
    help="With --follow: give up after this long (90s, 15m, 2h).",
)
@click.option(
    "--from-spool",
    "spools",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR [DIR]...",
    help="Without Redis, from what workers kept on their disks: spool folders, folders or files in them.",
)
@redis_option
@json_option
def command(
    name: str,
    more: tuple[Path, ...],
    out: Path | None,
    errors: Path | None,
    follow: bool,
    fmt: str | None,
    keep_cut: bool,
    timeout: float | None,
    spools: tuple[Path, ...],
    redis_url: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Write the results of BATCH (an id, or the name it was given).

    In the order of the input, as far as they are there; with --follow in the order of finishing, live.
    Each line's record goes to OUT or to ERR, never to both. --json prints a summary and needs -o.

    With --from-spool no Redis is asked: BATCH is found in the folders given, one record per line is written, and
    stderr says how many lines are missing.

    Exit statuses: 0 all lines succeeded, 1 some failed or are missing, 4 not done within --timeout.
    """
    from submit.results.follow import write_results
    from submit.results.summary import exit_status, summary

    destination = Destination(out, errors, format_for(out, fmt), keep_cut, **table_out(flags))
    if timeout is not None and not follow:
        raise RefusedError("--timeout goes with --follow: without it nothing is waited for")
    if as_json and destination.out is None:
        raise RefusedError("--json prints a summary on stdout: give the results a file with -o")
    if more and not spools:
        raise RefusedError(f"'{more[0]}' is one argument too many: folders come after --from-spool")
    if spools:
        if follow:
            raise RefusedError("--follow goes with Redis: a spool holds what is finished already")
        return _from_spools(name, [*spools, *more], destination, as_json)
    begun = time.monotonic()
    with open_store(redis_url, patient=follow) as store:
        batch_id = _find(store, name)
        if follow:
            batch, tally = follow_with_progress(store, batch_id, destination, timeout)
        else:
            batch, tally = write_results(store, batch_id, destination)
        now = store.now()
    missing = max(batch.total + batch.twins - tally.lines, 0)
    if as_json:
        counts: dict[str, Any] = {"unanswered": tally.noted["unanswered"], "left_out": dict(tally.left_out)}
        counts |= {"invalid": tally.invalid.total(), "tool_call_errors": tally.unparsed}
        _print_json(tally, {**batch.as_dict(now), "written": tally.lines, "missing": missing, **counts})
    elif follow:
        _report(summary(batch, tally, seconds=time.monotonic() - begun, now=now))
    else:
        _report_written(batch, tally, missing)
    return exit_status(batch, tally)


def _report_written(batch: Batch, tally: Tally, missing: int) -> None:
    """What a reader of the results should know that is not in them."""
    if tally.destination.out is not None:
        # Where the records of failed lines are in the same file, they count too.
        together = tally.errors_file is None and not tally.destination.training
        written = plural(tally.lines if together else tally.written, "line")
        _report([f"{written} written to {tally.destination.written_to}"])
    _report(tally.notes(batch.defaults))
    if batch.status == "validating":
        _report([f"batch {batch.id} is still being submitted"])
    elif missing:
        remedy = "; --follow waits for them" if batch.status == "in_progress" else ""
        verb = "is" if missing == 1 else "are"
        _report([f"{plural(missing, 'line')} {verb} missing: batch {batch.id} is {batch.status}{remedy}"])
    _report_failed(tally)


def _from_spools(name: str, folders: list[Path], destination: Destination, as_json: bool) -> int:
    from submit.results.from_spool import write_spooled

    found = write_spooled(name, folders, destination)
    tally = found.tally
    if as_json:
        _print_json(tally, found.as_dict())
    _report([*found.notes(), *tally.notes({})])
    _report_failed(tally)
    return 0 if found.complete and not tally.failed else 1


def _find(store: Store, name: str) -> str:
    try:
        return store.find(name).id
    except BatchNotFoundError as error:
        lost = f"if Redis was lost, `promptmill results {name} --from-spool DIR` reads what its workers kept"
        raise BatchNotFoundError(f"{error}; {lost}") from None


def _print_json(tally: Tally, shown: dict[str, Any]) -> None:
    errors = tally.errors_file
    paths = {"results": tally.destination.written_to, "errors": None if errors is None else str(errors)}
    click.echo(orjson.dumps({**shown, "failed_by_code": dict(tally.failures), **paths}).decode())


def _report(lines: list[str]) -> None:
    for line in lines:
        click.echo(line, err=True)


def _report_failed(tally: Tally) -> None:
    if tally.failed:
        errors = tally.errors_file
        where = "their records are with the others" if errors is None else f"their records are in {errors}"
        if tally.destination.training:
            where = "they are left out"
        _report([f"{plural(tally.failed, 'line')} failed: {where}"])
