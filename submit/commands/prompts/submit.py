"""``promptmill submit``: checks a file of prompts and enqueues it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from click.core import ParameterSource

from jobs.app.units import parse_moment
from jobs.errors import RefusedError
from submit.commands.follow import follow_with_progress
from submit.commands.options import (
    Duration,
    given_by,
    json_option,
    open_store,
    order_from,
    order_options,
    parameter_options,
    redis_option,
    table_out,
    table_out_options,
)
from submit.commands.prompts.table_flags import dedupe_option, table_options, table_order
from submit.input.feedback import json_errors, read_display
from submit.input.problem_summary import listed
from submit.results.destination import Destination, format_for
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.store.store import Store
    from submit.upload.submitter import Order, Submitted


@click.command("submit", short_help="Enqueue a file of prompts; prints the batch id.")
@click.argument("file")
@click.option("--name", help="A name for the batch, by which other commands find it too.")
@click.option(
    "--at",
    metavar="TIME",
    help="Begin then: 02:00, 2026-11-22 02:00 or 2026-11-22T02:00+01:00. Without a zone it is this machine's time; "
    "a time of day that has passed already means tomorrow.",
)
@click.option(
    "--in",
    "start_in",
    type=Duration(),
    metavar="DURATION",
    help="Begin after this long: 90s, 15m, 2h, 1d or 1h30m; a bare number is seconds, here and for all durations.",
)
@order_options
@click.option("--wait", is_flag=True, help="Stay and write the results to OUT as lines finish; needs -o.")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), metavar="OUT", help="File for the results, with --wait."
)
@click.option(
    "--timeout",
    type=Duration(lifetime=False),
    metavar="DURATION",
    help="With --wait: give up waiting after this long (90s, 15m, 2h).",
)
@table_options
@dedupe_option
@table_out_options
@parameter_options
@redis_option
@json_option
def command(
    file: str,
    name: str | None,
    at: str | None,
    start_in: float | None,
    wait: bool,
    out: Path | None,
    timeout: float | None,
    redis_url: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Check FILE and enqueue it as one batch; its id is printed alone on stdout.

    FILE holds one JSON object per line; .gz and .zst are unpacked, - is standard input. Or it is a table, such as CSV,
    Parquet or hf://datasets/NAME, whose rows become lines by --user, --prompt or --template. Flags for parameters are
    for lines that do not say otherwise themselves.

    Exit statuses: 0 enqueued, 2 bad lines or usage, 3 Redis. With --wait also: 1 some lines failed,
    4 not done within --timeout (the batch goes on), 5 all lines failed because their model cannot be loaded.
    """
    from submit.data.open import open_input
    from submit.results.summary import exit_status, summary
    from submit.upload.submitter import submit

    begun = time.monotonic()
    with json_errors(as_json) as output:
        _check_waiting(file, wait=wait, out=out, timeout=timeout)
        table = table_order(flags)
        destination = Destination(out, fmt=format_for(out, None), **table_out(flags))
        order = order_from(flags, name=name)
        if start_in is not None:
            order = replace(order, start_in=start_in)
        with (
            open_input(file, table, model=order.defaults.model) as prompts,
            open_store(redis_url, patient=wait) as store,
        ):
            if at is not None:
                order = replace(order, start_in=_until(at, start_in, store))
            with read_display(prompts.size) as progress:
                submitted = submit(store, prompts, order, progress=progress)
            _print(submitted, prompts.name, as_json=as_json)
            for note in prompts.notes():
                click.echo(note, err=True)
            output.printed = True
            _say_notes(store, submitted, order)
            if not wait:
                return 0
            batch, tally = follow_with_progress(store, submitted.batch_id, destination, timeout)
            for line in summary(batch, tally, seconds=time.monotonic() - begun, now=store.now()):
                click.echo(line, err=True)
            return exit_status(batch, tally)


def _check_waiting(file: str, *, wait: bool, out: Path | None, timeout: float | None) -> None:
    """See that the flags about waiting go together."""
    if wait and out is None:
        raise RefusedError("--wait writes the results as they come: give it a file with -o")
    if not wait and (out is not None or timeout is not None):
        flag = "-o" if out is not None else "--timeout"
        raise RefusedError(f"{flag} goes with --wait; `promptmill results BATCH -o OUT` writes results later")
    if out is not None and file != "-" and out.exists() and Path(file).exists() and out.samefile(file):
        raise RefusedError(f"{out} is the input: the results need a file of their own")


def _until(at: str, start_in: float | None, store: Store) -> float:
    """Seconds from now, by the server's clock, until a moment."""
    if start_in is not None:
        raise RefusedError("--at and --in say the same thing: give one of them")
    now = store.server_time()
    try:
        return parse_moment(at, now) - now
    except RefusedError as error:
        raise RefusedError(f"{given_by('at')}: {error}") from None


def _print(submitted: Submitted, source: str, *, as_json: bool) -> None:
    click.echo(orjson.dumps(submitted.as_dict()).decode() if as_json else submitted.batch_id)
    if submitted.rejected:
        click.echo(f"{source}: {plural(submitted.rejected, 'bad line')}, skipped: each has an error record", err=True)
        for line in listed(submitted.problems):
            click.echo(line, err=True)
    running = plural(submitted.total - submitted.rejected - submitted.twins, "line")
    if submitted.twins:
        click.echo(
            f"{plural(submitted.twins, 'line')} equal to earlier ones: not run again, with records of "
            f"{'its' if submitted.twins == 1 else 'their'} own",
            err=True,
        )
    click.echo(f"{running} of {source} enqueued for {', '.join(submitted.models) or 'no model'}", err=True)


def _say_notes(store: Store, submitted: Submitted, order: Order) -> None:
    """When the batch begins and ends, as far as flags say, and whether it will have to wait for a worker."""
    from submit.upload.submit_notes import notes, times, waits_for

    now = store.server_time()
    source = click.get_current_context().get_parameter_source("keep")
    dates = times(
        now,
        begins=None if order.start_in is None else now + order.start_in,
        expires_in=order.expires_in,
        keep_s=order.keep_s,
        keep_given=source is not ParameterSource.DEFAULT,
    )
    lines = notes(submitted, order.defaults)
    for text in (dates, *lines, *waits_for(store.connection, submitted.models)):
        if text is not None:
            click.echo(text, err=True)
