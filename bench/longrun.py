"""Whether memory stays flat over a long run: one engine, 32 rows, every kind of line, no end of refills.

    python -m bench.longrun [--tokens N] [--model dense|hybrid|both] [--out FILE]

What leaks first in MLX is not bytes but buffers: an array that nobody evaluates keeps its inputs alive, theirs, and so
on back to the first step, at a few bytes each; Metal refuses the 499000th. Most of them are no Python objects, and they
hardly show in bytes. So besides bytes this counts the arrays that hold data, those behind arrays still to be computed
included. The run is flat when no figure is higher in its last third than in the middle one, noise apart.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import mlx.core as mx

from bench.models import FIRST_TOKEN, SHAPES, build, word
from jobs.params import Sampling
from worker.engine.decode import SETTLE_EVERY
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import measure
from worker.engine.loading.model import LoadedModel
from worker.engine.sequence import PreparedLine

TOLERANCE = 0.05
"""How much higher the last third's mean may be: rows of many lengths come and go, and so do their caches."""
FIGURES = {"active_bytes": "active MB", "resident_bytes": "resident MB", "live_buffers": "live buffers"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is: ``rows`` decode together until ``tokens`` are generated, with a sample every ``every`` steps
    (in step with the engine's evaluations of its caches, or what waits for the next one shows as noise);
    ``longest`` is the most tokens of an ordinary line, one line in 24 has five times that; after ``deck`` lines the
    same ones come again."""

    tokens: int = 300_000
    rows: int = 32
    every: int = 2 * SETTLE_EVERY
    longest: int = 160
    deck: int = 96


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the process after ``tokens`` generated tokens. ``active_bytes`` is what MLX holds, its buffer cache
    not included, ``resident_bytes`` the memory of the process, ``live_buffers`` what :func:`live_buffers` counts beyond
    those from before the run, the model's among them."""

    number: int
    tokens: int
    steps: int
    seconds: float
    active_bytes: int
    resident_bytes: int
    live_buffers: int


def dense() -> LoadedModel:
    """The benchmarks' smallest model."""
    model, tokenizer = build("nano")
    return measure("dense", model, tokenizer, SHAPES["nano"].config)


def hybrid() -> LoadedModel:
    """State-space layers with recurrent state between layers of attention without positions, as Granite-H has: the
    offsets of those are what nothing but the engine ever evaluates."""
    from mlx_lm.models.granitemoehybrid import Model, ModelArgs

    _, tokenizer = build("nano")
    config: dict[str, Any] = {
        **SHAPES["nano"].config,
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "position_embedding_type": "nope",
        "attention_bias": False,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 4.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    }
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    model.eval()
    mx.eval(model.parameters())
    return measure("hybrid", model, tokenizer, config)


MODELS: dict[str, Callable[[], LoadedModel]] = {"dense": dense, "hybrid": hybrid}


def lines(vocab: int, plan: Plan, seed: int = 0) -> Iterator[PreparedLine]:
    """Lines without end, the same over and over, so that one stretch of the run is like another.

    All lengths, some far beyond the others; half of the prompts begin like others; every second line has
    penalties; stop strings, ``min_tokens``, biases, logprobs and several choices on some.
    """
    draw, longest = random.Random(seed), plan.longest

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(FIRST_TOKEN, vocab) for _ in range(count))

    starts = [words(longest) for _ in range(6)]
    deck = []
    for number in range(plan.deck):
        most = 5 * longest if number % 24 == 0 else draw.randint(1, longest)
        fields: dict[str, Any] = {
            "max_tokens": most,
            "temperature": 0.0 if number % 8 == 1 else draw.uniform(0.5, 1.5),
            "top_p": draw.uniform(0.7, 1.0),
            "top_k": draw.choice([0, 0, 5, 50]),
            "min_p": draw.choice([0.0, 0.05]),
            "seed": number,
        }
        if number % 2:
            fields |= {"repetition_penalty": draw.uniform(1.0, 1.4), "repetition_context_size": draw.randint(0, 40)}
            fields |= {"presence_penalty": draw.uniform(-1, 1), "frequency_penalty": draw.uniform(-0.5, 0.5)}
        if number % 3 == 0:
            fields |= {"stop": tuple(word(token)[1:] for token in words(3)), "min_tokens": most // 2}
        if number % 5 == 0:
            fields |= {"logit_bias": dict.fromkeys(words(4), -5.0)}
        if number % 7 == 0:
            fields |= {"logprobs": True, "top_logprobs": number % 4}
        if number % 11 == 0:
            fields |= {"n": 3}
        start = draw.choice(starts)[: draw.choice([longest // 2, longest])] if number % 4 < 2 else ()
        deck.append((start + words(draw.randint(1, longest)), Sampling(**fields)))
    for key in itertools.count():
        prompt, sampling = deck[key % len(deck)]
        yield PreparedLine(key, prompt, sampling, frozenset())


def run(model: LoadedModel, plan: Plan, report: Callable[[Sample], None] = lambda sample: None) -> list[Sample]:
    """Generate ``plan.tokens`` tokens; the samples taken on the way.

    Raises:
        RuntimeError: when a line fails.
    """
    # Room for about half of the shared beginnings: prefixes are computed and given up all along.
    engine = Engine(model, decode_concurrency=plan.rows, prefix_memory=4 * model.cache_cost(plan.longest))
    source = lines(model.vocab_size, plan)
    samples: list[Sample] = []
    gc.collect()
    before = live_buffers()
    began = time.perf_counter()
    while engine.stats.completion_tokens < plan.tokens:
        while engine.pending < plan.rows:
            engine.add(next(source))
        for finished in engine.step():
            if finished.error is not None:
                raise RuntimeError(f"line {finished.key} failed: {finished.error}")
        if engine.stats.recoveries:
            raise RuntimeError("a step failed: memory was given up on the way, and the run says nothing")
        if engine.stats.decode_steps >= (len(samples) + 1) * plan.every:
            samples.append(_sample(engine, len(samples) + 1, time.perf_counter() - began, before))
            report(samples[-1])
    engine.close()
    return samples


def _sample(engine: Engine, number: int, seconds: float, before: int) -> Sample:
    mx.synchronize()
    stats = engine.stats
    return Sample(
        number=number,
        tokens=stats.completion_tokens,
        steps=stats.decode_steps,
        seconds=seconds,
        active_bytes=int(mx.get_active_memory()),
        resident_bytes=_resident_bytes(),
        live_buffers=live_buffers() - before,
    )


def live_buffers() -> int:
    """How many arrays with data are alive: those that Python holds, and those that arrays still to be computed are to
    be computed from."""
    arrays = [item for item in gc.get_objects() if type(item) is mx.array]
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return graph.getvalue().count("rank=source")


def _resident_bytes() -> int:
    """The process's memory; where the system does not tell (macOS), the most it ever was, which a leak shows in too."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """For each figure how much higher its mean is in the last third than in the middle one, as a part of that.

    Raises:
        ValueError: with fewer than 9 samples, three to a third.
    """
    third = len(samples) // 3
    if third < 3:
        raise ValueError(f"{len(samples)} samples tell nothing: 9 are the least; take more tokens")
    parts = samples[third : 2 * third], samples[-third:]
    middle, last = ({name: fmean(getattr(one, name) for one in part) for name in FIGURES} for part in parts)
    return {name: last[name] / middle[name] - 1 for name in FIGURES}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.longrun", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=Plan().tokens, help="to generate  [default: %(default)s]")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both", help="[default: both]")
    parser.add_argument("--out", type=Path, help="write all samples to this file, as JSON")
    options = parser.parse_args(arguments)
    if options.tokens < 3000:
        parser.error("--tokens must be at least 3000")
    plan = Plan(tokens=options.tokens)
    flat, kept = True, {}
    for name in MODELS if options.model == "both" else [options.model]:
        print(
            f"{name}, {plan.rows} rows:\n    tokens     steps   seconds", *(f"{head:>13}" for head in FIGURES.values())
        )
        samples = run(MODELS[name](), plan, _print)
        grown = growth(samples)
        kept[name] = [asdict(sample) for sample in samples]
        flat &= max(grown.values()) <= TOLERANCE
        print(f"{'last third against middle':30}", *(f"{grown[figure]:>+13.2%}" for figure in FIGURES))
    if options.out is not None:
        options.out.write_text(json.dumps(kept, indent=1))
    print("flat" if flat else f"NOT FLAT: a figure grew by more than {TOLERANCE:.0%}")
    return 0 if flat else 1


def _print(sample: Sample) -> None:
    """One line of the table for every twentieth sample."""
    if sample.number % 20 == 0:
        sizes = f"{sample.active_bytes / 1e6:>13.2f} {sample.resident_bytes / 1e6:>13.1f} {sample.live_buffers:>13,}"
        print(f"{sample.tokens:>10,} {sample.steps:>9,} {sample.seconds:>9.1f} {sizes}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
