"""``promptmill schedule``: batches that are submitted again and again, by cron."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import orjson

from jobs.errors import RefusedError
from submit.commands.each_batch import for_each
from submit.commands.options import (
    Duration,
    json_option,
    open_store,
    order_from,
    order_options,
    parameter_options,
    redis_option,
)
from submit.commands.prompts.table_flags import dedupe_option, table_options, table_order
from submit.input.feedback import json_errors, read_display
from submit.input.problem_summary import listed
from submit.status.text import plural

if TYPE_CHECKING:
    from jobs.lines.line import Defaults
    from jobs.store.store import Store
    from submit.input.validate import Findings
    from submit.schedule.model import Schedule
    from submit.schedule.store import Schedules


@click.group("schedule", short_help="Batches by cron: add, list, pause, remove, run now.")
def command() -> None:
    """Submit batches again and again, by cron. `promptmill scheduler` is the process that does it."""


@command.command("add", short_help="Add a schedule.")
@click.argument("name")
@click.argument("file")
@click.option(
    "--cron", required=True, metavar="EXPR",
    help="When: 'MINUTE HOUR DAY MONTH WEEKDAY', such as '0 2 * * *' for each night at two, or @daily.",
)  # fmt: skip
@click.option("--tz", "zone", metavar="ZONE", help="Time zone, such as Europe/Berlin.  [default: this machine's]")
@click.option(
    "--read-at-fire", is_flag=True,
    help="FILE is an absolute path on the scheduler's host, in a folder of its --read-from, read at each run; else it "
    "is checked and stored now.",
)  # fmt: skip
@click.option(
    "--catch-up", is_flag=True,
    help="When no scheduler was there, make up for all missed runs with one; else they are skipped.",
)  # fmt: skip
@click.option(
    "--allow-overlap", is_flag=True, help="Run also while an earlier batch is not done; else such a run is skipped."
)
@click.option("--replace", "take_place", is_flag=True, help="Take the place of a schedule of this name.")
@click.option("--name", "batch_name", help="A name for the batches.  [default: the schedule's]")
@order_options
@table_options
@dedupe_option
@parameter_options
@redis_option
@json_option
def add(
    name: str,
    file: str,
    cron: str,
    zone: str | None,
    redis_url: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Submit FILE by cron, as batches that carry the NAME of the schedule.

    FILE is checked now and stored with the schedule, or, with --read-at-fire, read by the scheduler at each run. Flags
    for parameters are for lines that do not say otherwise themselves.

    Times are those on the wall of the time zone: where clocks are put forward, a time that is skipped comes right
    after the gap; where they are put back, one that comes twice runs once. With * for the hour, every hour counts.

    Exit statuses: 0 added, 2 bad lines or usage, 3 Redis.
    """
    from submit.schedule.add import ScheduleOrder, add_schedule
    from submit.schedule.cron import Cron, local_zone

    with json_errors(as_json):
        wanted = ScheduleOrder(
            name=name,
            cron=Cron(cron, zone or local_zone()),
            table=table_order(flags),
            order=order_from(flags, name=flags["batch_name"]),
            read_at_fire=flags["read_at_fire"],
            catch_up=flags["catch_up"],
            allow_overlap=flags["allow_overlap"],
            take_place=flags["take_place"],
        )
        with open_store(redis_url) as store, read_display(None) as progress:
            schedule, checked = add_schedule(store, wanted, file, progress=progress)
            _say_added(store, schedule, checked, wanted.order.defaults)
            if as_json:
                click.echo(orjson.dumps(schedule.as_dict()).decode())
    return 0


def _say_added(store: Store, schedule: Schedule, checked: Findings | None, defaults: Defaults) -> None:
    from submit.schedule.store import Schedules
    from submit.schedule.table import next_run
    from submit.upload.submit_notes import notes, waits_for

    if checked is not None and checked.rejected:
        said = f"{schedule.source}: {plural(checked.rejected, 'bad line')}: each will have an error record"
        click.echo(said, err=True)
        for line in listed(checked.problems):
            click.echo(line, err=True)
    what = (
        f"{schedule.source}, read at each run"
        if checked is None
        else f"{plural(checked.total, 'line')} of {schedule.source}"
    )
    when = next_run(schedule, store.server_time())
    click.echo(f"schedule {schedule.name}: {what}, first at {when}", err=True)
    if checked is not None:
        lines = notes(checked, defaults)
        for note in (*lines, *waits_for(store.connection, checked.models)):
            click.echo(note, err=True)
    _warn_alone(Schedules(store.connection))


def _warn_alone(schedules: Schedules) -> None:
    from submit.schedule.run_by_hand import NO_SCHEDULER

    if schedules.active_scheduler() is None:
        click.echo(f"promptmill: {NO_SCHEDULER}", err=True)


