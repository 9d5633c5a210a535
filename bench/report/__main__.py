"""The report of one run: a page of Markdown and a plot, with the goals and what was missed.

python -m bench.report [--results FILE] [--run NAME] [--out FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.record import RESULTS, read
from bench.report.write import write


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "results.jsonl")
    parser.add_argument("--run", help="which run  [default: the newest]")
    parser.add_argument("--out", type=Path, help="folder  [default: that of the results]")
    options = parser.parse_args(arguments)
    folder = options.out or options.results.parent
    write(read(options.results, options.run), folder)
    print(folder / "README.md")


if __name__ == "__main__":
    main()
