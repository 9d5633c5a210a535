"""Steps of 32 guided rows, of the same rows without constraints, and of half of each, in turns within one process.

Rows are those of the other benchmarks, with no end of text: all sides have as many tokens. What the host needs for the
masks of a step, and the device to apply them, is taken beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence as Items
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from bench.guided.task import GuidedTask
from bench.guided.vocabularies import loaded
from bench.guided.work import schema_of
from bench.models import SHAPES, build
from bench.task import Measured
from bench.work import CONCURRENCY, Row, make_work
from jobs.guided.constraint import json_constraint
from worker.engine.engine import Engine
from worker.engine.guided.guide import Phase
from worker.engine.guided.maker import GuideMaker
from worker.engine.guided.masks import Masks
from worker.engine.loading.mlx_models import measure
from worker.engine.loading.model import LoadedModel
from worker.engine.sampling.constraint import allowed_only
from worker.engine.sequence import PreparedLine, Sequence

STEPS = 8
"""Steps of one side before it is the other's turn."""
WARM_STEPS = 8
EVALUATIONS = 30
SIDES: dict[str, Callable[[int], bool]] = {
    "free": lambda number: False,
    "guided": lambda number: True,
    "mixed": lambda number: number % 2 == 0,
}
"""Which rows are guided."""


def side(task: GuidedTask) -> list[Measured]:
    """Greedy rows, then rows with filters and penalties of their own. ``extra`` has the milliseconds of a step, for
    each side the free rows' share of them as ``ratio_`` (the median of all turns) with ``spread_`` (its quartiles), and
    what masks take: ``masks_ms`` of the host, ``apply_ms`` of the device, upload included."""
    shape = SHAPES[task.model]
    weights, _ = build(task.model)
    model = measure(task.model, weights, loaded(Path(task.folder), shape.vocab), shape.config)
    maker = GuideMaker(model.tokenizer, model.vocab_size)
    rows = make_work(CONCURRENCY, min(shape.vocab, len(model.tokenizer.get_vocab())), 0)
    apply_ms = _apply_ms(model)
    found = []
    for sampled in (False, True):
        seconds, tokens, extra = _compare(task, model, maker, rows, sampled=sampled)
        name = "own" if sampled else "greedy"
        found.append(Measured(name, tokens, seconds, CONCURRENCY, extra={**extra, "apply_ms": apply_ms}))
    return found


def _compare(
    task: GuidedTask, model: LoadedModel, maker: GuideMaker, rows: list[Row], *, sampled: bool
) -> tuple[float, int, dict[str, Any]]:
    engines = {}
    most = WARM_STEPS + (task.turns + 2) * STEPS
    for name, guided in SIDES.items():
        engine = engines[name] = Engine(model, decode_concurrency=CONCURRENCY, prompt_concurrency=CONCURRENCY)
        for number, row in enumerate(rows):
            engine.add(_line(model, maker, number, row, most, sampled=sampled, guided=guided(number)))
        while engine.stats.decode_steps < WARM_STEPS:
            engine.step()
    times: dict[str, list[float]] = {name: [] for name in engines}
    masks: list[float] = []
    for turn in range(task.turns):
        order = list(engines) if turn % 2 == 0 else list(reversed(engines))
        for name in order:
            with _timed_masks() as taken:
                times[name].append(_ms(engines[name]) / STEPS)
            if name == "guided":
                masks.append(1000 * sum(taken) / STEPS)
    for engine in engines.values():
        _check(engine)
        engine.close()
    extra: dict[str, Any] = {name: statistics.median(found) for name, found in times.items()}
    for name in ("guided", "mixed"):
        ratios = [free / other for free, other in zip(times["free"], times[name], strict=True)]
        extra[f"ratio_{name}"] = statistics.median(ratios)
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        extra[f"spread_{name}"] = [quartiles[0], quartiles[2]]
    extra |= {"turns": task.turns, "masks_ms": statistics.median(masks)}
    seconds = sum(times["guided"]) * STEPS / 1000
    return seconds, task.turns * STEPS * CONCURRENCY, extra


def _line(
    model: LoadedModel, maker: GuideMaker, number: int, row: Row, tokens: int, *, sampled: bool, guided: bool
) -> PreparedLine:
    from bench.mill import line_of

    line = replace(line_of(number, row, tokens, sampled), eos=model.eos)
    if not guided:
        return line
    grammar = json_constraint(schema_of(number)).grammar()
    return replace(line, guide=maker.plan(grammar, Phase.ANSWER, line.sampling, line.eos))


def _ms(engine: Engine) -> float:
    import mlx.core as mx

    began = time.perf_counter()
    for _ in range(STEPS):
        if engine.step():
            raise RuntimeError("a line ended: the sides do not do the same work")
    mx.synchronize()
    return 1000 * (time.perf_counter() - began)


def _check(engine: Engine) -> None:
    """Raises:
    RuntimeError: rows are missing, so that the steps were not those of a full batch.
    """
    if engine.active != CONCURRENCY:
        raise RuntimeError(f"{engine.active} rows at the end in place of {CONCURRENCY}")


@contextmanager
def _timed_masks() -> Iterator[list[float]]:
    """Seconds of each time that masks are computed."""
    taken: list[float] = []
    original = Masks.foresee

    def foresee(masks: Masks, slots: Items[Sequence | None]) -> list[Sequence]:
        began = time.perf_counter()
        try:
            return original(masks, slots)
        finally:
            taken.append(time.perf_counter() - began)

    with patch.object(Masks, "foresee", foresee):
        yield taken


def _apply_ms(model: LoadedModel) -> float:
    """Milliseconds to bring the masks of a full batch to the device and to apply them."""
    import mlx.core as mx

    logits = mx.random.normal((CONCURRENCY, model.vocab_size))
    masks = np.random.default_rng(0).integers(0, 2**32, (CONCURRENCY, -(-model.vocab_size // 32)), dtype=np.uint32)
    mx.eval(logits)
    times = []
    for _ in range(EVALUATIONS):
        began = time.perf_counter()
        mx.eval(allowed_only(logits, mx.array(masks)))
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)
