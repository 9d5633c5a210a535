"""The command line of a worker: flags under mlx-lm's names."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from jobs.app.duration import parse_duration
from jobs.app.logs import FILE_HELP, FORMAT_HELP, FORMATS, set_up_logging
from jobs.app.process_name import process_name
from jobs.app.settings import origin, read_settings
from jobs.app.size import parse_size
from jobs.errors import PromptmillError, RefusedError
from jobs.lines.values import local_model_name
from jobs.redis.connect import check_url
from jobs.shard import Group
from worker.faults.crash_loop import without_trouble
from worker.health.prometheus import PrometheusMetrics
from worker.models.autotune import FILE as TUNED_FILE, MOST_ROWS
from worker.models.load_failures import PATIENCE_S
from worker.rq.permissions import check_permissions
from worker.rq.worker import machine
from worker.service import Service
from worker.settings import DECODE_CONCURRENCY, EngineSettings, ServiceSettings
from worker.shards.claimed import MAX_ATTEMPTS

__all__ = ["command", "main"]

log = logging.getLogger("promptmill.worker")

SOLO_FLAGS = {
    "max_kv_size": None,
    "kv_bits": None,
    "kv_group_size": "kv_bits",
    "quantized_kv_start": "kv_bits",
    "draft_model": None,
    "num_draft_tokens": "draft_model",
}
"""Flags of modes in which lines run one at a time, each with the one that it does nothing without."""
NAME = re.compile("[A-Za-z0-9._-]{1,128}")
LEAST_KEPT_S = 60.0
REDIS_TIMEOUT_S = 5.0
"""A worker rides out an outage by itself, and must hear of it soon."""
MARKS_TIMEOUT_S = 1.0
"""Generation waits for one short command per wave of lines, and for no longer than this."""


class Size(click.ParamType[int]):
    """Bytes: ``48G``, ``512MB``, or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except RefusedError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType[float]):
    """Seconds, of ``90s``, ``12h`` or ``14d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_duration(str(value))
        except RefusedError as error:
            self.fail(str(error), param, ctx)
        if seconds < LEAST_KEPT_S:
            self.fail(f"{value} is too short: give at least a minute", param, ctx)
        return seconds


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Give the command the defaults of the settings file before its other flags are read."""
    if path is not None:
        ctx.obj = path
        ctx.default_map = read_settings(path, "worker", ctx.command.params)


def _check_redis(_ctx: click.Context, _param: click.Parameter, url: str | None) -> str | None:
    try:
        check_url(url or "redis://")
    except RefusedError as error:
        raise click.BadParameter(str(error)) from None
    return url


def _check_name(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    if name is not None and not NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r:.40} has other characters than letters, digits, dots, _ and -")
    return name


