"""Answers to real questions per second: the engine, mlx-lm and bare forwards of the same tokens.

    python -m bench.realtext [--prompts FILE] [--model FOLDER] [--lines N] [--sides SIDE ...] [--repeats N] [--quick]

Each line is a chat with parameters of its own, and ends where the model ends it. Sides: ``engine`` is the engine as a
worker on this machine makes it; ``limit`` bare forwards of as many prompt and output tokens, with every row in use and
no padding; ``batch-generator`` mlx-lm's ``BatchGenerator`` with samplers of the rows' own; ``one`` one line at a time,
fewer of them; ``worker`` the whole way, from ``submit`` to records, through a worker as it is installed. Without
``--model`` it is SmolLM2-135M-Instruct, which comes from PyPI.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bench.engine import add_options, opened
from bench.realtext.rounds import ALL, Work, measure
from bench.record import append


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.realtext", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=Path, help="JSON lines with question, prompt or messages  [default: questions of our own]"
    )
    parser.add_argument("--model", type=Path, help="an instruct model's folder  [default: SmolLM2-135M-Instruct]")
    parser.add_argument("--lines", type=int, help="in a round  [default: 96, quick: 4]")
    parser.add_argument("--max-tokens", type=int, help="of an answer  [default: 160, quick: 8]")
    parser.add_argument("--sides", nargs="+", choices=ALL, metavar="SIDE", help=f"of {', '.join(ALL)}")
    add_options(parser)
    options = parser.parse_args(arguments)
    work = Work.usual(options.prompts, options.model, quick=options.quick)
    if work is None:
        return
    changes = {"lines": options.lines, "new_tokens": options.max_tokens}
    work = dataclasses.replace(work, **{name: value for name, value in changes.items() if value is not None})
    run, path = opened(options)
    for item in measure(run, work, options.sides, options.repeats):
        append(path, [item])


if __name__ == "__main__":
    main()
