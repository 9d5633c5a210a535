"""Where the time of a decode step goes: the engine's steps between steps of the bare loop, and the sampler's parts.

    python -m bench.profile [--model NAME] [--repeats N] [--quick]

All is taken in one process and in turns, so that a machine that changes its speed changes it for all. The parts are
evaluated one by one, which costs each a few hundredths of a millisecond that they do not cost together.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bench.engine import measurement, run_by_itself
from bench.record import Measurement
from bench.sides import run_side
from bench.task import Measured, Task
from bench.work import CONCURRENCY, PROMPT_TOKENS

if TYPE_CHECKING:
    import mlx.core as mx

    from worker.engine.engine import Engine
    from worker.engine.sampling.row_params import BatchArrays

MODEL = "small"
STEPS = 8
"""Steps of one side before it is the other's turn."""
TURNS = {"nano": 60, "small": 15, "wide": 8}
QUICK_TURNS = 2
EVALUATIONS = 30
PARTS = {
    "adjust": "penalties",
    "best": "best 256",
    "mass": "mass of all",
    "draw": "filters, draw",
    "sampler": "sampler, compiled",
    "uncompiled": "uncompiled",
}


def measure(run: str, model: str, repeats: int, *, quick: bool = False) -> Iterator[Measurement]:
    """One round, in a process of its own: the medians are in it."""
    del repeats
    task = Task(model, CONCURRENCY, STEPS * (QUICK_TURNS if quick else TURNS[model]), 0)
    for item in run_side("profile", task):
        shown = ", ".join(f"{name} {value:.2f}" for name, value in item.extra.items())
        print(f"{model:6} ms: {shown}", file=sys.stderr)
        yield measurement("profile", run, task, 0, item)


def profile(task: Task) -> list[Measured]:
    """``extra`` has milliseconds: of a step of the ``limit``, of the engine's with ``greedy`` and with ``own`` rows,
    and of the sampler's parts; ``ratio_`` are the limit's share of a step, the median of all turns."""
    from bench.mill import engine_of, line_of

    turns = task.new_tokens // STEPS
    steps: dict[str, Callable[[], None]] = {"limit": _bare(task)}
    engines: dict[str, Engine] = {}
    for name in ("greedy", "own"):
        engine = engines[name] = engine_of(task, compile=True)
        for number, row in enumerate(task.rows):
            engine.add(line_of(number, row, 10 * task.new_tokens, name == "own"))
        while engine.stats.decode_steps < STEPS:
            engine.step()
        steps[name] = lambda engine=engine: _run(engine)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, take in steps.items():
            times[name].append(_ms(take) / STEPS)
    extra: dict[str, Any] = {name: statistics.median(found) for name, found in times.items()}
    for name in engines:
        pairs = zip(times["limit"], times[name], strict=True)
        extra[f"ratio_{name}"] = statistics.median(limit / ours for limit, ours in pairs)
    extra |= _parts(task)
    seconds = sum(times["own"]) * STEPS / 1000
    return [Measured("profile", turns * STEPS * CONCURRENCY, seconds, task.lines, extra=extra)]


def _ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def _run(engine: Engine) -> None:
    import mlx.core as mx

    for _ in range(STEPS):
        engine.step()
    mx.synchronize()


def _bare(task: Task) -> Callable[[], None]:
    """Steps of the bare loop, on rows as long as the longest: a batch is as wide as that."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from bench.models import build

    model, _ = build(task.model)
    cache = make_prompt_cache(model)
    last = model(mx.random.randint(1, task.vocab, (CONCURRENCY, PROMPT_TOKENS[1] - 1)), cache=cache)[:, -1]
    held = [mx.argmax(last, axis=-1)]
    mx.eval(held)

    def take() -> None:
        for _ in range(STEPS):
            before = held[0]
            held[0] = mx.argmax(model(before[:, None], cache=cache)[:, -1], axis=-1)
            mx.async_eval(held[0])  # type: ignore[no-untyped-call]
            mx.eval(before)
        mx.eval(held[0])

    return take


def _parts(task: Task) -> dict[str, float]:
    import mlx.core as mx

    from bench.mill import line_of
    from worker.engine.sampling import draws, filters, row_params, sampler
    from worker.engine.sequence import sequences_of

    mx.random.seed(task.seed)
    logits = 2 * mx.random.normal((CONCURRENCY, task.vocab))
    batch = [sequences_of(line_of(i, row, 99, True), None, 0.0)[0] for i, row in enumerate(task.rows)]
    arrays: BatchArrays = row_params.build(batch, task.vocab)
    adjusted = sampler.adjust(arrays.features, logits, arrays.state, arrays.params)
    ids, values = filters.best(adjusted, filters.CANDIDATES)
    uniforms = mx.random.uniform(shape=(CONCURRENCY, draws.UNIFORMS))
    mx.eval(adjusted, ids, values, uniforms)

    def whole(logits: mx.array, state: Any, params: Any) -> list[mx.array]:
        return list(sampler.sample(arrays.features, logits, state, params).values())

    compiled = mx.compile(whole)
    parts: dict[str, Callable[[], Any]] = {
        "adjust": lambda: sampler.adjust(arrays.features, logits, arrays.state, arrays.params),
        "best": lambda: filters.best(adjusted, filters.CANDIDATES),
        "mass": lambda: draws.mass(adjusted, values[:, :1]),
        "draw": lambda: filters.draw_filtered(adjusted, ids, values, arrays.params, uniforms, with_mass=False),
        "sampler": lambda: compiled(logits, arrays.state, arrays.params),
        "uncompiled": lambda: whole(logits, arrays.state, arrays.params),
    }
    found = {}
    for name, part in parts.items():
        mx.eval(part())
        found[name] = statistics.median(_ms(lambda part=part: mx.eval(part())) for _ in range(EVALUATIONS))  # type: ignore[misc]
    return found


if __name__ == "__main__":
    run_by_itself("python -m bench.profile", __doc__, MODEL, measure)
