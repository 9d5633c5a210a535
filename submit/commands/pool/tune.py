"""``promptmill tune``: how many rows of a model this machine should decode together."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import click
import orjson

from jobs.app.units import parse_size
from jobs.app.worker_options import MOST_ROWS
from jobs.errors import RefusedError
from jobs.lines.values import local_model_name
from submit.commands.options import json_option
from submit.input.feedback import json_errors


class _Size(click.ParamType[int]):
    """Bytes, of ``48G``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except RefusedError as error:
            self.fail(str(error), param, ctx)


@click.command("tune", short_help="Measure how many lines of a model to decode together.")
@click.option(
    "--model",
    required=True,
    envvar="PROMPTMILL_MODEL",
    help="A folder, or a Hugging Face repository as NAME or NAME@REVISION.",
)
@click.option("--adapter-path", metavar="PATH", help="Adapter on the model.")
@click.option("--revision", help="Revision of a Hub's model that is named without one.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model run code from its repository.")
@click.option(
    "--memory-limit",
    type=_Size(),
    help="Memory for the model and its caches, such as 48G.  [default: what the device recommends]",
)
@click.option("--wired-limit", type=_Size(), help="As of the workers that are to take the result.  [default: none]")
@click.option(
    "--max-rows", type=click.IntRange(1, 4096), default=MOST_ROWS, show_default=True, help="Try no more rows than this."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(2),
    help="Tokens that a row holds, of about the length of your lines.  [default: as remembered, else 512]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="After this long only sizes are tried at which faster kernels begin, after twice as long none.",
)
@click.option("--again", is_flag=True, help="Measure though the result is remembered.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw it, as a PNG."
)
@json_option
def command(picture: Path | None, as_json: bool, **flags: Any) -> int:
    """Measure how many tokens a second this machine makes of a model, by how many rows (lines under way) it decodes
    together, and choose the smallest number that is as good as the best. Workers with --autotune take the choice: it
    is remembered per model, machine and version of MLX. Let the machine do nothing else meanwhile.

    Each speed stands beside its limit. A step can be no faster than the weights and caches it reads, at the speed of a
    copy of memory; a token can cost no less than one of a prompt.

    --json prints an object: the choice, what the limit is made of, and the list of sizes.

    Exit statuses: 0 measured or remembered, 1 it cannot run, 2 a flag is no good, 5 it cannot be loaded.
    """
    from submit.status.progress import is_terminal, terminal_width
    from submit.tune.measurement import measure
    from submit.tune.plot import check_plot, plot
    from submit.tune.report import report

    with json_errors(as_json):
        if importlib.util.find_spec("mlx_lm") is None:
            raise RefusedError("measuring needs MLX on this machine: pip install 'promptmill[worker]'")
        if picture is not None:
            check_plot(picture)
        found = measure(_request(flags), say=lambda text: click.echo(text, err=True))
        if picture is not None:
            plot(found, picture)
        if as_json:
            click.echo(orjson.dumps(found.raw).decode())
        else:
            width = terminal_width(sys.stdout) if is_terminal(sys.stdout) else None
            click.echo("\n".join(report(found, width)))
    return 0


def _request(flags: dict[str, Any]) -> dict[str, Any]:
    """What the worker package is asked."""
    adapter = flags["adapter_path"]
    settings = {name: flags[name] for name in ("revision", "trust_remote_code", "memory_limit", "wired_limit")}
    return {
        "model": local_model_name(flags["model"]),
        "adapter_path": None if adapter is None else local_model_name(adapter),
        "settings": settings,
        "tuning": {
            "most": flags["max_rows"],
            "prompt_tokens": flags["prompt_tokens"],
            "within_s": flags["seconds"],
            "again": flags["again"],
        },
    }
