"""A run as a page of Markdown: tables of the rates and ratios, the goals, and which of them were missed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.models import SHAPES
from bench.profile import PARTS
from bench.record import Measurement, Run
from bench.report.guided import FILE as GUIDED
from bench.report.realtext import text_goals, text_part
from bench.report.summary import GOALS, LABELS, WHOLE_GOALS, Summary, summarise
from bench.report.table import NOTHING, goal, occupancy, table

PEERS = ("mlx_lm_greedy", "mlx_lm_cold", "mlx_lm_warm", "mlx_lm_one", "mlx_lm_server")
OCCUPANCY_GOAL = 0.95
END_TO_END_GOAL = 0.95
PREFIX_GOAL = 5.0

NOTES = """\
- Tokens/s are new tokens over the whole time, prompts included; only the limit's time is that of its decode steps alone
  (`argmax(model(y))` for 32 rows, nothing else), and the goals are shares of that. "With prompts" adds what the bare
  forwards of the prompts take. Medians over the rounds; ± is half the range.
- Every line: a prompt of 20-60 random tokens, {new_tokens} new tokens, no end of text, and its own temperature, top_p,
  top_k, min_p, repetition and presence penalty. All sides of a round have the same lines, the slow ones fewer of them:
  {lines}.
- Every side ran in a process of its own with {blas}, 32 rows at a time, after a short warm-up with
  other values. The server was measured with the small model only. What takes minutes was measured in one round only
  (no ±). Promptmill's sampling is compiled, as it is on a GPU; end to end the worker and the engine beside it sample as
  they do on this machine: on a CPU only large vocabularies are compiled, where there is a compiler.
- "Cold": no value was seen before. mlx-lm compiles its filters anew for each, here with the C++ compiler. "Compiled
  before": the same process does the same lines a second time. "One at a time" is compiled before too.
  Promptmill's values were never seen before.
"""


GOALS_NOTE = """

Against the limit medians are compared; end to end and shared prefixes are medians of the rounds' ratios, since their
two sides run one right after the other."""
PROFILE_NOTE = """

Steps of 32 rows without prompts, the sides in turns within one process, medians; the limit's rows are as wide as the
batch. Then the sampler's parts one by one, and all of it compiled and not."""


def render(run: Run) -> str:
    """The whole page."""
    engine = summarise(run.measurements, "engine")
    models = [name for name in SHAPES if any(model == name for model, _ in engine)]
    parts = ["# Results", _machine(run)]
    if models:
        # In the folder of the results, which is also where the page is.
        parts += ["![Tokens per second as a share of the limit](engine.png)", "## The engine, tokens/s"]
        parts += [_rates(engine, models), "## Against the limit and the peers", _ratios(engine, models)]
        parts.append(_notes(run, engine, models))
    profiles = [item for item in run.measurements if item.bench == "profile"]
    if profiles:
        parts += ["## Where the time of a decode step goes, ms", _profiles(profiles)]
    whole = summarise(run.measurements, "endtoend")
    prefixes = summarise(run.measurements, "prefixes")
    goals = [*_engine_goals(engine, models), *text_goals(run), *_whole_goals(run, whole)]
    goals += _prefix_goals(run, prefixes)
    if any(item.bench == "guided" for item in run.measurements):
        parts.append(f"Guided lines have [a page of their own]({GUIDED}).")
    parts += text_part(run)
    if whole:
        parts += ["## End to end: `submit` to records in Redis", _whole(run, whole)]
    if prefixes:
        parts += ["## Shared prefixes: lines that begin with the same 1000 tokens", _prefixes(run, prefixes)]
    if goals:
        parts += ["## Goals", table(["what", "goal", "measured", ""], goals) + GOALS_NOTE]
    return "\n\n".join(parts) + "\n"


def _machine(run: Run) -> str:
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    text = (
        f"{machine.date} on {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB; {machine.system}, "
        f"Python {machine.python}, MLX on {machine.device}, BLAS {machine.blas}. {versions}. "
        f"Load average before: {machine.load:g}."
    )
    return text + ("\n\n**A quick run, to see that all works: its numbers mean nothing.**" if machine.quick else "")


def _rates(engine: dict[tuple[str, str], Summary], models: Sequence[str]) -> str:
    sides = [side for side in LABELS if any((model, side) in engine for model in models)]
    rows = [[model, *(_cell(engine.get((model, side))) for side in sides)] for model in models]
    return table(["model", *(LABELS[side] for side in sides)], rows)


def _ratios(engine: dict[tuple[str, str], Summary], models: Sequence[str]) -> str:
    """Promptmill with rows' own parameters, as a multiple of each other side."""
    peers = [side for side in PEERS if any((model, side) in engine for model in models)]
    rows = []
    for model in models:
        ours, limit = engine.get((model, "promptmill_own")), engine.get((model, "limit"))
        if ours is None:
            continue
        against = [_times(ours, engine.get((model, side))) for side in peers]
        greedy = _share(ours, engine.get((model, "promptmill_greedy")))
        prompts = NOTHING if limit is None else f"{ours.median / limit.with_prompts:.2f}"
        rows.append([model, _share(ours, limit), prompts, greedy, *against, occupancy(ours)])
    head = ["promptmill, own params", "of the limit", "of the limit with prompts", "of promptmill greedy"]
    return table([*head, *(f"× {LABELS[side]}" for side in peers), "occupancy"], rows)