@command.command("list", short_help="Show all schedules.")
@redis_option
@json_option
def list_(redis_url: str | None, as_json: bool) -> int:
    """Show all schedules: when each runs next, by this machine's clock, and what became of its last run."""
    from jobs.store.cancel import expire_due
    from jobs.store.read_batch import read_batches
    from submit.schedule.model import Schedule
    from submit.schedule.store import Schedules
    from submit.schedule.table import schedule_table
    from submit.status.progress import terminal_width

    with open_store(redis_url) as store:
        expire_due(store)
        schedules = Schedules(store.connection)
        found = schedules.read(schedules.names())
        good = [schedule for schedule in found if isinstance(schedule, Schedule)]
        if as_json:
            click.echo(orjson.dumps([schedule.as_dict() for schedule in good]).decode())
        else:
            last = [run.batch_id for schedule in good for run in schedule.runs[:1] if run.batch_id is not None]
            batches = {batch.id: batch for batch in read_batches(store.connection, last)}
            width = terminal_width(sys.stdout) if sys.stdout.isatty() else None
            click.echo("\n".join(schedule_table(good, batches, store.server_time(), width=width)))
        for error in found:
            if isinstance(error, RefusedError):
                click.echo(f"promptmill: {error}", err=True)
        if good:
            _warn_alone(schedules)
    return 0


@command.command("remove", short_help="Remove a schedule; its batches stay.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@redis_option
def remove(names: tuple[str, ...], redis_url: str | None) -> int:
    """Remove each schedule. Batches that it has submitted stay, those that are running too.

    Exit statuses: 0 all are removed, 2 one is unknown.
    """
    from submit.schedule.model import no_schedule
    from submit.schedule.store import Schedules

    with open_store(redis_url) as store:
        schedules = Schedules(store.connection)

        def remove_one(name: str) -> None:
            if not schedules.remove(name):
                raise no_schedule(name)
            click.echo(f"schedule {name} is removed", err=True)

        return for_each(names, remove_one)


@command.command("pause", short_help="Let no run of a schedule begin until it goes on.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@redis_option
def pause(names: tuple[str, ...], redis_url: str | None) -> int:
    """Pause each schedule: no run of it begins by cron until `promptmill schedule resume`. What it has submitted goes
    on, and `promptmill schedule run` still runs it.

    Exit statuses: 0 all are paused, 2 one is unknown.
    """
    from submit.schedule.store import Schedules

    with open_store(redis_url) as store:
        schedules = Schedules(store.connection)

        def pause_one(name: str) -> None:
            paused = schedules.pause(name, store.server_time())
            click.echo(f"schedule {name} {'is paused' if paused else 'was paused already'}", err=True)

        return for_each(names, pause_one)


@command.command("resume", short_help="Let a schedule go on.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@redis_option
def resume(names: tuple[str, ...], redis_url: str | None) -> int:
    """Let each schedule go on with its next run. Those that were due meanwhile are not made up for.

    Exit statuses: 0 all go on, 2 one is unknown.
    """
    from submit.schedule.store import Schedules
    from submit.schedule.table import next_run

    with open_store(redis_url) as store:
        schedules = Schedules(store.connection)

        def resume_one(name: str) -> None:
            resumed = schedules.resume(name, store.server_time())
            when = next_run(schedules.get(name, runs=0), store.server_time())
            click.echo(f"schedule {name} {'goes on' if resumed else 'was not paused'}, next at {when}", err=True)

        return for_each(names, resume_one)


@command.command("run", short_help="Run a schedule now; prints the batch id.")
@click.argument("name")
@click.option("--allow-overlap", is_flag=True, help="Run also while an earlier batch of the schedule is not done.")
@click.option(
    "--timeout", type=Duration(lifetime=False), default="60s", show_default=True, metavar="DURATION",
    help="Where the scheduler has to read the file: wait for it so long.",
)  # fmt: skip
@redis_option
@json_option
def run(name: str, allow_overlap: bool, timeout: float, redis_url: str | None, as_json: bool) -> int:
    """Submit a batch of the schedule now; its id is printed alone on stdout. Later runs are as before.

    What is stored is submitted from here. A file that is read at each run is read by the scheduler, which is asked to
    and waited for.

    Exit statuses: 0 submitted, 2 no such schedule, an earlier batch is not done, or the run was refused, 3 Redis,
    4 the scheduler has not done it within --timeout (it will).
    """
    from submit.schedule.run_by_hand import run_schedule

    with json_errors(as_json), open_store(redis_url) as store, read_display(None) as progress:
        batch_id = run_schedule(store, name, allow_overlap=allow_overlap, timeout=timeout, progress=progress)
        click.echo(orjson.dumps({"id": batch_id, "schedule": name}).decode() if as_json else batch_id)
    return 0
