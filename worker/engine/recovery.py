"""Finding the line that broke a step: each row under way is computed again, by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.core as mx

from worker.engine.decode import Taken
from worker.engine.draft import batch_of
from worker.engine.model import LoadedModel
from worker.engine.prefill import PrefillGroup, Prompt
from worker.engine.sampler import Sampler
from worker.engine.scheduler import Ticket
from worker.engine.sequence import Sequence

__all__ = ["to_try", "try_alone"]


def to_try(rows: Iterable[Sequence]) -> list[tuple[Sequence, int]]:
    """The rows of a line whose trial tells about the line, and for how many steps: as far as each was computed when
    the step failed, and one further. Rows that had not started are all alike, so one stands for them."""
    started: list[tuple[Sequence, int]] = []
    fresh: list[tuple[Sequence, int]] = []
    for row in rows:
        (started if row.tokens or row.in_flight else fresh).append((row, row.in_flight + 1))
        row.epoch += 1
        row.in_flight = 0
        row.cached_tokens = 0  # its prompt is computed once more, and in full
    return started + fresh[:1]


def try_alone(
    model: LoadedModel, sampler: Sampler, row: Sequence, steps: int, step_size: int, accept: Callable[[Taken], None]
) -> None:
    """Prefill one row and decode ``steps`` tokens of it with nothing else in the batch; ``accept`` gets each token.

    Raises:
        Exception: whatever the model, MLX or ``accept`` raises: the row is to blame.
    """
    tokens = [*row.prompt, *row.tokens]
    group = PrefillGroup(model, [Ticket(Prompt(tokens), len(tokens) - 1, len(tokens), 0)])
    while not group.done:
        group.advance(step_size)
        mx.eval(group.arrays())
    batch = batch_of(model, sampler)
    batch.join([row], group.take([(group.tickets[0], 1)]), tokens[-1:])
    for _ in range(steps):
        batch.sweep()
        result = batch.dispatch()
        if result is None:
            return
        for taken in result.read():
            row.in_flight -= 1
            if not taken.covered:
                row.full = True
                return
            accept(taken)
