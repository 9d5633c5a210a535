"""Tokens per second of the engine, of mlx-lm and of the bare loop: the same work, the same machine, the same run.

    python -m bench.engine [--model NAME ...] [--sides SIDE ...] [--repeats N] [--quick]

In each round every side runs once, in a process of its own and on work of that round, so that a machine that gets
slower or faster does so for all. Sides that take minutes get fewer lines (:data:`PLANS`), and one round; their tokens
per second compare all the same, because every line has the same number of new tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.models import CACHE, SHAPES, saved
from bench.record import RESULTS, Machine, Measurement, append, find_openblas, new_run
from bench.sides import ENGINE_SIDES, run_side
from bench.task import Measured, Task

REPEATS = 3
QUICK = Task("nano", 8, 8, 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work a model's sides get: ``lines`` all but those named in ``fewer``; a side with none is left out."""

    lines: int
    new_tokens: int
    fewer: Mapping[str, int]


PLANS = {
    "nano": Plan(256, 256, {"mlx-lm-own": 32, "mlx-lm-one": 4, "mlx-lm-server": 0}),
    "small": Plan(64, 256, {"mlx-lm-own": 32, "mlx-lm-one": 2, "mlx-lm-server": 32}),
    "wide": Plan(64, 128, {"mlx-lm-own": 32, "mlx-lm-one": 2, "mlx-lm-server": 0}),
}
ONCE = frozenset({"mlx-lm-own", "mlx-lm-server"})
"""Sides that take minutes are measured in the first round only: what is many times slower needs no median."""


def measure(
    run: str, models: Sequence[str], sides: Sequence[str] | None, repeats: int, *, quick: bool = False
) -> Iterator[Measurement]:
    """Every side once per round, for one model after the other. ``sides`` None are those of the plan."""
    for model in models:
        for round_number in range(repeats):
            for side in sides or ENGINE_SIDES:
                if round_number and side in ONCE and not sides:
                    continue
                task = _task(model, side, round_number, quick=quick, wanted=sides is not None)
                if task is None:
                    continue
                if side == "mlx-lm-server":
                    saved(model)
                _say(f"{model:6} round {round_number + 1}/{repeats}  {side:14} {task.lines:3} lines ...", end="")
                for item in run_side(side, task):
                    _say(f"  {item.side} {item.tokens / item.seconds:,.0f} tokens/s", end="")
                    yield measurement("engine", run, task, round_number, item)
                _say("")


def _task(model: str, side: str, round_number: int, *, quick: bool, wanted: bool) -> Task | None:
    if quick:
        return Task(model, QUICK.lines, QUICK.new_tokens, round_number)
    plan = PLANS[model]
    lines = plan.fewer.get(side, plan.lines)
    if not lines and wanted:
        lines = plan.fewer["mlx-lm-own"]
    return Task(model, lines, plan.new_tokens, round_number) if lines else None


def measurement(bench: str, run: str, task: Task, round_number: int, item: Measured) -> Measurement:
    """What a side measured, as it is kept."""
    return Measurement(
        run=run,
        bench=bench,
        model=task.model,
        side=item.side,
        round=round_number,
        lines=item.lines,
        new_tokens=task.new_tokens,
        tokens=item.tokens,
        seconds=item.seconds,
        occupancy=item.occupancy,
        extra=item.extra,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--repeats", type=int, help=f"rounds; the median counts  [default: {REPEATS}, quick: 1]")
    parser.add_argument("--quick", action="store_true", help="a few tokens, to see that all works; kept apart")
    parser.add_argument("--run", help="add to this run, in place of a new one")
    parser.add_argument("--out", type=Path, help=f"file of results  [default: {RESULTS.name}/results.jsonl]")


def opened(options: argparse.Namespace) -> tuple[str, Path]:
    """The run's name and its file, with the machine written to it; ``options.repeats`` filled in."""
    if sys.platform == "linux" and find_openblas() is None:
        _say(
            "warning: no OpenBLAS found under /usr/lib. MLX's own BLAS is as slow for 32 rows as for 32 times one, so "
            "batching shows no gain: apt-get install libopenblas0-pthread. Going on without."
        )
    if options.repeats is None:
        options.repeats = 1 if options.quick else REPEATS
    path: Path = options.out or (CACHE / "quick" if options.quick else RESULTS) / "results.jsonl"
    if options.run is not None:
        return options.run, path
    machine: Machine = new_run(quick=options.quick)
    if machine.load > 0.3:
        _say(f"warning: the load average is {machine.load}: others use this machine, and the numbers will show it")
    append(path, [machine])
    return machine.run, path


def run_by_itself(prog: str, doc: str | None, usual: str, measure: Callable[..., Iterator[Measurement]]) -> None:
    """The command line of a benchmark of one model, ``usual`` where it is not given; ``measure`` takes the run, the
    model, the rounds and ``quick``."""
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, help=f"[default: {usual}, quick: {QUICK.model}]")
    add_options(parser)
    options = parser.parse_args()
    run, path = opened(options)
    model = options.model or (QUICK.model if options.quick else usual)
    for item in measure(run, model, options.repeats, quick=options.quick):
        append(path, [item])


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=SHAPES, metavar="NAME", help="nano, small, wide  [default: all]")
    parser.add_argument(
        "--sides", nargs="+", choices=ENGINE_SIDES, metavar="SIDE", help=f"of {', '.join(ENGINE_SIDES)}"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    run, path = opened(options)
    models = options.model or (["nano"] if options.quick else list(SHAPES))
    for item in measure(run, models, options.sides, options.repeats, quick=options.quick):
        append(path, [item])


if __name__ == "__main__":
    main()
