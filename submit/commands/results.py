"""``promptmill results``: a batch's records into a file, or onto stdout."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import orjson

from jobs.errors import RefusedError
from submit.formats import FORMATS
from submit.options import json_option, open_store, redis_option
from submit.text import parse_duration, plural


@click.command("results", short_help="Write a batch's results to a file.")
@click.argument("name", metavar="BATCH")
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
@click.option("--timeout", metavar="DURATION", help="With --follow: give up after this long (90s, 15m, 2h).")
@redis_option
@json_option
def command(
    name: str,
    out: Path | None,
    errors: Path | None,
    follow: bool,
    fmt: str,
    timeout: str | None,
    redis_url: str | None,
    as_json: bool,
) -> int:
    """Write the results of BATCH (an id, or the name it was given).

    In the order of the input, as far as they are there; with --follow in the order of finishing, live.
    Each line's record goes to OUT or to ERR, never to both. --json prints a summary and needs -o.

    Exit statuses: 0 all lines succeeded, 1 some failed or are missing, 4 not done within --timeout.
    """
    from submit.follow import write_results
    from submit.output import STDOUT, default_errors
    from submit.progress import Progress
    from submit.summary import Tally, exit_status, summary

    out = None if out == STDOUT else out
    if timeout is not None and not follow:
        raise RefusedError("--timeout goes with --follow: without it nothing is waited for")
    if as_json and out is None:
        raise RefusedError("--json prints a summary on stdout: give the results a file with -o")
    limit = None if timeout is None else parse_duration(timeout)
    begun, tally = time.monotonic(), Tally()
    with open_store(redis_url) as store:
        batch_id = store.find(name).id
        # Records on the same terminal would tear the bar to pieces.
        progress = Progress() if follow and not (out is None and sys.stdout.isatty()) else None
        try:
            batch = write_results(
                store,
                batch_id,
                out,
                errors=errors,
                follow=follow,
                fmt=fmt,
                progress=progress,
                timeout=limit,
                observe=tally.add,
            )
        finally:
            if progress is not None:
                progress.close()
        now = store.now()
    failed = sum(tally.failures.values())
    shown_errors = None
    if failed and fmt == "native":
        shown_errors = errors or (default_errors(out) if out is not None else None)
    missing = max(batch.total - tally.lines, 0)
    if as_json:
        counts = {"written": tally.lines, "missing": missing, "failed_by_code": dict(tally.failures)}
        paths = {"results": str(out), "errors": None if shown_errors is None else str(shown_errors)}
        click.echo(orjson.dumps({**batch.as_dict(now), **counts, **paths}).decode())
    elif follow:
        pace = batch.rates(now)["completion_tokens_per_second"]
        seconds = time.monotonic() - begun
        for line in summary(batch, tally, out=out, errors=shown_errors, seconds=seconds, tokens_per_second=pace):
            click.echo(line, err=True)
    else:
        _say(batch.id, batch.status, missing, failed, fmt, shown_errors)
    return exit_status(batch, tally)


def _say(batch_id: str, status: str, missing: int, failed: int, fmt: str, errors: Path | None) -> None:
    """What a reader of the results should know that is not in them."""
    if status == "validating":
        click.echo(f"batch {batch_id} is still being submitted", err=True)
    elif missing:
        remedy = "; --follow waits for them" if status == "in_progress" else ""
        verb = "is" if missing == 1 else "are"
        click.echo(f"{plural(missing, 'line')} {verb} missing: batch {batch_id} is {status}{remedy}", err=True)
    if failed:
        where = f"their records are in {errors}" if errors is not None else "their records are with the others"
        if fmt in ("chat", "completions"):
            where = "they are left out"
        click.echo(f"{plural(failed, 'line')} failed: {where}", err=True)