def _engine_goals(engine: dict[tuple[str, str], Summary], models: Sequence[str]) -> list[list[str]]:
    rows = []
    for model in models:
        ours, limit = engine.get((model, "promptmill_own")), engine.get((model, "limit"))
        if ours is not None and limit is not None:
            rows.append(goal(f"{model}: rows' own params, of the limit", GOALS[model], ours.median / limit.median))
        if ours is not None and ours.occupancy is not None:
            rows.append(goal(f"{model}: occupancy while lines wait", OCCUPANCY_GOAL, ours.occupancy))
    return rows


def _paired(run: Run, bench: str, model: str, side: str, other: str) -> float:
    """How many times as fast as ``other`` a side is: the median of the rounds' ratios, for sides that run one right
    after the other."""
    rates = {(item.side, item.round): item.tokens_per_second for item in run.measurements
             if (item.bench, item.model) == (bench, model)}  # fmt: skip
    return statistics.median(rates[side, number] / rates[other, number] for name, number in rates if name == side)


def _whole_goals(run: Run, whole: dict[tuple[str, str], Summary]) -> list[list[str]]:
    rows = []
    for (model, side), summary in whole.items():
        if side != "end_to_end":
            continue
        if (model, "limit") in whole:
            ratio = _paired(run, "endtoend", model, side, "limit")
            rows.append(goal(f"{model}: end to end, of the limit", WHOLE_GOALS[model], ratio))
        if model == "small":
            ratio = _paired(run, "endtoend", model, side, "promptmill_own")
            rows.append(goal(f"{model}: end to end, of the engine alone", END_TO_END_GOAL, ratio))
        if summary.occupancy is not None:
            rows.append(goal(f"{model}: occupancy across shards", OCCUPANCY_GOAL, summary.occupancy))
    return rows


def _whole(run: Run, whole: dict[tuple[str, str], Summary]) -> str:
    rows = []
    for (model, side), summary in whole.items():
        if side != "end_to_end":
            continue
        others = [whole.get((model, other)) for other in ("limit", "promptmill_own")]
        ratios = [
            f"{_paired(run, 'endtoend', model, side, other):.2f}" if (model, other) in whole else NOTHING
            for other in ("limit", "promptmill_own")
        ]
        rows.append([model, str(summary.lines), *map(_cell, others), summary.text, *ratios, occupancy(summary)])
    head = ["model", "lines", "limit, tokens/s", "engine alone", "end to end", "of the limit", "of the engine alone"]
    return table([*head, "occupancy"], rows)


def _profiles(profiles: Sequence[Measurement]) -> str:
    rows = []
    for item in profiles:
        found = item.extra
        steps = [f"{found[name]:.2f}" for name in ("limit", "greedy", "own")]
        shares = [f"{found[f'ratio_{name}']:.2f}" for name in ("greedy", "own")]
        rows.append([item.model, *steps, *shares, *(f"{found[part]:.2f}" for part in PARTS)])
    head = ["model", "step of the limit", "greedy", "own params", "limit/greedy", "limit/own", *PARTS.values()]
    return table(head, rows) + PROFILE_NOTE


def _prefix_goals(run: Run, prefixes: dict[tuple[str, str], Summary]) -> list[list[str]]:
    rows = []
    for model, side in prefixes:
        if side == "prefixes_on":
            times = _paired(run, "prefixes", model, side, "prefixes_off")
            rows.append(goal(f"{model}: shared prefixes, times as fast", PREFIX_GOAL, times))
    return rows


def _prefixes(run: Run, prefixes: dict[tuple[str, str], Summary]) -> str:
    rows = []
    for (model, side), on in prefixes.items():
        if side != "prefixes_on":
            continue
        off = prefixes[model, "prefixes_off"]
        cached = [item.extra["cached"] for item in run.measurements if item.side == side and item.model == model]
        rows.append([model, str(on.lines), off.text, on.text, f"{statistics.median(cached):.2f}"])
    new = next(item.new_tokens for item in run.measurements if item.bench == "prefixes")
    head = ["model", "lines", "each in full, tokens/s", "computed once, tokens/s", "prompt tokens cached"]
    return table(head, rows) + f"\n\nGreedy rows, {new} new tokens each; both sides gave the same tokens."


def _notes(run: Run, engine: dict[tuple[str, str], Summary], models: Sequence[str]) -> str:
    tokens = sorted({item.new_tokens for item in run.measurements if item.bench == "engine"})
    lines = []
    for model in models:
        counts: dict[int, list[str]] = {}
        for side, label in LABELS.items():
            if side != "limit" and (model, side) in engine:
                counts.setdefault(engine[model, side].lines, []).append(label)
        most = max(counts, default=0)
        fewer = ", ".join(f"{count} ({'; '.join(names)})" for count, names in counts.items() if count < most)
        lines.append(f"{model} {most}" + (f", but {fewer}" if fewer else ""))
    return NOTES.format(
        new_tokens=" or ".join(map(str, tokens)), lines=".\n  ".join(lines), blas=run.machine.blas
    ).rstrip()  # fmt: skip


def _times(ours: Summary, other: Summary | None) -> str:
    if other is None:
        return NOTHING
    ratio = ours.median / other.median
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _share(ours: Summary, other: Summary | None) -> str:
    return NOTHING if other is None else f"{ours.median / other.median:.2f}"


def _cell(summary: Summary | None) -> str:
    return NOTHING if summary is None else summary.text
