"""``promptmill results``: a batch's records into a file, or onto stdout."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from jobs.errors import BatchNotFoundError, RefusedError
from submit.commands.options import Duration, json_option, keep_cut_option, open_store, redis_option
from submit.input.feedback import going_on_if_interrupted
from submit.results.formats import FORMATS, TRAINING, check_keep_cut
from submit.status.text import plural

if TYPE_CHECKING:
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
    default="native",
    show_default=True,
    help="native: promptmill's records; openai: envelopes of OpenAI's Batch API; chat, completions: "
    "training data for mlx_lm.lora, of the lines that succeeded.",
)
@keep_cut_option
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
    fmt: str,
    keep_cut: bool,
    timeout: float | None,
    spools: tuple[Path, ...],
    redis_url: str | None,
    as_json: bool,
) -> int:
    """Write the results of BATCH (an id, or the name it was given).

    In the order of the input, as far as they are there; with --follow in the order of finishing, live.
    Each line's record goes to OUT or to ERR, never to both. --json prints a summary and needs -o.

    With --from-spool no Redis is asked: BATCH is found in the folders given, one record per line is written, and
    stderr says how many lines are missing.

    Exit statuses: 0 all lines succeeded, 1 some failed or are missing, 4 not done within --timeout.
    """
    from submit.results.follow import write_results
    from submit.results.output import STDOUT, errors_written
    from submit.results.summary import Tally, exit_status, summary
    from submit.status.progress import Progress

    out = None if out == STDOUT else out
    check_keep_cut(fmt, keep_cut=keep_cut)
    if timeout is not None and not follow:
        raise RefusedError("--timeout goes with --follow: without it nothing is waited for")
    if as_json and out is None:
        raise RefusedError("--json prints a summary on stdout: give the results a file with -o")
    if more and not spools:
        raise RefusedError(f"'{more[0]}' is one argument too many: folders come after --from-spool")
    if spools:
        if follow:
            raise RefusedError("--follow goes with Redis: a spool holds what is finished already")
        return _from_spools(name, [*spools, *more], out, errors, fmt, as_json)
    begun, tally = time.monotonic(), Tally(fmt, keep_cut)
    with open_store(redis_url, patient=follow) as store:
        batch_id = _found(store, name)
        # Records on the same terminal would tear the bar to pieces.
        progress = Progress() if follow and not (out is None and sys.stdout.isatty()) else None
        try:
            with going_on_if_interrupted(batch_id, out) if follow else contextlib.nullcontext():
                batch = write_results(
                    store,
                    batch_id,
                    out,
                    errors=errors,
                    follow=follow,
                    fmt=fmt,
                    keep_cut=keep_cut,
                    progress=progress,
                    timeout=timeout,
                    observe=tally.add,
                )
        finally:
            if progress is not None:
                progress.close()
        now = store.now()
    failed = sum(tally.failures.values())
    shown_errors = errors_written(out, errors, fmt, failed)
    missing = max(batch.total - tally.lines, 0)
    if as_json:
        counts = {
            "written": tally.lines,
            "missing": missing,
            "failed_by_code": dict(tally.failures),
            "unanswered": tally.noted["unanswered"],
            "left_out": dict(tally.left_out),
        }
        paths = {"results": str(out), "errors": None if shown_errors is None else str(shown_errors)}
        click.echo(orjson.dumps({**batch.as_dict(now), **counts, **paths}).decode())
    elif follow:
        seconds = time.monotonic() - begun
        for line in summary(batch, tally, out=out, errors=shown_errors, seconds=seconds, now=now):
            click.echo(line, err=True)
    else:
        if out is not None:
            _say_written(tally, out, shown_errors)
        for text in tally.notes(batch.defaults):
            click.echo(text, err=True)
        _say(batch.id, batch.status, missing, failed, fmt, shown_errors)
    return exit_status(batch, tally)


def _from_spools(name: str, folders: list[Path], out: Path | None, errors: Path | None, fmt: str, as_json: bool) -> int:
    from submit.results.from_spool import write_spooled
    from submit.results.output import errors_written
    from submit.results.summary import Tally

    tally = Tally()
    found = write_spooled(name, folders, out, errors=errors, fmt=fmt, observe=tally.add)
    failed = sum(tally.failures.values())
    shown_errors = errors_written(out, errors, fmt, failed)
    if as_json:
        paths = {"results": str(out), "errors": None if shown_errors is None else str(shown_errors)}
        click.echo(orjson.dumps({**found.as_dict(), "failed_by_code": dict(tally.failures), **paths}).decode())
    for text in (*found.notes(), *tally.notes({})):
        click.echo(text, err=True)
    _say_failed(failed, fmt, shown_errors)
    return 0 if found.complete and not failed else 1


def _found(store: Store, name: str) -> str:
    try:
        return store.find(name).id
    except BatchNotFoundError as error:
        lost = f"if Redis was lost, `promptmill results {name} --from-spool DIR` reads what its workers kept"
        raise BatchNotFoundError(f"{error}; {lost}") from None


def _say_written(tally: Tally, out: Path, errors: Path | None) -> None:
    together = errors is None and tally.fmt not in TRAINING
    click.echo(f"{plural(tally.lines if together else tally.written, 'line')} written to {out}", err=True)


def _say(batch_id: str, status: str, missing: int, failed: int, fmt: str, errors: Path | None) -> None:
    """What a reader of the results should know that is not in them."""
    if status == "validating":
        click.echo(f"batch {batch_id} is still being submitted", err=True)
    elif missing:
        remedy = "; --follow waits for them" if status == "in_progress" else ""
        verb = "is" if missing == 1 else "are"
        click.echo(f"{plural(missing, 'line')} {verb} missing: batch {batch_id} is {status}{remedy}", err=True)
    _say_failed(failed, fmt, errors)


def _say_failed(failed: int, fmt: str, errors: Path | None) -> None:
    if failed:
        where = f"their records are in {errors}" if errors is not None else "their records are with the others"
        if fmt in TRAINING:
            where = "they are left out"
        click.echo(f"{plural(failed, 'line')} failed: {where}", err=True)