def _check_seconds(_ctx: click.Context, _param: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and math.isnan(seconds):
        raise click.BadParameter("nan is no number of seconds")
    return seconds


def _check_models(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Models or adapters by their one name."""
    try:
        return tuple(map(local_model_name, given))
    except RefusedError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "worker",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "PROMPTMILL_WORKER",
    },
)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), envvar="PROMPTMILL_CONFIG", is_eager=True,
    expose_value=False, callback=_read_config, help="Settings file (TOML): its top-level keys and its [worker] table.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, required=True, envvar="PROMPTMILL_MODEL", metavar="MODEL",
    callback=_check_models,
    help="Model to serve: a folder, or a Hugging Face repository as NAME or NAME@REVISION. May be given several times.",
)  # fmt: skip
@click.option(
    "--adapter-path", "adapters", multiple=True, metavar="PATH", callback=_check_models,
    help="Adapter that lines may ask for by adapter_path. May be given several times.",
)  # fmt: skip
@click.option("--revision", help="Revision of the Hub's models that are named without one.")
@click.option("--trust-remote-code", is_flag=True, help="Let models and tokenizers run code from their repositories.")
@click.option(
    "--control-tokens", is_flag=True,
    help="Take control tokens in messages, such as <|im_end|>, for what they say and not for text: for trusted files.",
)  # fmt: skip
@click.option(
    "--decode-concurrency", type=click.IntRange(1, 4096),
    help=f"Most lines decoded together.  [default: {DECODE_CONCURRENCY}]",
)  # fmt: skip
@click.option(
    "--autotune", is_flag=True,
    help="Measure at each model's load how many lines to decode together, at most --decode-concurrency where it is "
    f"given and {MOST_ROWS} where not; remembered per model and host.",
)  # fmt: skip
@click.option(
    "--prompt-concurrency", type=click.IntRange(1, 1024), default=8, show_default=True,
    help="Most prompts processed together.",
)  # fmt: skip
@click.option(
    "--prefill-step-size", type=click.IntRange(1), default=2048, show_default=True,
    help="Prompt tokens processed between two decode steps.",
)  # fmt: skip
@click.option(
    "--max-kv-size", type=click.IntRange(8), metavar="TOKENS",
    help="Most tokens a line's KV cache keeps: the first four and the latest. One line at a time.  [default: all]",
)  # fmt: skip
@click.option(
    "--kv-bits", type=click.Choice([2, 3, 4, 6, 8]),
    help="Bits of a quantised KV cache. One line at a time.  [default: not quantised]",
)  # fmt: skip
@click.option(
    "--kv-group-size", type=click.Choice([32, 64, 128]), help="Values quantised together.  [default: 64]",
)  # fmt: skip
@click.option(
    "--quantized-kv-start", type=click.IntRange(0), metavar="TOKENS",
    help="Tokens from which on a line's KV cache is quantised.  [default: 0]",
)  # fmt: skip
@click.option(
    "--draft-model", metavar="MODEL",
    help="Small model of the same vocabulary that proposes tokens, for the same texts sooner. One line at a time.",
)  # fmt: skip
@click.option(
    "--num-draft-tokens", type=click.IntRange(1, 64), help="Tokens proposed at a time.  [default: 3]",
)  # fmt: skip
@click.option("--max-context", type=click.IntRange(1), help="Context length in tokens.  [default: the model's own]")
@click.option(
    "--memory-limit", type=Size(), metavar="SIZE",
    help="Memory for the models and their caches, such as 48G; models that do not fit together take turns.  "
    "[default: what the device recommends]",
)  # fmt: skip
@click.option(
    "--prefix-memory", type=Size(), metavar="SIZE",
    help="Memory for beginnings that prompts share, computed once; 0 computes every prompt in full.  "
    "[default: a tenth of the caches' memory]",
)  # fmt: skip
@click.option(
    "--wired-limit", type=Size(), metavar="SIZE",
    help="Memory that macOS keeps wired for large models, which are slow without.  [default: none]",
)  # fmt: skip
@click.option(
    "--preload/--no-preload",
    default=True,
    show_default=True,
    help="Load the models at start, as many as fit together, or when first needed.",
)
@click.option("--burst", is_flag=True, help="End when the queues are empty.")
@click.option(
    "--max-idle-time", type=click.FloatRange(0), callback=_check_seconds, metavar="SECONDS",
    help="End after this long without work.",
)  # fmt: skip
@click.option(
    "--drain", type=click.FloatRange(0), callback=_check_seconds, default=30.0, show_default=True, metavar="SECONDS",
    help="When asked to stop, finish lines already begun for this long; the rest goes back to the queue.",
)  # fmt: skip
@click.option(
    "--recycle-after-tokens", type=click.IntRange(1), metavar="TOKENS",
    help="After so many generated tokens drain, start afresh in place and go on: all memory is given back.",
)  # fmt: skip
@click.option(
    "--spool", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Folder in which finished records are kept on this machine's disk too, for times without Redis: "
    "`promptmill results BATCH --from-spool DIR` reads it.  [default: spool in the data folder]",
)  # fmt: skip
@click.option(
    "--spool-keep", type=Duration(), default="14d", show_default=True, metavar="DURATION",
    help="Remove a batch's records from there when the last is so old.",
)  # fmt: skip
@click.option(
    "--max-attempts", type=click.IntRange(1, 100), default=MAX_ATTEMPTS, show_default=True,
    help="Attempts at a line that ends its worker, or fails for a reason that may pass; then it gets an error record. "
    "A worker's death is the last of them only where the line had nothing beside it.",
)  # fmt: skip
@click.option(
    "--allow-sleep", is_flag=True,
    help="Let a Mac fall asleep when nobody uses it, as it is set up, even while lines are under way.",
)  # fmt: skip
@click.option(
    "--load-patience", type=click.FloatRange(0), callback=_check_seconds,
    default=PATIENCE_S, show_default=True, metavar="SECONDS",
    help="A model that cannot be loaded is tried again and again for this long; then its lines get error records.",
)  # fmt: skip
@click.option(
    "--name", callback=_check_name,
    help="Name of this worker: letters, digits, dots, _ and -.  [default: the host's]",
)  # fmt: skip
@click.option(
    "--redis", "redis_url", metavar="URL", callback=_check_redis, envvar=["PROMPTMILL_REDIS_URL", "RQ_REDIS_URL"],
    help="Redis of the pool (redis://, rediss://, unix://).  [default: this user's embedded server]",
)  # fmt: skip
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), metavar="PORT",
    help="Serve metrics for Prometheus on this port; 0: any free one, which is logged.  [default: none]",
)  # fmt: skip
@click.option(
    "--metrics-host", metavar="HOST", default="127.0.0.1", show_default=True,
    help="Address of this machine for it; 0.0.0.0 is all of them: anybody there may read the metrics.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help=FORMAT_HELP)
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=FILE_HELP)
@click.option("--pool", hidden=True, help="Private queues, for `promptmill run`.")
@click.option(
    "--check", is_flag=True, hidden=True, help="See that all flags are right, and end: for `promptmill deploy`."
)
@click.option("--exit-with-parent", "parent", type=int, hidden=True, metavar="PID", help="End when this parent ends.")
def command(
    redis_url: str | None, verbose: bool, log_format: str, log_file: Path | None, check: bool, **flags: Any
) -> int:
    """Serve models: take shards of batches from Redis and generate their lines, many at a time.

    The first SIGTERM or Ctrl-C drains: lines already begun are finished, the others go back to the queue at once.
    A second one stops now. Either way nothing is lost and the exit status is 0.
    """
    if check:
        settings_from(flags)
        return 0
    if flags["parent"] is not None:  # `promptmill run` reads its worker's log, and other workers may run beside it
        log_format, log_file, flags["metrics_port"] = "text", None, None
    about = {"worker": process_name(flags["name"])}
    set_up_logging(log_format, verbose=verbose, file=log_file, fields=about)
    # Its warning of long prompts is ours to give, per line and as an error.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logged(log_format, log_file))
        url = redis_url or stack.enter_context(_embedded())
        return serve(url, settings_from(flags))


def settings_from(flags: dict[str, Any]) -> ServiceSettings:
    """The settings that the flags say."""
    adapters = (None, *dict.fromkeys(flags["adapters"]))
    groups = tuple(Group(model, adapter) for model in dict.fromkeys(flags["models"]) for adapter in adapters)
    check_solo(flags)
    chosen = {name: flags[name] for name in SOLO_FLAGS if flags[name] is not None}
    engine = EngineSettings(
        decode_concurrency=flags["decode_concurrency"] or (MOST_ROWS if flags["autotune"] else DECODE_CONCURRENCY),
        prompt_concurrency=flags["prompt_concurrency"],
        prefill_step_size=flags["prefill_step_size"],
        max_context=flags["max_context"],
        memory_limit=flags["memory_limit"],
        wired_limit=flags["wired_limit"],
        prefix_memory=flags["prefix_memory"],
        revision=flags["revision"],
        trust_remote_code=flags["trust_remote_code"],
        control_tokens=flags["control_tokens"],
        autotune=_data_folder() / TUNED_FILE if flags["autotune"] else None,
        load_patience_s=flags["load_patience"],
        **chosen,
    )
    return ServiceSettings(
        groups=groups,
        pool=flags["pool"],
        name=flags["name"],
        preload=flags["preload"],
        burst=flags["burst"],
        max_idle_s=flags["max_idle_time"],
        drain_s=flags["drain"],
        parent=flags["parent"],
        recycle_after_tokens=flags["recycle_after_tokens"],
        spool=flags["spool"] or _data_folder() / "spool",
        spool_keep_s=flags["spool_keep"],
        max_attempts=flags["max_attempts"],
        allow_sleep=flags["allow_sleep"],
        metrics=None if flags["metrics_port"] is None else (flags["metrics_host"], flags["metrics_port"]),
        engine=engine,
    )


def check_solo(flags: dict[str, Any]) -> None:
    """Refuse flags that exclude each other, and those that do nothing without another.

    Raises:
        click.UsageError: with the remedy.
    """
    given = {name for name in SOLO_FLAGS if flags[name] is not None}
    if {"max_kv_size", "kv_bits"} <= given:
        raise click.UsageError(
            "--max-kv-size and --kv-bits exclude each other, because mlx-lm cannot quantise a KV cache of limited "
            "size: choose one of them."
        )
    if {"max_kv_size", "draft_model"} <= given:
        raise click.UsageError(
            "--max-kv-size and --draft-model exclude each other, because a full KV cache cannot take back tokens "
            "that were proposed and refused: choose one of them."
        )
    for name, needed in SOLO_FLAGS.items():
        if needed is not None and name in given and needed not in given:
            raise click.UsageError(f"{_flag(name)} does nothing without {_flag(needed)}: give that too, or neither.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def serve(url: str, settings: ServiceSettings) -> int:
    """Run a worker on the Redis at ``url``; its exit status."""
    from jobs.redis.connect import connect, connect_patiently, translated

    with translated(url):
        connection = connect_patiently(url, log.warning, timeout_s=REDIS_TIMEOUT_S, retries=1)
        settings = replace(settings, groups=without_trouble(connection, machine(), settings.groups))
        marks = connect(url, timeout_s=MARKS_TIMEOUT_S, retries=1)
        pulse = connect(url, timeout_s=REDIS_TIMEOUT_S, retries=1)
        metrics = None if settings.metrics is None else PrometheusMetrics(settings.groups)
        # Before RQ tries what its own way of telling would be a Python warning.
        check_permissions(connection, process_name(settings.name))
        service = Service(connection, pulse, settings, in_flight_connection=marks, observer=metrics)
        if metrics is None or settings.metrics is None:
            return service.run()
        with metrics.serving(service.readings, service.heartbeat, *settings.metrics):
            return service.run()


def _embedded() -> contextlib.AbstractContextManager[str]:
    from jobs.embedded.server import embedded_server

    return embedded_server(_data_folder(), say=log.warning)


def _data_folder() -> Path:
    from jobs.embedded.server import data_folder

    return data_folder(os.environ)


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
