"""Lines that are scored by an engine in tests, and what one forward of the model alone says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from worker.engine.engine import Engine
from worker.engine.loading.model import LoadedModel
from worker.engine.scoring.task import Scores, ScoringTask

EXAMPLES = [(7 * i * i + 31 * i) % 255 + 1 for i in range(45)]
"""What all questions have before them."""


def tokens_of(length: int, seed: int) -> list[int]:
    return [(seed * 37 + i * i * 11 + i * 5) % 255 + 1 for i in range(length)]


def alone(model: LoadedModel, prompt: list[int]) -> np.ndarray[Any, Any]:
    """Log-probabilities ``[tokens, vocab]`` of one forward of the model's own, in float32 from the logits on."""
    logits = model.model(mx.array([prompt]), cache=model.new_cache())[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


class Scorer:
    """An engine, lines that are scored by it, and others that generate meanwhile."""

    def __init__(self, model: LoadedModel, line_of: Any, **options: Any) -> None:
        self.engine = Engine(model, **{"decode_concurrency": 3, "prefill_step_size": 256, **options})
        self.model, self._line_of = model, line_of
        self._given: dict[int, tuple[list[int], ScoringTask]] = {}
        self.done: dict[Any, Any] = {}

    def add(self, prompt: list[int], first: int = 1, top: int = 0, **given: Any) -> None:
        task = ScoringTask(first, top, border=first, generates=bool(given))
        key = len(self._given)
        line = self._line_of(key, prompt, **{"max_tokens": 0, **given})
        self.engine.add(replace(line, scoring=task))
        self._given[key] = (prompt, task)

    def generate(self, key: str, prompt: list[int], **given: Any) -> None:
        self.engine.add(self._line_of(key, prompt, **given))

    def finish(self) -> None:
        while self.engine.has_work:
            self.done |= {finished.key: finished for finished in self.engine.step()}
        assert self.engine.stats.recoveries == 0

    def compare(self, close: float = 1e-4) -> None:
        """Each score is that of a forward alone, within ``close``."""
        for key, (prompt, task) in self._given.items():
            finished = self.done[key]
            assert finished.error is None
            expected = alone(self.model, prompt)
            scores: Scores = finished.sequences[0].scores
            targets = prompt[task.first :]
            rows = expected[task.first - 1 : -1]
            own = rows[np.arange(len(targets)), targets]
            about = f"line {key}: {len(prompt)} tokens from {task.first} on"
            np.testing.assert_allclose(scores.logprobs, own, atol=close, rtol=0, err_msg=about)
            assert math.isclose(scores.total(task.first), math.fsum(own), abs_tol=close * max(1, len(own)))
            likelier = (rows > own[:, None] + 2 * close).sum(axis=-1), (rows > own[:, None] - 2 * close).sum(axis=-1)
            ranks = np.array(scores.ranks) - 1
            assert (likelier[0] <= ranks).all(), about
            assert (ranks <= likelier[1]).all(), about
            best = np.sort(rows, axis=-1)[:, ::-1][:, : task.top]
            np.testing.assert_allclose(np.array(scores.top_logprobs).reshape(best.shape), best, atol=close, rtol=0)
            for place, ids in enumerate(scores.top_ids):
                np.testing.assert_allclose(rows[place, ids], best[place], atol=close, rtol=0)

    def errors(self, model: LoadedModel, exact: LoadedModel) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """How far scores are from those of an ``exact`` model: ours, and those of a forward of ``model`` alone."""
        ours, own = [], []
        for key, (prompt, task) in self._given.items():
            right, alike = (
                alone(one, prompt)[np.arange(task.first - 1, len(prompt) - 1), prompt[task.first :]]
                for one in (exact, model)
            )
            ours.append(np.abs(np.array(self.done[key].sequences[0].scores.logprobs) - right))
            own.append(np.abs(alike - right))
        return np.concatenate(ours), np.concatenate(own)


def a_mixture(scorer: Scorer) -> None:
    """Questions with choices behind the same examples, texts of their own, and rows that generate meanwhile."""
    scorer.generate("before", tokens_of(9, 1), max_tokens=12, eos=[])
    for question in range(3):
        asked = [*EXAMPLES, *tokens_of(20 + 3 * question, 10 + question)]
        for choice, length in enumerate((1, 1, 4, 6)):
            scorer.add([*asked, *tokens_of(length, 100 + 10 * question + choice)], len(asked), top=choice)
    for length in (2, 3, 17, 40, 58):
        scorer.add(tokens_of(length, 200 + length), top=2)
    scorer.generate("beside", tokens_of(30, 2), max_tokens=5)
    scorer.add([*tokens_of(17, 217), 5, 9], 7)
    scorer.add(tokens_of(21, 3), top=1, max_tokens=4, eos=[])
