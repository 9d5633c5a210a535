"""One side of the benchmark of scoring, run in a process of its own: ``SIDE``, and the work on standard input."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx

from bench.scoring.work import ScoringWork
from bench.sides import print_measured
from bench.task import Measured
from jobs.lines.line import CheckedLine, Defaults, check_fields
from jobs.params import Sampling
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import load_model
from worker.engine.prompts.prepare import Preparer
from worker.engine.scoring.task import ScoringTask
from worker.engine.sequence import PreparedLine

FORWARD_TOKENS = 2048
"""Tokens of a bare forward, as in a chunk of the engine."""
WARM = 4
WARM_LENGTH = 60
"""Questions or texts, and tokens of each, that every side has scored before it is measured."""


def questions(work: ScoringWork) -> list[Measured]:
    """The engine on questions: lines with a ``continuation``, from their texts on."""
    model = load_model(work.folder)
    engine, preparer = Engine(model), Preparer(model)
    _scored(engine, _lines(preparer, _warm(work)))
    before = engine.stats.prefilled_tokens
    began = time.perf_counter()
    lines = _lines(preparer, work)
    found = _scored(engine, lines)
    seconds = time.perf_counter() - began
    scores = [(one.scores.total(line.scoring.border), one.scores.is_greedy(line.scoring.border)) for line, one in found]
    extra = {"scores": scores, "computed": engine.stats.prefilled_tokens - before}
    return [Measured("promptmill", sum(len(line.prompt) for line in lines), seconds, work.count, extra=extra)]


def evaluate(work: ScoringWork) -> list[Measured]:
    """``mlx_lm.evaluate``'s own function on the same requests; it needs lm_eval to be installed."""
    from mlx_lm.evaluate import MLXLM

    peer = MLXLM(work.folder, use_chat_template=False)
    peer.loglikelihood(_requests(_warm(work)))
    requests = _requests(work)
    began = time.perf_counter()
    scores = peer.loglikelihood(requests)
    seconds = time.perf_counter() - began
    whole = [len(peer.tokenizer.encode("".join(one.args))) for one in requests]
    contexts = {one.args[0]: len(peer.tokenizer.encode(one.args[0])) for one in requests}
    # A context is computed once for its choices, and of each choice all but the last token.
    computed = sum(contexts.values()) + sum(
        length - contexts[one.args[0]] - 1 for length, one in zip(whole, requests, strict=True)
    )
    return [
        Measured("mlx_lm.evaluate", sum(whole), seconds, work.count, extra={"scores": scores, "computed": computed})
    ]


def texts(work: ScoringWork) -> list[Measured]:
    """The engine on texts: all log-probabilities of each."""
    model = load_model(work.folder)
    engine = Engine(model)
    _scored(engine, _text_lines(_warm(work).texts(model.vocab_size)))
    lines = _text_lines(work.texts(model.vocab_size))
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    began = time.perf_counter()
    found = _scored(engine, lines)
    seconds = time.perf_counter() - began
    peak = mx.get_peak_memory() - before
    extra = {"sums": [one.scores.total(1) for _, one in found], "peak_bytes": peak}
    return [Measured("promptmill", sum(len(line.prompt) for line in lines), seconds, work.count, extra=extra)]


def one_at_a_time(work: ScoringWork) -> list[Measured]:
    """Each text in a forward of its own, and the log-softmax of all its logits: what a loop over a file does."""
    return [_bare("one at a time", work, lambda texts: [[text] for text in texts])]


def limit(work: ScoringWork) -> list[Measured]:
    """Bare forwards of texts of like length together, with the log-probabilities and nothing else."""
    return [_bare("limit", work, _together)]


def _bare(side: str, work: ScoringWork, batches_of: Any) -> Measured:
    model = load_model(work.folder)
    for batch in batches_of(_warm(work).texts(model.vocab_size)):
        _forward(model, batch)
    given = work.texts(model.vocab_size)
    batches = batches_of(given)
    began = time.perf_counter()
    sums = {id(text): total for batch in batches for text, total in zip(batch, _forward(model, batch), strict=True)}
    seconds = time.perf_counter() - began
    extra = {"sums": [sums[id(text)] for text in given]}
    return Measured(side, sum(map(len, given)), seconds, work.count, extra=extra)


def _warm(work: ScoringWork) -> ScoringWork:
    """What is scored before: a few questions, or short texts."""
    return ScoringWork(work.folder, WARM, work.seed + 1, WARM_LENGTH)


def _together(given: Sequence[list[int]]) -> list[list[list[int]]]:
    """Batches of texts next to each other in length, of about as many tokens as a forward has."""
    batches: list[list[list[int]]] = []
    for text in sorted(given, key=len):
        if batches and len(text) * (len(batches[-1]) + 1) <= FORWARD_TOKENS:
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches


def _forward(model: Any, batch: list[list[int]]) -> list[float]:
    """The sums of the log-probabilities of some texts, padded at their ends, which nothing before looks at."""
    width = max(map(len, batch))
    padded = mx.array([[*text, *[0] * (width - len(text))] for text in batch])
    logits = model.model(padded[:, :-1]).astype(mx.float32)
    logprobs = mx.take_along_axis(logits, padded[:, 1:, None], axis=-1)[..., 0] - mx.logsumexp(logits, axis=-1)
    mask = mx.arange(width - 1)[None] < mx.array([len(text) - 1 for text in batch])[:, None]
    return cast("list[float]", mx.where(mask, logprobs, 0).sum(axis=-1).tolist())


def _lines(preparer: Preparer, work: ScoringWork) -> list[PreparedLine]:
    defaults = Defaults({"model": work.folder})
    lines: list[PreparedLine] = []
    for context, choices in work.questions():
        for choice in choices:
            checked = CheckedLine(None, check_fields({"prompt": context, "continuation": choice}), None)
            job = checked.job(index=len(lines), line=len(lines) + 1, batch_id="", defaults=defaults)
            lines.append(preparer.prepare(job, key=len(lines)))
    return lines


def _text_lines(given: Sequence[list[int]]) -> list[PreparedLine]:
    sampling = Sampling(max_tokens=0, seed=0)
    return [
        PreparedLine(number, tuple(text), sampling, frozenset(), scoring=ScoringTask(1))
        for number, text in enumerate(given)
    ]


def _requests(work: ScoringWork) -> list[Any]:
    return [SimpleNamespace(args=(context, choice)) for context, choices in work.questions() for choice in choices]


def _scored(engine: Engine, lines: Sequence[PreparedLine]) -> list[tuple[Any, Any]]:
    """The lines with their rows."""
    for line in lines:
        engine.add(line)
    rows: dict[Any, Any] = {}
    while engine.has_work:
        for finished in engine.step():
            if finished.error is not None:
                raise RuntimeError(f"line {finished.key} failed: {finished.error}")
            rows[finished.key] = finished.sequences[0]
    return [(line, rows[line.key]) for line in lines]


SIDES = {
    "questions": questions,
    "evaluate": evaluate,
    "texts": texts,
    "one": one_at_a_time,
    "limit": limit,
}

if __name__ == "__main__":
    print_measured((__name__, SIDES[sys.argv[1]].__name__), ScoringWork.from_json(sys.stdin.read()))
