"""The rounds: every side once in each, on questions of that round, the engine first."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.endtoend import through_worker
from bench.engine import measurement
from bench.models import ROOT
from bench.realtext.sides import SIDES, run_side
from bench.realtext.smollm2 import obtained
from bench.realtext.task import WARM_LINES, WARM_TOKENS, Lengths, TextTask
from bench.record import Measurement
from bench.task import Measured, Task

LINES = 96
NEW_TOKENS = 160
POCKET = ROOT / "examples" / "pocket" / "model"
QUICK_LINES = 4
QUICK_TOKENS = 8
THROUGH_WORKER = "worker"
ALL = (*SIDES, THROUGH_WORKER)
FEWER = {"one": 4}
"""Sides that take minutes for all lines get only so many of them."""
ONCE = frozenset({"batch-generator", "one", THROUGH_WORKER})
"""Sides that are measured in the first round only: they take minutes, and tell little more the second time."""


@dataclass(frozen=True, slots=True)
class Work:
    """A model's folder, the file of questions (None: our own), and how many of them in a round, with answers of at most
    ``new_tokens``."""

    folder: Path
    prompts: Path | None
    lines: int = LINES
    new_tokens: int = NEW_TOKENS

    @classmethod
    def usual(cls, prompts: Path | None, folder: Path | None = None, *, quick: bool = False) -> Work | None:
        """The work of a run, without a ``folder`` SmolLM2's; quick, a little of it on the model of the examples. None
        where there is no model, which is said on stderr."""
        folder = folder or (POCKET if quick else obtained())
        if folder is None:
            return None
        return cls(folder, prompts, QUICK_LINES, QUICK_TOKENS) if quick else cls(folder, prompts)

    def task(self, side: str, round_number: int, lengths: Lengths) -> TextTask:
        return TextTask(
            folder=str(self.folder.resolve()),
            prompts=str(self.prompts.resolve()) if self.prompts else "",
            lines=min(self.lines, FEWER.get(side, self.lines)),
            skip=round_number * self.lines,
            new_tokens=self.new_tokens,
            seed=round_number,
            lengths=lengths,
        )


def measure(run: str, work: Work, sides: Sequence[str] | None, repeats: int) -> Iterator[Measurement]:
    """Every side once per round; ``sides`` None are all, those of :data:`ONCE` in the first round only.

    Raises:
        RuntimeError: a side failed, or two sides did not have the same prompts.
    """
    # What the limit computes is what the engine came to.
    wanted = [side for side in ALL if side in (sides or ALL) or (side == "engine" and "limit" in (sides or ()))]
    for number in range(repeats):
        lengths: Lengths = ()
        for side in wanted:
            if number and side in ONCE and not sides:
                continue
            task = work.task(side, number, lengths)
            print(
                f"real text round {number + 1}/{repeats}  {side:15} {task.lines:3} lines ...", end="", file=sys.stderr
            )
            item = _measured(side, task)
            if "lengths" in item.extra:
                lengths = tuple((prompt, output) for prompt, output in item.extra["lengths"])
            print(f"  {item.tokens:,} tokens, {item.tokens / item.seconds:,.1f} tokens/s", file=sys.stderr, flush=True)
            _compare(item, lengths)
            yield _measurement(run, work, number, item)


def _measured(side: str, task: TextTask) -> Measured:
    if side != THROUGH_WORKER:
        return run_side(side, task)
    warm = task.warm_up(WARM_LINES, WARM_TOKENS)
    return through_worker("promptmill_worker", Path(task.folder), warm.job_lines(), task.job_lines())


def _compare(item: Measured, lengths: Lengths) -> None:
    """See to it that a side had the prompts that the engine had."""
    had, wanted = item.extra.get("prompt_tokens"), sum(prompt for prompt, _ in lengths[: item.lines])
    if lengths and had is not None and had != wanted:
        raise RuntimeError(f"{item.side} had {had} prompt tokens in place of {wanted}: not the same work")


def _measurement(run: str, work: Work, number: int, item: Measured) -> Measurement:
    extra = {name: value for name, value in item.extra.items() if name != "lengths"}
    measured = dataclasses.replace(item, extra={**extra, "source": work.prompts.name if work.prompts else ""})
    task = Task(work.folder.name, measured.lines, work.new_tokens, number)
    return measurement("realtext", run, task, number, measured)
