"""``promptmill run``: everything on this machine, from a file of prompts to a file of results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from jobs.errors import RefusedError
from jobs.lines.values import local_model_name
from submit.commands.options import defaults_from, keep_cut_option, parameter_options, redis_option
from submit.results.formats import FORMATS

WORKER_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("decode-concurrency", click.IntRange(1, 4096), "Worker: most lines decoded together."),
    ("prompt-concurrency", click.IntRange(1, 1024), "Worker: most prompts processed together."),
    ("prefill-step-size", click.IntRange(1), "Worker: prompt tokens processed between two decode steps."),
    ("max-kv-size", click.IntRange(8), "Worker: most tokens a line's KV cache keeps."),
    ("kv-bits", click.Choice([2, 3, 4, 6, 8]), "Worker: bits of a quantised KV cache."),
    ("kv-group-size", click.Choice([32, 64, 128]), "Worker: values quantised together."),
    ("quantized-kv-start", click.IntRange(0), "Worker: tokens from which on the KV cache is quantised."),
    ("draft-model", str, "Worker: small model of the same vocabulary that proposes tokens."),
    ("num-draft-tokens", click.IntRange(1, 64), "Worker: tokens proposed at a time."),
    ("max-context", click.IntRange(1), "Worker: context length in tokens."),
    ("memory-limit", str, "Worker: memory for the models and their caches, such as 48G."),
    ("prefix-memory", str, "Worker: memory for beginnings that prompts share; 0 computes every prompt in full."),
    ("max-attempts", click.IntRange(1, 100), "Worker: attempts at a line that ends its worker."),
    (
        "load-patience",
        click.FloatRange(0),
        "Worker: seconds of failing loads after which a model's lines get error records.",
    ),
    ("revision", str, "Worker: revision of the models on the Hub."),
)
WORKER_SWITCHES = (
    ("autotune", "Worker: measure how many lines to decode together, and remember it."),
    ("allow-sleep", "Worker: let a Mac fall asleep when nobody uses it, even while lines are under way."),
    ("trust-remote-code", "Worker: let models and tokenizers run code from their repositories."),
    ("control-tokens", "Worker: take control tokens in messages for what they say, for files that you trust."),
)


def worker_options(command: Any) -> Any:
    """Add the flags that go to the worker as they are."""
    for name, text in reversed(WORKER_SWITCHES):
        command = click.option(f"--{name}", is_flag=True, help=text)(command)
    for name, kind, text in reversed(WORKER_OPTIONS):
        command = click.option(f"--{name}", type=kind, help=text)(command)
    return command


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
@click.option(
    "--on-bad-line",
    type=click.Choice(["reject", "skip"]),
    default="reject",
    show_default=True,
    help="reject: one bad line rejects the file; skip: bad lines become error records and the rest is run.",
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    default="native",
    show_default=True,
    help="What OUT holds, as with `promptmill results`.",
)
@keep_cut_option
@click.option("--restart", is_flag=True, help="Forget what an earlier run for OUT has done, and run all lines.")
@redis_option
@worker_options
@parameter_options
def command(
    file: str,
    out: Path,
    errors: Path | None,
    name: str | None,
    on_bad_line: str,
    fmt: str,
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
    given = [(flag, flags.pop(flag.replace("-", "_"))) for flag, _, _ in WORKER_OPTIONS]
    worker_flags = [f"--{flag}={value}" for flag, value in given if value is not None]
    worker_flags += [f"--{flag}" for flag, _ in WORKER_SWITCHES if flags.pop(flag.replace("-", "_"))]
    request = RunRequest(
        source=file,
        out=out,
        errors=errors,
        defaults=defaults_from(flags),
        on_bad_line=on_bad_line,
        fmt=fmt,
        keep_cut=keep_cut,
        name=name,
        redis_url=redis_url,
        restart=restart,
        worker_flags=tuple(worker_flags),
    )
    return run(request)
