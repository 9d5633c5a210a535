"""The command line of a worker: flags under mlx-lm's names."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from jobs.app.logs import set_up_logging
from jobs.app.process_name import process_name
from jobs.app.settings import origin, read_settings
from jobs.app.units import parse_duration, parse_size
from jobs.app.worker_options import (
    MOST_ROWS,
    WORKER_OPTIONS,
    EngineSettings,
    ServiceOptions,
    WorkerOption,
    settings_of,
)
from jobs.embedded.server import data_folder, embedded_server
from jobs.errors import PromptmillError, RefusedError
from jobs.lines.values import local_model_name
from jobs.redis.connect import check_url, connect, connect_patiently, translated
from jobs.shard import Group
from worker.faults.crash_loop import without_trouble
from worker.health.prometheus import PrometheusMetrics
from worker.models.autotune import FILE as TUNED_FILE
from worker.rq.worker import check_permissions, machine
from worker.service import Service, ServiceSettings

log = logging.getLogger("promptmill.worker")

NAME = re.compile("[A-Za-z0-9._-]{1,128}")
LEAST_KEPT_S = 60.0
REDIS_TIMEOUT_S = 5.0
"""A worker rides out an outage by itself, and must hear of it soon."""
IN_FLIGHT_TIMEOUT_S = 1.0
"""Generation waits for one short command per wave of lines, and for no longer than this."""


class Parsed(click.ParamType[Any]):
    """A value that ``parse`` reads; what it refuses is the flag's error. ``name`` is how help names the type."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(str(value))
        except RefusedError as error:
            self.fail(str(error), param, ctx)


