"""Finding the line that broke a step: each row under way is computed again, by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobs.errors import SickModelError
from jobs.params import Sampling
from worker.engine.decode import NotFiniteError, SampledToken
from worker.engine.loading.model import LoadedModel
from worker.engine.prefill import PrefillBatch
from worker.engine.sampling.sampler import Sampler
from worker.engine.scheduler import SequenceGroup
from worker.engine.sequence import PreparedLine, Sequence, sequences_of
from worker.engine.unbatched.speculative import batch_of

__all__ = ["to_try", "try_alone", "try_model"]

STEPS = 2
"""A step that failed was, at most, computing what comes after the one token that had not been read."""


def to_try(rows: Iterable[Sequence]) -> list[Sequence]:
    """The rows of a line whose trial tells about the line. Rows that had not started are all alike, so one stands for
    them."""
    started: list[Sequence] = []
    fresh: list[Sequence] = []
    for row in rows:
        (started if row.tokens else fresh).append(row)
        row.cached_tokens = 0  # its prompt is computed once more, and in full
    return started + fresh[:1]


def try_alone(
    model: LoadedModel, sampler: Sampler, row: Sequence, step_size: int, accept: Callable[[SampledToken], None]
) -> None:
    """Prefill one row and decode ``STEPS`` tokens of it with nothing else in the batch; ``accept`` gets each token.

    Raises:
        Exception: whatever the model, MLX or ``accept`` raises: the row is to blame.
    """
    tokens = [*row.prompt, *row.tokens]
    batch = PrefillBatch(model, [SequenceGroup(tokens, len(tokens) - 1, len(tokens))])
    batch.complete(step_size)
    decode_batch = batch_of(model, sampler)
    decode_batch.join([row], batch.take(batch.groups), tokens[-1:])
    for _ in range(STEPS):
        decode_batch.advance()
        result = decode_batch.sample()
        if result is None:
            return
        for drawn in result.read():
            if not drawn.finite:
                raise NotFiniteError
            if not drawn.covered:
                row.full = True
                return
            accept(drawn)
        if row.ended:
            return


def try_model(model: LoadedModel, sampler: Sampler) -> None:
    """See whether a model does the simplest prompt: two tokens after one.

    Raises:
        SickModelError: it does not, so no line is to blame.
    """
    simplest = PreparedLine("trial", (0,), Sampling(max_tokens=STEPS, seed=0, ignore_eos=True), frozenset())
    [row] = sequences_of(simplest, None, 0.0)
    try:
        try_alone(model, sampler, row, 1, lambda drawn: row.tokens.append(drawn.token))
    except Exception as error:
        raise SickModelError(f"the model fails at the simplest prompt: {type(error).__name__}: {error}") from error
