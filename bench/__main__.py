"""All benchmarks in one run, and the report of it.

    python -m bench [--quick] [--repeats N]

Results are added to ``bench/results/results.jsonl``, and the table and the plot beside it are made anew. A quick run
takes a minute or two, keeps its results in ``bench/.cache/quick``, and measures nothing worth knowing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import endtoend, engine, prefixes, profile
from bench.data import __main__ as data
from bench.guided import __main__ as guided
from bench.models import ROOT, SHAPES
from bench.realtext import rounds
from bench.record import append, read
from bench.report.write import write


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=SHAPES, metavar="NAME", help="nano, small, wide  [default: all]")
    parser.add_argument("--prompts", type=Path, help="of real text, for bench.realtext  [default: those of our own]")
    guided.add_guided_options(parser)
    engine.add_options(parser)
    options = parser.parse_args(arguments)
    run, path = engine.opened(options)
    quick = engine.QUICK.model
    began = time.monotonic()
    _step("the engine and its peers", began)
    models = options.model or ([quick] if options.quick else list(SHAPES))
    for item in engine.measure(run, models, None, options.repeats, quick=options.quick):
        append(path, [item])
    _step("profiles", began)
    for model in models:
        for item in profile.measure(run, model, 1, quick=options.quick):
            append(path, [item])
    _step("real text", began)
    work = rounds.Work.usual(options.prompts, quick=options.quick)
    if work is not None:
        for item in rounds.measure(run, work, None, options.repeats):
            append(path, [item])
    _step("end to end", began)
    for model in models:
        for item in endtoend.measure(run, model, options.repeats, quick=options.quick):
            append(path, [item])
    _step("guided lines", began)
    guided_work = guided.Work.usual(options.schemas, options.tokenizer, quick=options.quick)
    for item in guided.measure(run, guided_work):
        append(path, [item])
    whole = quick if options.quick else prefixes.MODEL
    _step("shared prefixes", began)
    for item in prefixes.measure(run, whole, 1 if options.quick else min(options.repeats, 2), quick=options.quick):
        append(path, [item])
    _step("submitting", began)
    sizes = ["1000"] if options.quick else ["100000"]
    subprocess.run([sys.executable, "bench/submit.py", "--lines", *sizes], cwd=ROOT, check=True)
    _step("tables", began)
    for item in data.measure(run, data.QUICK_ROWS if options.quick else data.ROWS):
        append(path, [item])
    _step("the report", began)
    write(read(path, run), path.parent)
    print(path.parent / "README.md")


def _step(what: str, began: float) -> None:
    print(f"== {what} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