def _kept(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < LEAST_KEPT_S:
        raise RefusedError(f"{text} is too short: give at least a minute")
    return seconds


def _redis(url: str) -> str:
    check_url(url or "redis://")
    return url


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise RefusedError(f"{text!r:.40} has other characters than letters, digits, dots, _ and -")
    return text


class Seconds(click.FloatRange):
    """A number of seconds from 0 on."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("nan is no number of seconds", param, ctx)
        return seconds


def _type_of(row: WorkerOption) -> Any:
    match row.kind:
        case "int":
            return click.INT if row.low is None else click.IntRange(row.low, row.high)
        case "choice":
            return click.Choice(row.choices)
        case "file":
            return click.Path(path_type=Path, dir_okay=False)
        case "folder":
            return click.Path(path_type=Path, file_okay=False)
    return TYPES[row.kind]


TYPES: dict[str, Any] = {
    "text": click.STRING,
    "seconds": Seconds(0),
    "duration": Parsed("duration", _kept),
    "size": Parsed("size", parse_size),
    "model": Parsed("text", local_model_name),
    "worker_name": Parsed("text", _name),
    "redis": Parsed("text", _redis),
}
"""Kinds of options whose type does not depend on the row."""


def _option(row: WorkerOption) -> click.Option:
    """A flag of the worker, from its row of the table."""
    flags = [row.name, row.flag if not row.negatable else f"{row.flag}/--no-{row.flag[2:]}"]
    if row.short is not None:
        flags.append(row.short)
    shared: dict[str, Any] = {"help": row.full_help, "hidden": row.hidden}
    if row.kind == "switch":
        return click.Option(flags, is_flag=True, default=row.default or False, show_default=row.negatable, **shared)
    default = None if row.default_text is not None or row.multiple else row.default
    return click.Option(
        flags,
        type=_type_of(row),
        default=default,
        show_default=default is not None,
        multiple=row.multiple,
        required=row.required,
        metavar=row.metavar or ("SECONDS" if row.kind == "seconds" else None),
        envvar=row.env or None,
        **shared,
    )


FLAGS_COMMAND = (sys.executable, "-P", "-m", "submit.commands.flags")


def _all_flags() -> frozenset[str]:
    """The flags of all commands, by the submitter's own process: a worker imports nothing of it."""
    done = subprocess.run(FLAGS_COMMAND, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PromptmillError(f"the flags of other commands cannot be listed: {done.stderr.strip()[-200:]}")
    return frozenset(done.stdout.split())


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Give the command the defaults of the settings file before its other flags are read."""
    if path is not None:
        ctx.obj = path
        ctx.default_map = read_settings(path, "worker", ctx.command.params, _all_flags)


CONFIG = click.Option(
    ["--config"],
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PROMPTMILL_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="Settings file (TOML): its top-level keys and its [worker] table.",
)


@click.command(
    "worker",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "PROMPTMILL_WORKER",
    },
    params=[CONFIG, *map(_option, WORKER_OPTIONS)],
)
def command(**flags: Any) -> int:
    """Serve models: take shards of batches from Redis and generate their lines, many at a time.

    The first SIGTERM or Ctrl-C drains: lines already begun are finished, the others go back to the queue at once.
    A second one stops now. Either way nothing is lost and the exit status is 0.
    """
    if flags["check"]:
        settings_from(flags)
        return 0
    if flags["exit_with_parent"] is not None:
        # `promptmill run` reads its worker's log, and other workers may run beside it.
        flags |= {"log_format": "text", "log_file": None, "metrics_port": None}
    log_format, log_file = flags["log_format"], flags["log_file"]
    about = {"worker": process_name(flags["name"])}
    set_up_logging(log_format, verbose=flags["verbose"], file=log_file, fields=about)
    # Its warning of long prompts is ours to give, per line and as an error.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logged(log_format, log_file))
        url = flags["redis"] or stack.enter_context(embedded_server(data_folder(os.environ), say=log.warning))
        return serve(url, settings_from(flags))


def settings_from(flags: Mapping[str, Any]) -> ServiceSettings:
    """The settings that the flags say.

    Raises:
        click.UsageError: flags exclude each other, or do nothing without another; with the remedy.
    """
    check_together(flags)
    adapters = (None, *dict.fromkeys(flags["adapter_path"]))
    groups = tuple(Group(model, adapter) for model in dict.fromkeys(flags["model"]) for adapter in adapters)
    autotune = data_folder(os.environ) / TUNED_FILE if flags["autotune"] else None
    rows = flags["decode_concurrency"] or (MOST_ROWS if autotune else None)
    engine = settings_of(EngineSettings, {**flags, "autotune": autotune, "decode_concurrency": rows})
    return ServiceSettings(
        groups=groups,
        metrics=None if flags["metrics_port"] is None else (flags["metrics_host"], flags["metrics_port"]),
        engine=EngineSettings(**engine),
        **settings_of(ServiceOptions, {**flags, "spool": flags["spool"] or data_folder(os.environ) / "spool"}),
    )


def check_together(flags: Mapping[str, Any]) -> None:
    """Refuse flags that exclude each other, and those that do nothing without another.

    Raises:
        click.UsageError: with the remedy.
    """
    given = {row.name: row for row in WORKER_OPTIONS if flags.get(row.name) is not None}
    if {"max_kv_size", "kv_bits"} <= given.keys():
        raise click.UsageError(
            "--max-kv-size and --kv-bits exclude each other, because mlx-lm cannot quantise a KV cache of limited "
            "size: choose one of them."
        )
    if {"max_kv_size", "draft_model"} <= given.keys():
        raise click.UsageError(
            "--max-kv-size and --draft-model exclude each other, because a full KV cache cannot take back tokens "
            "that were proposed and refused: choose one of them."
        )
    for row in given.values():
        if row.needs is not None and row.needs not in given:
            needed = f"--{row.needs.replace('_', '-')}"
            raise click.UsageError(f"{row.flag} does nothing without {needed}: give that too, or neither.")


def serve(url: str, settings: ServiceSettings) -> int:
    """Run a worker on the Redis at ``url``; its exit status."""
    with translated(url):
        connection = connect_patiently(url, log.warning, timeout_s=REDIS_TIMEOUT_S, retries=1)
        settings = replace(settings, groups=without_trouble(connection, machine(), settings.groups))
        in_flight = connect(url, timeout_s=IN_FLIGHT_TIMEOUT_S, retries=1)
        heartbeat = connect(url, timeout_s=REDIS_TIMEOUT_S, retries=1)
        nudges = connect(url, timeout_s=REDIS_TIMEOUT_S, retries=1)
        metrics = None if settings.metrics is None else PrometheusMetrics(settings.groups)
        # Before RQ tries what its own way of telling would be a Python warning.
        check_permissions(connection, process_name(settings.name))
        service = Service(
            connection,
            heartbeat,
            settings,
            in_flight_connection=in_flight,
            nudge_connection=nudges,
            observer=metrics,
        )
        if metrics is None or settings.metrics is None:
            return service.run()
        with metrics.serving(service.readings, service.heartbeat, *settings.metrics):
            return service.run()


@contextlib.contextmanager
def _logged(form: str, file: Path | None) -> Iterator[None]:
    """See that what ends the worker stands where its log is read: in its file, and on stderr as what is expected there.

    Raises:
        click.exceptions.Exit: with the error's status, where stderr is for JSON alone.
    """
    try:
        yield
    except PromptmillError as error:
        if file is not None or form == "json":
            log.error("%s", error, extra={"action": "ended"})
        if file is None and form == "json":
            raise click.exceptions.Exit(error.exit_status) from None
        raise


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    try:
        status = command.main(args=args, prog_name="promptmill worker", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.BadParameter) and error.param is not None and error.ctx is not None:
            error.param_hint = origin(error.ctx, error.param, os.environ) or error.param_hint
        error.show()
        return error.exit_code
    except PromptmillError as error:
        click.echo(f"promptmill worker: {error}", err=True)
        return error.exit_status
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    return status if isinstance(status, int) else 0
